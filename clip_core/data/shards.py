"""The samples of local tar files: pictures and texts by number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import Image

from clip_core.data.example import Photograph, Texts, captions, fingerprint_of
from clip_core.data.tars import regular_members
from clip_core.errors import ClipError, ImageError
from clip_core.files import open_regular
from clip_core.image import MAX_FILE_BYTES, SUFFIXES, open_image

MAXIMUM_TEXT_BYTES = 1 << 20


class Samples:
    """Pictures and texts in local tar files, in the order of the files and of the members in them.

    Args:
        text_suffix: of the members with texts.
        text: what these are, for messages.
        names: what messages call the files; by default their paths.

    Raises:
        ClipError: a shard is missing, damaged, compressed, or has a member twice, or there are no samples.
    """

    def __init__(self, paths: Sequence[str], text_suffix: str, text: str, names: Sequence[str] | None = None):
        self._paths, self._names, self._what = paths, names or paths, text
        indexed = [samples_of(path, text_suffix, name) for path, name in zip(paths, self._names)]
        self._places = np.concatenate([places for places, _, _ in indexed] or [np.empty((0, 4), np.int64)])
        self._shards = np.repeat(np.arange(len(paths)), [len(places) for places, _, _ in indexed])
        self._stems = Texts(stem for _, stems, _ in indexed for stem in stems)
        self._digests = Texts(digest for _, _, digest in indexed)
        if not len(self):
            raise ClipError(f"{', '.join(paths) or 'The list of shards'} has no samples; give at least one batch.")

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        return f"{self._stems[index]} in {self._names[self._shards[index]]}"

    def picture(self, index: int) -> Image.Image:
        """The picture of a sample.

        Raises:
            ClipError: it has none, or one that cannot be used.
        """
        with open_regular(self._paths[self._shards[index]]) as file:
            data = self._member(file, index, 0, f"picture ({', '.join(SUFFIXES)})", MAX_FILE_BYTES)
        try:
            return open_image(data)
        except ImageError as error:
            raise ImageError(f"{self.name(index)}: {error}") from error

    def text(self, index: int) -> bytes:
        """The text of a sample.

        Raises:
            ClipError: it has none, or one of more than `MAXIMUM_TEXT_BYTES`.
        """
        with open_regular(self._paths[self._shards[index]]) as file:
            return self._text(file, index)

    def texts(self) -> Iterator[bytes | ClipError]:
        """As `text`, of all samples; what it would raise for those that have none."""
        for shard, path in enumerate(self._paths):
            with open_regular(path) as file:
                for index in np.flatnonzero(self._shards == shard).tolist():
                    try:
                        yield self._text(file, index)
                    except ClipError as error:
                        yield error

    def fingerprint(self) -> str:
        """Of the names of the samples, the sizes of their members, and what is written in those with texts."""
        return fingerprint_of(self._stems, self._places[:, [1, 3]].ravel(), self._shards, self._digests)

    def files(self) -> Iterable[str]:
        return self._paths

    def _text(self, file: BinaryIO, index: int) -> bytes:
        return self._member(file, index, 2, self._what, MAXIMUM_TEXT_BYTES)

    def _member(self, file: BinaryIO, index: int, column: int, what: str, limit: int) -> bytes:
        start, size = self._places[index, column : column + 2].tolist()
        if size < 0:
            raise ClipError(f"{self.name(index)} has no member with its {what}.")
        if size > limit:
            raise ClipError(f"{self.name(index)} has a {what} of {size} bytes, and at most {limit} are read.")
        file.seek(start)
        return file.read(size)


class Shards:
    """Samples with captions.

    Args:
        json_key: take the captions from this key of the ``json`` members, not from the ``txt`` members.
        names: what messages call the files; by default their paths.
        a_line_each: whether each line of a ``txt`` member is a caption.

    Raises:
        ClipError: as `Samples`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        json_key: str | None = None,
        names: Sequence[str] | None = None,
        a_line_each: bool = False,
    ):
        self._json_key, self._a_line_each = json_key, a_line_each
        self._samples = Samples(paths, "txt" if json_key is None else "json", "caption", names)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Photograph:
        name = self._samples.name(index)
        texts = captions(self._captions(self._samples.text(index), name), name)
        return Photograph(self._samples.picture(index), texts)

    def fingerprint(self) -> str:
        return self._samples.fingerprint()

    def files(self) -> Iterable[str]:
        return self._samples.files()

    def captions(self) -> Iterator[str]:
        for index, member in enumerate(self._samples.texts()):
            if isinstance(member, bytes):
                with suppress(ClipError):  # a fault of its example
                    texts = self._captions(member, self._samples.name(index))
                    yield from (text for text in texts if isinstance(text, str))

    def _captions(self, member: bytes, name: str) -> list[object]:
        try:
            text = member.decode("utf-8").strip()
            if self._json_key is None:
                return [*text.splitlines()] if self._a_line_each else [text]
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClipError(f"The caption of {name} cannot be read: {error}.") from error
        return [found.get(self._json_key)] if isinstance(found, dict) else []


def samples_in(path: str, json_key: str | None, name: str | None = None) -> int:
    """How many samples a shard has, which may be none.

    Raises:
        ClipError: as `Shards`, about ``name``.
    """
    return len(samples_of(path, "txt" if json_key is None else "json", name or path)[1])


def samples_of(path: str, text_suffix: str, name: str) -> tuple[np.ndarray, list[str], str]:
    """Where the samples of a shard lie, int64 [samples, 4], their stems, and the SHA-256 of the members with texts.

    Of each sample: where its picture begins and its bytes, the same of its text; -1 where there is none. A text longer
    than is read does not enter the digest.

    Raises:
        ClipError: the shard is missing, damaged, compressed, or has a member twice.
    """
    digest = hashlib.sha256()
    places: dict[str, list[int]] = {}
    with open_regular(path) as file:
        for member in regular_members(file, name):
            folder, _, last = member.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            column = 0 if f".{suffix.lower()}" in SUFFIXES else 2 if suffix.lower() == text_suffix else None
            if column is None:
                continue
            place = places.setdefault(f"{folder}/{stem}" if folder else stem, [-1, -1, -1, -1])
            if place[column] >= 0:
                raise ClipError(f"{name} has {member.name} or another {suffix} of its stem twice; make it anew.")
            place[column : column + 2] = member.offset_data, member.size
            if column == 2 and member.size <= MAXIMUM_TEXT_BYTES:
                file.seek(member.offset_data)
                digest.update(file.read(member.size))
    return np.array(list(places.values()), np.int64).reshape(-1, 4), list(places), digest.hexdigest()
