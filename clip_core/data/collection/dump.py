"""The articles of a Wikipedia dump, ``pages-articles.xml.bz2``, read as a stream.

::

    <mediawiki ...> <siteinfo>...</siteinfo>
      <page> <title>..</title> <ns>0</ns> <revision> <text>wikitext</text> </revision> </page> ...
    </mediawiki>

Pages of other name spaces than 0 and redirects are no articles. Of a page with several revisions, the last one counts.
A dump has no document type, so a file with one, the only place that declares entities, is refused.
"""

from __future__ import annotations

import os
from bz2 import BZ2Decompressor
from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

from clip_core.errors import ClipError

MOST_CHARACTERS = 16 << 20
"""Of one text; MediaWiki's own limit is 2 MiB."""

_READ = 1 << 16  # bytes read at once
_UNPACKED = 1 << 20  # bytes unpacked at once
_LONGEST_TAG = 4 << 20  # bytes; a parser goes over an unfinished one again and again
_EXPANSION = 40  # to so many times its size, a bz2 file of texts does not expand


class Articles:
    """Iterates over the texts of the articles, with ``None`` wherever a bz2 stream ends.

    Args:
        path: for error messages.
        file: the dump, open for reading.
        start: where a stream begins: 0, or the `position` at an earlier ``None``.

    Raises:
        ClipError: the file is damaged, cut short or no dump.
    """

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO, start: int = 0):
        self.position = start  # bytes of the file that have been used
        self._path, self._file, self._start = os.fspath(path), file, start
        self._file.seek(start)

    def __iter__(self) -> Iterator[str | None]:
        pages = _Pages(self._path)
        if self._start:
            pages.feed(b"<mediawiki>")
        for data in self._unpacked():
            if data is None:
                yield None
            else:
                pages.feed(data)
                yield from pages.taken()
        pages.end()

    def _unpacked(self) -> Iterator[bytes | None]:
        decompressor, rest, unpacked, ended = BZ2Decompressor(), b"", 0, False
        while True:
            if not rest and (decompressor.needs_input or decompressor.eof):
                rest = self._file.read(_READ)
                if not rest:
                    break
            if decompressor.eof:
                decompressor = BZ2Decompressor()
            before, ended = len(rest), False
            try:
                data = decompressor.decompress(rest, _UNPACKED)
            except (OSError, ValueError) as error:
                raise ClipError(
                    f"{self._path} is no bz2 file, or damaged behind byte {self.position}; get it again."
                ) from error
            rest = decompressor.unused_data
            self.position += before - len(rest)
            unpacked += len(data)
            if unpacked > _EXPANSION * (self.position - self._start) + (_UNPACKED << 3):
                raise ClipError(f"{self._path} expands to more than {unpacked} bytes, as no text does; get it again.")
            if data:
                yield data
            if decompressor.eof:
                ended = True
                yield None
        if not ended:
            raise ClipError(f"{self._path} is empty or cut short behind byte {self.position}; get it again.")


class _Pages:
    """Takes the XML piece by piece, and gives the texts of the articles that have ended."""

    def __init__(self, path: str):
        self._path = path
        self._texts: list[str] = []
        self._depth = self._fed = self._size = 0
        self._field: str | None = None  # whose characters are collected
        self._collected: list[str] = []
        self._page: dict[str, str] = {}
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse_type
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._collect

    def feed(self, data: bytes, last: bool = False) -> None:
        try:
            self._parser.Parse(data, last)
        except expat.ExpatError as error:
            raise ClipError(f"{self._path} is damaged, or no dump: {error}; get it again.") from error
        self._fed += len(data)
        if self._fed - self._parser.CurrentByteIndex > _LONGEST_TAG:
            raise ClipError(f"{self._path} has a tag or comment of more than {_LONGEST_TAG} bytes; it is no dump.")

    def end(self) -> None:
        self.feed(b"", last=True)

    def taken(self) -> list[str]:
        taken, self._texts = self._texts, []
        return taken

    def _refuse_type(self, *_: object) -> None:
        raise ClipError(
            f"{self._path} declares a document type, which no dump does; give one of Wikipedia's own files."
        )

    def _begin(self, name: str, _: object) -> None:
        self._depth += 1
        if self._depth == 1 and name != "mediawiki":
            raise ClipError(f"{self._path} is XML, but no dump: it begins with <{name[:40]}>, not with <mediawiki>.")
        if self._depth == 2:
            self._page = {}
        if (self._depth, name) in ((3, "ns"), (3, "redirect"), (4, "text")):
            self._field, self._collected, self._size = name, [], 0

    def _collect(self, characters: str) -> None:
        if self._field is not None:
            self._size += len(characters)
            if self._size > MOST_CHARACTERS:
                raise ClipError(f"{self._path} has a page of more than {MOST_CHARACTERS} characters; it is no dump.")
            self._collected.append(characters)

    def _end(self, name: str) -> None:
        if self._field is not None:
            self._page[self._field] = "".join(self._collected)
            self._field, self._collected = None, []
        if self._depth == 2 and name == "page" and self._page.get("ns") == "0" and "redirect" not in self._page:
            self._texts.append(self._page.get("text", ""))
        self._depth -= 1
