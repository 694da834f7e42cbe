"""Pairs of sentences with a score of how alike people find them, one kind for each published layout.

``sick`` (Marelli and others 2014)::

    SICK.txt                       pair_ID<tab>sentence_A<tab>sentence_B<tab>...relatedness_score<tab>...SemEval_set

``sts12`` to ``sts16`` (Agirre and others), as SentEval lays them out in a folder for each year::

    STS12-en-test/STS.input.MSRpar.txt         two sentences, with a tab between them
    STS12-en-test/STS.gs.MSRpar.txt            the score of each line; blank where nobody has judged

``stsb``, the STS Benchmark (Cer and others 2017)::

    sts-test.csv                   genre<tab>file<tab>year<tab>number<tab>score<tab>sentence 1<tab>sentence 2<tab>...
    sts-test.tsv                   with a first line that has the columns sentence1, sentence2 and score

All are in the given folder or in one of the usual name in it. Quotation marks are characters like others.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.listing import lines_of
from clip_core.data.settings import Section, shown
from clip_core.errors import ClipError


class Pairs:
    """Pairs of sentences and their scores.

    Args:
        source: where they are from, for messages.

    Raises:
        ClipError: there are fewer than two.
    """

    def __init__(self, source: str, pairs: Iterable[tuple[str, str, float]]):
        found = list(pairs)
        if len(found) < 2:
            raise ClipError(f"{source} has {len(found)} pairs of sentences, and at least two are needed; get it again.")
        self.first = [first for first, _, _ in found]
        self.second = [second for _, second, _ in found]
        self.gold = np.array([gold for _, _, gold in found])
        """How alike the sentences of each pair are, float64 [n]; higher means more."""

    def __len__(self) -> int:
        return len(self.gold)

    def fingerprint(self) -> str:
        """What tells these pairs from others."""
        return fingerprint_of(Texts(self.first), Texts(self.second), Texts(map(repr, self.gold.tolist())))


class SentenceSettings(Section):
    """The keys of one kind."""

    kind: str
    folder: str  # of the files as they are published

    @abstractmethod
    def pairs(self) -> Pairs:
        """The pairs of the split for tests.

        Raises:
            ClipError: files are missing or not in the layout.
        """

    def _file(self, *names: str) -> str:
        """The first of these files that is in the folder."""
        for name in names:
            if os.path.isfile(os.path.join(self.folder, name)):
                return os.path.join(self.folder, name)
        raise ClipError(f"{self.folder} has none of {', '.join(names)}; give the folder that has one of them.")


class Sick(SentenceSettings):
    """SICK's pairs for tests, each with its relatedness from 1 to 5."""

    kind: Literal["sick"] = "sick"

    def pairs(self) -> Pairs:
        path = self._file("SICK.txt", "SICK/SICK.txt", "SICK_test_annotated.txt", "SICK/SICK_test_annotated.txt")
        columns, rows = _table(path)
        first, second, gold = (
            _place(path, columns, name) for name in ("sentence_A", "sentence_B", "relatedness_score")
        )
        part = columns.index("SemEval_set") if "SemEval_set" in columns else None
        return Pairs(
            path,
            (
                (row[first], row[second], _number(path, number, row[gold]))
                for number, row in rows
                if part is None or row[part] == "TEST"
            ),
        )


class _Sts(SentenceSettings):
    year: ClassVar[int]

    def pairs(self) -> Pairs:
        inner = os.path.join(self.folder, f"STS{self.year}-en-test")
        folder = inner if os.path.isdir(inner) else self.folder
        try:
            names = sorted(os.listdir(folder))
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise ClipError(
                f"{folder} cannot be read: {reason}; give the folder with STS{self.year}-en-test."
            ) from error
        parts = [name[10:-4] for name in names if name.startswith("STS.input.") and name.endswith(".txt")]
        parts = [part for part in parts if part not in _NO_PART]
        if not parts:
            raise ClipError(
                f"{folder} has no STS.input.*.txt; give the folder with STS{self.year}-en-test, as SentEval fetches it."
            )
        return Pairs(folder, (pair for part in parts for pair in self._part(folder, part)))

    @staticmethod
    def _part(folder: str, part: str) -> Iterator[tuple[str, str, float]]:
        inputs, scores = (os.path.join(folder, f"STS.{kind}.{part}.txt") for kind in ("input", "gs"))
        lines, judged = lines_of(inputs), lines_of(scores)
        if len(lines) != len(judged):
            raise ClipError(f"{inputs} has {len(lines)} lines and {scores} {len(judged)}; get both again.")
        for number, (line, score) in enumerate(zip(lines, judged), 1):
            if not score:
                continue
            sentences = line.split("\t")
            if len(sentences) < 2:
                raise ClipError(f"{inputs} has {shown(line)} in line {number}, not two sentences; get it again.")
            yield sentences[0], sentences[1], _number(scores, number, score)


_NO_PART = ("ALL", "all")  # all parts of a year once more


class Sts12(_Sts):
    """The pairs of 2012, all parts together."""

    kind: Literal["sts12"] = "sts12"
    year: ClassVar[int] = 12


class Sts13(_Sts):
    """The pairs of 2013, all parts together."""

    kind: Literal["sts13"] = "sts13"
    year: ClassVar[int] = 13


class Sts14(_Sts):
    """The pairs of 2014, all parts together."""

    kind: Literal["sts14"] = "sts14"
    year: ClassVar[int] = 14


class Sts15(_Sts):
    """The pairs of 2015, all parts together."""

    kind: Literal["sts15"] = "sts15"
    year: ClassVar[int] = 15


class Sts16(_Sts):
    """The pairs of 2016, all parts together."""

    kind: Literal["sts16"] = "sts16"
    year: ClassVar[int] = 16


class StsBenchmark(SentenceSettings):
    """The STS Benchmark's pairs for tests."""

    kind: Literal["stsb"] = "stsb"

    def pairs(self) -> Pairs:
        names = ("sts-test.csv", "sts-test.tsv", "test.tsv")
        path = self._file(
            *(os.path.join(inner, name) for inner in ("", "stsbenchmark", "STSBenchmark") for name in names)
        )
        rows = [(number, line.split("\t")) for number, line in enumerate(lines_of(path), 1) if line]
        columns = rows[0][1] if rows else []
        first, second, gold = 5, 6, 4
        if "sentence1" in columns:
            first, second, gold = (_place(path, columns, name) for name in ("sentence1", "sentence2", "score"))
            rows = rows[1:]
        for number, row in rows:
            if len(row) <= max(first, second, gold):
                raise ClipError(f"{path} has {len(row)} fields in line {number}, too few for a pair; get it again.")
        return Pairs(path, ((row[first], row[second], _number(path, number, row[gold])) for number, row in rows))


_Kinds = Sick | Sts12 | Sts13 | Sts14 | Sts15 | Sts16 | StsBenchmark

Family = Annotated[_Kinds, Field(discriminator="kind")]

SENTENCES: dict[str, type[SentenceSettings]] = {each.model_fields["kind"].default: each for each in get_args(_Kinds)}
"""Kind -> the settings of the set."""


def _table(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns of a table with tabs, and the number and the fields of each line after it."""
    lines = [line.split("\t") for line in lines_of(path)]
    columns = lines[0] if lines else []
    rows = [(number, row) for number, row in enumerate(lines[1:], 2) if row != [""]]
    for number, row in rows:
        if len(row) != len(columns):
            raise ClipError(f"{path} has {len(row)} fields in line {number}, and {len(columns)} columns; get it again.")
    return columns, rows


def _place(path: str, columns: Sequence[str], name: str) -> int:
    if name not in columns:
        raise ClipError(f"{path} has no column {name}, only {', '.join(map(shown, columns[:20]))}; get it again.")
    return list(columns).index(name)


def _number(path: str, line: int, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise ClipError(f"{path} has the score {shown(text)} in line {line}, and a number is expected; get it again.")
    return number
