"""A tree of pictures, each with a text file of the same name beside it, as PASSL reads it.

::

    food/0001.jpg   food/0001.txt
    sub/0001.PNG    sub/0001.TXT

Folders may be nested, and linked; one that several links lead to counts once. Picture and text belong together when
their paths are equal but for the suffix, so the same name in two folders is two examples. Each line of a text that is
not blank is a caption, in UTF-8. A picture without a text, and a text without a picture, are counted as faults. Hidden
files do not count, and what else is passed over is said in a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Literal

from clip_core.data.example import Photograph, SourceSettings, Texts, captions, fingerprint_of
from clip_core.data.listing import tree, warn_of_rest
from clip_core.errors import ClipError, TextError
from clip_core.files import read_regular
from clip_core.image import SUFFIXES, open_image

MAXIMUM_TEXT_BYTES = 1 << 20


class Paired(SourceSettings):
    """A folder of pictures, each with a text of the same name."""

    kind: Literal["paired"] = "paired"
    folder: str

    def open(self, seed: int) -> PairedFiles:
        return PairedFiles(self.folder)


class PairedFiles:
    """The examples of a folder, ordered by path; texts are read when they are asked for.

    Raises:
        ClipError: there are none, or a folder cannot be read.
    """

    def __init__(self, folder: str):
        files, again = tree(folder)
        suffixes = [os.path.splitext(path)[1].lower() for path in files]
        pictures = [path for path, suffix in zip(files, suffixes) if suffix in SUFFIXES]
        texts = {os.path.splitext(path)[0]: path for path, suffix in zip(files, suffixes) if suffix == ".txt"}
        warn_of_rest(
            folder, [path for path, suffix in zip(files, suffixes) if suffix not in (*SUFFIXES, ".txt")], again
        )
        stems = {os.path.splitext(path)[0] for path in pictures}
        lone = [text for stem, text in texts.items() if stem not in stems]
        pairs = sorted(
            [(path, texts.get(os.path.splitext(path)[0], "")) for path in pictures] + [("", x) for x in lone]
        )
        if not pictures:
            raise ClipError(f"{folder} has no pictures ({', '.join(SUFFIXES)}), in no folder below it; check the path.")
        self._folder = folder
        self._pictures = Texts(picture for picture, _ in pairs)
        self._texts = Texts(text for _, text in pairs)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Photograph:
        picture, text = self._pictures[index], self._texts[index]
        if not picture:
            raise ClipError(f"{text} has no picture of the same name beside it ({', '.join(SUFFIXES)}).")
        if not text:
            raise ClipError(f"{picture} has no .txt file of the same name beside it.")
        return Photograph(open_image(picture), captions(_lines(text), text))

    def fingerprint(self) -> str:
        """Of all paths and of the captions; a text that cannot be read counts as one without captions."""
        paths = Texts(path and os.path.relpath(path, self._folder) for path in [*self._pictures, *self._texts])
        return fingerprint_of(paths, Texts("\n".join(_lines_or_none(path)) for path in self._texts))

    def files(self) -> Iterable[str]:
        return self._pictures

    def captions(self) -> Iterator[str]:
        for picture, text in zip(self._pictures, self._texts):
            if picture:
                yield from _lines_or_none(text)


def _lines(path: str) -> list[str]:
    try:
        lines = read_regular(path, MAXIMUM_TEXT_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8: {error}; save it in UTF-8.") from error
    return [line.strip() for line in lines]


def _lines_or_none(path: str) -> list[str]:
    """The same, or nothing where that is a fault of the example, or there is no path."""
    with suppress(ClipError):
        return _lines(path) if path else []
    return []
