"""What a loader asks for: pictures with captions, by number, from whatever family of files they come."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from clip_core.data.settings import Section
from clip_core.errors import ClipError, TextError


class Example(Protocol):
    """A picture with a caption, or with several, of which each epoch takes one."""

    @property
    def picture(self) -> Image.Image: ...

    @property
    def caption(self) -> str | tuple[str, ...]: ...


class Source(Protocol):
    """Examples that can be asked for in any order and in any process.

    One picture is one example, however many captions it has, so it cannot meet itself in a batch. An example that
    cannot be used raises `ClipError`, which names the file; the loader counts it and goes on.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def fingerprint(self) -> str:
        """What tells these examples from others of the same number, made by `fingerprint_of`, without reading pictures.

        Listed sources and trees take their paths and captions, shards also the sizes of their members, streamed shards
        their addresses and numbers of samples, drawn pictures their settings. What pictures show is not covered.
        """

    def files(self) -> Iterable[str]:
        """The files that pictures are read from; nothing where they are drawn, or fetched."""

    def captions(self) -> Iterator[str]:
        """All captions in the order of the examples, without reading pictures; some may be blank or no usable text.

        Raises:
            ClipError: they are not known before the data is fetched.
        """


class Place(NamedTuple):
    """One of the places of an epoch, of which it has as many as there are examples."""

    number: int  # of the place; with the epoch it decides what is done to the example at random
    example: int


@runtime_checkable
class Ordered(Protocol):
    """A source that says itself in which order an epoch takes its examples; others are shuffled by the loader."""

    def order(self, epoch: int, position: int, batch_size: int) -> Place:
        """What is at a position of an epoch that is cut into batches."""


class SourceSettings(Section):
    """The keys of the recipe that belong to one family of sources, by whose ``kind`` it is chosen."""

    kind: str

    @abstractmethod
    def open(self, seed: int) -> Source:
        """The examples, in an order that depends on the files alone.

        Args:
            seed: of the run, for sources that make their pictures up or have an order of their own.

        Raises:
            ClipError: files are missing or not in the family's layout, or there is no example in them.
        """


@dataclass(frozen=True)
class Photograph:
    """A decoded picture and all its captions."""

    picture: Image.Image
    caption: tuple[str, ...]


def captions(texts: Iterable[object], name: str) -> tuple[str, ...]:
    """The captions of the picture ``name`` that are not blank.

    Raises:
        TextError: there are none.
    """
    usable = tuple(text for text in texts if isinstance(text, str) and text.strip())
    if not usable:
        raise TextError(f"{name} has no caption.")
    return usable


class Texts(Sequence[str]):
    """Many texts as one block of bytes: millions of ``str`` take gigabytes, in every process that makes batches."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([0] + [len(text) for text in encoded])
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nobody asks for slices
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")

    def fingerprint(self) -> str:
        """The SHA-256 of all texts and where each ends, as 64 hexadecimal digits."""
        digest = hashlib.sha256(self._ends.astype("<i8").tobytes())
        digest.update(self._bytes)
        return digest.hexdigest()


def fingerprint_of(*parts: Texts | Sequence[int] | np.ndarray | str) -> str:
    """The SHA-256, as 64 hexadecimal digits, of texts and whole numbers in their order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Texts):
            part = part.fingerprint()
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else np.asarray(part, "<i8").tobytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class PictureFiles:
    """Picture files with captions that were read from a listing.

    Args:
        listing: the file that names them, for error messages.
        folder: where relative paths start; an archive will do.
        examples: path and captions of each picture; an empty path is a fault of its example.

    Raises:
        ClipError: there are no examples.
    """

    def __init__(self, listing: str, folder: str, examples: Iterable[tuple[str, Sequence[str]]]):
        examples = list(examples)
        if not examples:
            raise ClipError(f"{listing} names no pictures; give data with at least one batch of them.")
        from clip_core.data.trees import pictures_in  # which is made of parts of this file

        self._listing, self._pictures = listing, pictures_in(folder, examples[0][0])
        self._paths = Texts(path for path, _ in examples)
        self._captions = Texts(text for _, texts in examples for text in texts)
        self._ends = np.cumsum([0] + [len(texts) for _, texts in examples])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Photograph:
        path = self._paths[index]
        if not path:
            raise ClipError(f"A row of {self._listing} names no picture; its number among the examples is {index}.")
        name = os.path.join(self._pictures.source, path)
        texts = captions([self._captions[i] for i in range(*self._ends[index : index + 2])], name)
        return Photograph(self._pictures.picture(path), texts)

    def fingerprint(self) -> str:
        return fingerprint_of(self._paths, self._captions, self._ends)

    def files(self) -> Iterable[str]:
        return self._pictures.files(self._paths)

    def captions(self) -> Iterator[str]:
        return iter(self._captions)


def grouped(rows: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Rows of a path and a caption -> each path once, with all its captions, in the order of first occurrence.

    Paths that differ in spelling alone (``a/./b.jpg``) are the same. A row without a path stays a row of its own.
    """
    by_path: dict[str, list[str]] = {}
    examples = []
    for name, caption in rows:
        path = os.path.normpath(name) if name else name
        if path not in by_path or not path:
            by_path[path] = []
            examples.append((path, by_path[path]))
        by_path[path].append(caption)
    return examples
