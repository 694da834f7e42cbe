"""The samples of local tar files: pictures and captions by number."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from clip_core.data.example import Photograph, Texts, captions, fingerprint_of
from clip_core.errors import ClipError, ImageError
from clip_core.files import open_regular
from clip_core.image import MAX_FILE_BYTES, SUFFIXES, open_image

MAXIMUM_TEXT_BYTES = 1 << 20
MAXIMUM_HEADER_BYTES = 1 << 13  # of what stands before a member: long names, and attributes as pax writes them


class Shards:
    """The samples of local tar files, in the order of the files and of the members in them.

    Args:
        names: what messages call the files; by default their paths.

    Raises:
        ClipError: a shard is missing, damaged, compressed, or has a member twice, or there are no samples.
    """

    def __init__(self, paths: Sequence[str], json_key: str | None = None, names: Sequence[str] | None = None):
        self._paths, self._names, self._json_key = paths, names or paths, json_key
        indexed = [_index(path, json_key, name) for path, name in zip(paths, self._names)]
        # int64 [samples, 4]: where the picture begins and its bytes, the same of the caption; -1 where there is none.
        self._places = np.concatenate([places for places, _, _ in indexed] or [np.empty((0, 4), np.int64)])
        self._shards = np.repeat(np.arange(len(paths)), [len(places) for places, _, _ in indexed])
        self._stems = Texts(stem for _, stems, _ in indexed for stem in stems)
        self._digests = Texts(digest for _, _, digest in indexed)
        if not len(self):
            raise ClipError(f"{', '.join(paths) or 'The list of shards'} has no samples; give at least one batch.")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Photograph:
        shard = self._shards[index]
        name = f"{self._stems[index]} in {self._names[shard]}"
        picture_start, picture_bytes, text_start, text_bytes = self._places[index].tolist()
        if picture_bytes < 0 or text_bytes < 0:
            lacking = f"picture ({', '.join(SUFFIXES)})" if picture_bytes < 0 else "caption"
            raise ClipError(f"{name} has no member with its {lacking}.")
        if picture_bytes > MAX_FILE_BYTES or text_bytes > MAXIMUM_TEXT_BYTES:
            raise ClipError(f"{name} has {picture_bytes} bytes of picture and {text_bytes} of text, more than is read.")
        with open_regular(self._paths[shard]) as file:
            file.seek(text_start)
            text = file.read(text_bytes)
            file.seek(picture_start)
            picture = file.read(picture_bytes)
        texts = captions([self._caption(text, name)], name)
        try:
            return Photograph(open_image(picture), texts)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def fingerprint(self) -> str:
        """Of the names of the samples, the sizes of their members, and what is written in those with captions."""
        return fingerprint_of(self._stems, self._places[:, [1, 3]].ravel(), self._shards, self._digests)

    def captions(self) -> Iterator[str]:
        for stem, shard, (start, size) in zip(self._stems, self._shards, self._places[:, 2:].tolist()):
            if 0 <= size <= MAXIMUM_TEXT_BYTES:
                with open_regular(self._paths[shard]) as file, suppress(ClipError):  # a fault of its example
                    file.seek(start)
                    text = self._caption(file.read(size), stem)
                    if isinstance(text, str):
                        yield text

    def _caption(self, member: bytes, name: str) -> object:
        try:
            text = member.decode("utf-8").strip()
            if self._json_key is None:
                return text
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClipError(f"The caption of {name} cannot be read: {error}.") from error
        return found.get(self._json_key) if isinstance(found, dict) else None


def samples_in(path: str, json_key: str | None, name: str | None = None) -> int:
    """How many samples a shard has, which may be none.

    Raises:
        ClipError: as `Shards`, about ``name``.
    """
    return len(_index(path, json_key, name or path)[1])


def _index(path: str, json_key: str | None, name: str) -> tuple[np.ndarray, list[str], str]:
    """Where the samples of a shard lie, int64 [samples, 4], their stems, and the SHA-256 of the members with captions.

    A caption longer than is read does not enter the latter.
    """
    digest = hashlib.sha256()
    text_suffix = "txt" if json_key is None else "json"
    places: dict[str, list[int]] = {}
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                for member in _members(tar):
                    folder, _, last = member.name.rpartition("/")
                    stem, _, suffix = last.partition(".")
                    column = 0 if f".{suffix.lower()}" in SUFFIXES else 2 if suffix.lower() == text_suffix else None
                    if not member.isreg() or column is None:
                        continue
                    place = places.setdefault(f"{folder}/{stem}" if folder else stem, [-1, -1, -1, -1])
                    if place[column] >= 0:
                        raise ClipError(
                            f"{name} has {member.name} or another {suffix} of its stem twice; make it anew."
                        )
                    if member.issparse() or member.offset_data + member.size > size:
                        raise ClipError(f"{name} is cut short within {member.name}; get it again.")
                    place[column : column + 2] = member.offset_data, member.size
                    if column == 2 and member.size <= MAXIMUM_TEXT_BYTES:
                        file.seek(member.offset_data)
                        digest.update(file.read(member.size))
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise ClipError(f"{name} is not an uncompressed tar file: {error}; get it again.") from error
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word
            raise ClipError(f"{name} has no end mark after byte {end}: it is cut short or damaged; get it again.")
    return np.array(list(places.values()), np.int64).reshape(-1, 4), list(places), digest.hexdigest()


class _Header(tarfile.TarInfo):
    """A header whose size is possible; tarfile takes any, and reads a terabyte, or goes back and never ends."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        before_member = header.type in (
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        )
        if header.size < 0 or (before_member and header.size > MAXIMUM_HEADER_BYTES):
            raise ValueError(f"a header states {header.size} bytes")
        return header


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members, each behind the one before it."""
    end = -1
    for member in tar:
        if tar.offset <= end or member.size < 0:  # attributes can change a member's size
            raise ValueError(f"member {member.name!a} states {member.size} bytes")
        end = tar.offset
        yield member
