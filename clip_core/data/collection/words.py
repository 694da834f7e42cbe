"""How often each word stands in the articles of a Wikipedia dump, ``pages-articles.xml.bz2``.

Words are runs of letters, in lower case; those of one letter and the function words of English are left out. Templates,
tables, references, comments, addresses and what links lead to are no text of an article.

The dump is read as a stream. Counts that do not fit into memory are written into a working folder, sorted, and are
merged at the end, so the result is exact. In a multistream dump each stream has 100 pages and can be read by itself:
there the work goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import regex

from clip_core import files
from clip_core.data.collection.dump import Articles
from clip_core.data.listing import read_json
from clip_core.errors import ClipError

MINIMUM = 100
"""How often a word has to stand to be kept."""

MOST_IN_MEMORY = 2_000_000  # different words
SAVED_EVERY = 256 << 20  # bytes of the dump after which the counts are written down
_EDGE = 1 << 20  # bytes at either end by which a dump is recognised

_WORD = regex.compile(r"[\p{L}\p{M}]+")

STOP_WORDS = frozenset(
    _WORD.findall(
        """
        about above after again against ain all also although am among an and any are aren as at be became because
        become been before being below between both but by can cannot could couldn did didn do does doesn doing don down
        during each either else ever every few for from further had hadn has hasn have haven having he her here hers
        herself him himself his how however if in into is isn it its itself just ll may me might mightn more most much
        must mustn my myself neither no nor not now of off often on once only or other our ours ourselves out over own
        per quite rather re same shall shan she should shouldn since so some such than that the their theirs them
        themselves then there therefore these they this those though through thus to too under until up upon us ve very
        via was wasn we were weren what when where whereas whether which while who whom whose why will with within
        without won would wouldn yet you your yours yourself yourselves
        """
    )
)
"""Function words of English, with what apostrophes leave of them; nobody searches pictures for these."""


class Word(NamedTuple):
    word: str
    times: int


class Counted(NamedTuple):
    articles: int
    words: list[Word]  # the most frequent first, equal counts by the alphabet


def count_words(
    dump: Path, work: Path, minimum: int = MINIMUM, progress: Callable[[int, int], None] = lambda *_: None
) -> Counted:
    """Count the words of a dump; ``work`` is a folder for this alone, which stays where a later count can go on.

    Args:
        minimum: words that stand less often are left out.
        progress: called with the bytes of the dump that are read, and their number.

    Raises:
        ClipError: the dump is damaged or something else, has no article, or the folder cannot be written.
    """
    with files.exclusive(work, "count of words"), files.open_regular(dump) as file:
        counting = _Counting(dump, file, work)
        try:
            counting.read(progress)
            if not counting.articles:
                raise ClipError(
                    f"{dump} has no article; give a dump of pages with their texts (pages-articles.xml.bz2)."
                )
            sums = _summed(counting.sorted_runs())
            kept = [Word(word, times) for word, times in sums if times >= minimum and word not in STOP_WORDS]
        except BaseException:
            if not counting.can_go_on:
                counting.clear()
            raise
        counting.clear()
    kept.sort(key=lambda word: (-word.times, word.word))
    return Counted(counting.articles, kept)


class _Counting:
    """Counts in memory and in runs, which are sorted files; the state says which runs hold which part of the dump."""

    def __init__(self, dump: Path, file: BinaryIO, folder: Path):
        self._dump, self._file, self._folder = dump, file, folder
        self._size = os.fstat(file.fileno()).st_size
        self._state = folder / "state.json"
        self._fingerprint = self._edges()
        self._counts: Counter[str] = Counter()
        self._position = self._runs = self.articles = 0
        if self._state.exists():
            found = read_json(str(self._state))
            if isinstance(found, dict) and found.get("dump") == self._fingerprint:
                self._position, self._runs, self.articles = found["position"], found["runs"], found["articles"]

    @property
    def can_go_on(self) -> bool:
        """Whether something is written down that another count can begin with."""
        return self._state.exists()

    def read(self, progress: Callable[[int, int], None]) -> None:
        articles = Articles(self._dump, self._file, self._position)
        for text in articles:
            if text is None:  # between two streams
                if articles.position - self._position >= SAVED_EVERY and articles.position < self._size:
                    self._save(articles.position)
            else:
                self.articles += 1
                self._counts.update(words_in(text))
                if len(self._counts) >= MOST_IN_MEMORY:
                    self._spill()
            progress(articles.position, self._size)

    def sorted_runs(self) -> list[Iterable[tuple[str, int]]]:
        return [*map(self._counts_of, range(self._runs)), sorted(self._counts.items())]

    def _save(self, position: int) -> None:
        self._spill()
        self._position = position
        state = {"dump": self._fingerprint, "position": position, "runs": self._runs, "articles": self.articles}
        files.write_text(self._state, json.dumps(state))

    def _spill(self) -> None:
        with files.atomic_open(self._run(self._runs)) as file:
            for word, count in sorted(self._counts.items()):
                file.write(f"{word}\t{count}\n".encode())
        self._runs += 1
        self._counts.clear()

    def _counts_of(self, number: int) -> Iterator[tuple[str, int]]:
        with files.open_regular(self._run(number)) as file:
            for line in file:
                word, _, count = line.decode().partition("\t")
                yield word, int(count)

    def clear(self) -> None:
        """Remove what has been written down, and the folder."""
        self._state.unlink(missing_ok=True)
        for number in range(self._runs):
            self._run(number).unlink()
        (self._folder / files.LOCK).unlink()
        with suppress(OSError):  # someone else has put something into it
            self._folder.rmdir()

    def _run(self, number: int) -> Path:
        return self._folder / f"{number:05}.tsv"

    def _edges(self) -> str:
        """What tells this dump from others, without reading all of it."""
        digest = hashlib.sha256(str(self._size).encode())
        for place in (0, max(0, self._size - _EDGE)):
            self._file.seek(place)
            digest.update(self._file.read(_EDGE))
        return digest.hexdigest()


def _summed(runs: list[Iterable[tuple[str, int]]]) -> Iterator[tuple[str, int]]:
    for word, counts in groupby(heapq.merge(*runs), key=lambda pair: pair[0]):
        yield word, sum(count for _, count in counts)


def words_in(wikitext: str) -> Iterator[str]:
    """The words of an article's text."""
    return (word for word in _WORD.findall(plain_text(wikitext).lower()) if len(word) > 1)


# What is left out from its beginning to its end, and may have others of its kind inside.
_PAIRS = {"{{": "}}", "{|": "|}", "<!--": "-->"}
_LEFT_OUT = ("ref", "math", "chem", "score", "timeline", "syntaxhighlight", "source", "gallery")
_MARKS = regex.compile(
    r"\{\{|\}\}|\{\||\|\}|<!--|-->|<(?P<closing>/?)(?P<tag>" + "|".join(_LEFT_OUT) + r")\b[^<>]*>", regex.IGNORECASE
)
_ADDRESS = regex.compile(r"(?:https?|ftp)://[^\s\[\]<>|{}]*")
_LINK = regex.compile(r"\[\[([^\[\]]*+)\]\]")
_PICTURE = regex.compile(r"\s*(?:file|image|media)\s*:", regex.IGNORECASE)
_CATEGORY = regex.compile(r"\s*category\s*:", regex.IGNORECASE)
_REST = regex.compile(r"<[^<>]*+>|&#?\w{1,31};|__[A-Z]+__")


def plain_text(wikitext: str) -> str:
    """The running text of an article, in time proportional to its length whatever it holds."""
    text = _ADDRESS.sub(" ", _without_pairs(wikitext))
    for _ in range(2):  # the caption of a picture may have links inside
        text = _LINK.sub(_shown, text)
    return _REST.sub(" ", text)


def _shown(link: regex.Match[str]) -> str:
    """What a reader sees of a link; the last part of a picture's is its caption if it has several words."""
    target, _, text = link[1].rpartition("|")
    if _CATEGORY.match(link[1]) or (_PICTURE.match(link[1]) and not (target and " " in text.strip())):
        return " "
    return text


def _without_pairs(text: str) -> str:
    """The text without what stands between marks that belong together; a mark without its partner is left alone."""
    kept: list[str] = []
    opened: list[tuple[str, int]] = []  # the mark that would end it, and how much had been kept
    waiting: Counter[str] = Counter()
    place = 0
    for mark in _MARKS.finditer(text):
        kept.append(text[place : mark.start()])
        place = mark.end()
        found = mark[0]
        tag = mark["tag"] and mark["tag"].lower()
        ends = f"</{tag}" if tag and mark["closing"] else found
        if opened and opened[-1][0] == "-->" != ends:
            continue  # in a comment, nothing else counts
        if tag and not mark["closing"]:
            if not found.endswith("/>"):
                opened.append((f"</{tag}", len(kept)))
                waiting[f"</{tag}"] += 1
        elif found in _PAIRS:
            opened.append((_PAIRS[found], len(kept)))
            waiting[_PAIRS[found]] += 1
        elif waiting[ends]:
            end, length = "", 0
            while end != ends:
                end, length = opened.pop()
                waiting[end] -= 1
            del kept[length:]
            kept.append(" ")
    kept.append(text[place:])
    return "".join(kept)
