"""WebDataset shards: tar files whose members of one stem are one sample, as img2dataset writes them.

::

    00000.tar:  000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

The stem is the member's path up to the first dot of its last part. The picture is a member with one of `SUFFIXES`, the
caption the ``txt`` member, or a key of the ``json`` member when ``json_key`` is set. A sample that lacks one of them is
counted as a fault.

``shards`` is a path, or several, with ranges in braces: ``cc/{00000..00331}.tar``. An http or https address is fetched
once into the cache folder. The tar headers are read once at the start; samples are then read in any order, so they are
shuffled all together and a run resumes exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile

import numpy as np

from clip_core.data.source import Photograph, SourceSettings, Texts, captions
from clip_core.errors import ClipError, ImageError
from clip_core.files import cache_folder, download, open_regular
from clip_core.image import MAX_FILE_BYTES, open_image

SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAXIMUM_TEXT_BYTES = 1 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDataset(SourceSettings):
    """Shards and where in them the captions are."""

    shards: str | tuple[str, ...]
    json_key: str | None = None  # take the caption from this key of the json member, not from the txt member

    def open(self, seed: int) -> Shards:
        patterns = [self.shards] if isinstance(self.shards, str) else self.shards
        return Shards([_local(path) for pattern in patterns for path in expand(pattern)], self.json_key)


def expand(pattern: str) -> list[str]:
    """The paths that ``pattern`` stands for: ``{08..10}`` counts up, with as many digits as the first number.

    Raises:
        ClipError: a range counts down.
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise ClipError(f"The shards {pattern!r} count down from {first} to {last}; write the smaller number first.")
    before, after = pattern[: found.start()], expand(pattern[found.end() :])
    numbers = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
    return [before + number + rest for number in numbers for rest in after]


class Shards:
    """The samples of local tar files, in the order of the files and of the members in them.

    Raises:
        ClipError: a shard is missing, damaged, compressed, or has a member twice, or there are no samples.
    """

    def __init__(self, paths: list[str], json_key: str | None = None):
        self._paths, self._json_key = paths, json_key
        suffixes = ("txt",) if json_key is None else ("json",)
        indexed = [_index(path, suffixes) for path in paths]
        # int64 [samples, 4]: where the picture begins and its bytes, the same of the caption; -1 where there is none.
        self._places = np.concatenate([places for places, _ in indexed] or [np.empty((0, 4), np.int64)])
        self._shards = np.repeat(np.arange(len(paths)), [len(places) for places, _ in indexed])
        self._stems = Texts(stem for _, stems in indexed for stem in stems)
        if not len(self):
            raise ClipError(f"{', '.join(paths) or 'The list of shards'} has no samples; give at least one batch.")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Photograph:
        path = self._paths[self._shards[index]]
        name = f"{self._stems[index]} in {path}"
        picture_start, picture_bytes, text_start, text_bytes = self._places[index].tolist()
        if picture_bytes < 0 or text_bytes < 0:
            lacking = "picture" if picture_bytes < 0 else "caption"
            raise ClipError(f"{name} has no member with its {lacking}.")
        if picture_bytes > MAX_FILE_BYTES or text_bytes > MAXIMUM_TEXT_BYTES:
            raise ClipError(f"{name} has {picture_bytes} bytes of picture and {text_bytes} of text, more than is read.")
        with open_regular(path) as file:
            file.seek(text_start)
            text = file.read(text_bytes)
            file.seek(picture_start)
            picture = file.read(picture_bytes)
        texts = captions([self._caption(text, name)], name)
        try:
            return Photograph(open_image(picture), texts)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def _caption(self, member: bytes, name: str) -> object:
        try:
            text = member.decode("utf-8").strip()
            if self._json_key is None:
                return text
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClipError(f"The caption of {name} cannot be read: {error}.") from error
        return found.get(self._json_key) if isinstance(found, dict) else None


def _index(path: str, text_suffixes: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Where the samples of a shard lie, int64 [samples, 4], and their stems."""
    places: dict[str, list[int]] = {}
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    column = 0 if suffix.lower() in SUFFIXES else 2 if suffix.lower() in text_suffixes else None
                    if not member.isreg() or column is None:
                        continue
                    place = places.setdefault(f"{folder}/{stem}" if folder else stem, [-1, -1, -1, -1])
                    if place[column] >= 0:
                        raise ClipError(
                            f"{path} has {member.name} or another {suffix} of its stem twice; make it anew."
                        )
                    if member.issparse() or member.offset_data + member.size > size:
                        raise ClipError(f"{path} is cut short within {member.name}; get it again.")
                    place[column : column + 2] = member.offset_data, member.size
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise ClipError(f"{path} is not an uncompressed tar file: {error}; get it again.") from error
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word
            raise ClipError(f"{path} has no end mark after byte {end}: it is cut short or damaged; get it again.")
    return np.array(list(places.values()), np.int64).reshape(-1, 4), list(places)


def _local(shard: str) -> str:
    if not shard.startswith(("http://", "https://")):
        return shard
    name = f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}-{shard.rpartition('/')[2][-80:]}"
    return str(download(shard, cache_folder() / "shards" / name, None))
