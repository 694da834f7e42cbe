"""Learn the merges of a byte-pair vocabulary from a corpus (Sennrich, Haddow and Birch 2016)."""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import regex

from clip_core.errors import TextError
from clip_core.text.bpe import (
    BYTE_SYMBOLS,
    END_OF_TEXT,
    END_OF_WORD,
    HEADER,
    START_OF_TEXT,
    byte_symbol,
    words,
)
from clip_core.text.tokenizer import require_text

NOT_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))

Pair = tuple[str, str]

_BYTE_TOKENS = np.array([BYTE_SYMBOLS.index(byte_symbol(byte)) for byte in range(256)], np.int32)
_BLOCK = 1 << 22  # places whose pairs are sorted at once
_FREQUENT = 1 << 18  # pairs that are counted at once, up to four times as many, and more that are equally frequent

# GPT-2's words: a contraction, or letters, digits or other characters, each with the blank in front of it.
_BYTE_LEVEL_WORD = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)


def learn(texts: Iterable[str], merges: int, told: Callable[[int], None] = lambda count: None) -> str:
    """The text of a merges file, for `BytePairTokenizer`, with up to ``merges`` merges learnt from ``texts``.

    Words are those of `clip_core.text.bpe.words`. The most frequent pair of neighbours is merged first; of equally
    frequent pairs the one that sorts first, so the same texts in any order give the same merges. There are fewer
    merges when no pair is left.

    Args:
        texts: read one after the other; only their different words are kept.
        told: called with the number of merges whenever one more is learnt.

    Raises:
        TextError: a text cannot be used, or ``merges`` is negative.
    """
    symbols = [symbol + end for end in ("", END_OF_WORD) for symbol in BYTE_SYMBOLS]
    corpus = _Corpus(_counted(texts, _words), last=len(BYTE_SYMBOLS))
    learnt = _merged(corpus, symbols, merges, 1, lambda left, right: (symbols[left], symbols[right]), told)
    return "\n".join([HEADER, *map(" ".join, learnt)]) + "\n"


def learn_byte_level(texts: Iterable[str], merges: int, told: Callable[[int], None] = lambda count: None) -> list[Pair]:
    """Up to ``merges`` merges for `clip_core.text.definitions.byte_level`, learnt from ``texts``.

    They are those that the library ``tokenizers`` learns: case and blanks are kept, of equally frequent pairs the one
    with the smaller ids comes first, and pairs that occur once are not merged.

    Args, Raises: as `learn`.
    """
    symbols = list(BYTE_SYMBOLS)
    corpus = _Corpus(_counted(texts, _byte_level_words), last=0)
    return _merged(corpus, symbols, merges, 2, lambda left, right: (left, right), told)


def padded(text: str, merges: int) -> str:
    """The text of a merges file with ``merges`` merges: those of ``text``, then others that no word uses.

    The latter begin with a byte that UTF-8 does not have, so the tokens they make stay unused.

    Raises:
        TextError: more than 6656 are missing.
    """
    missing = merges - (len(text.splitlines()) - 1)
    second = [symbol + end for end in ("", END_OF_WORD) for symbol in BYTE_SYMBOLS]
    unused = [f"{byte_symbol(byte)} {symbol}\n" for byte in NOT_IN_UTF8 for symbol in second]
    if missing > len(unused):
        raise TextError(f"{missing} merges are missing; at most {len(unused)} can stay unused.")
    return text + "".join(unused[:missing])


def _words(text: str) -> list[str]:
    return [word for word in words(text) if word not in (START_OF_TEXT, END_OF_TEXT)]


def _byte_level_words(text: str) -> list[str]:
    return _BYTE_LEVEL_WORD.findall(text if text.startswith(" ") else f" {text}")


def _counted(texts: Iterable[str], split: Callable[[str], list[str]]) -> Counter[str]:
    """How often each word occurs.

    Raises:
        TextError: a text cannot be used.
    """
    if isinstance(texts, str):
        raise TextError("texts is one str; give several texts, such as a list of str.")
    counted: Counter[str] = Counter()
    for index, text in enumerate(texts):
        require_text(text, f"text {index}")
        counted.update(split(text))
    return counted


def _merged(
    corpus: _Corpus,
    symbols: list[str],
    merges: int,
    least: int,
    order: Callable[[int, int], Any],
    told: Callable[[int], None],
) -> list[Pair]:
    """The pairs that are merged, one after the other; ``symbols`` grows by what they make.

    Args:
        symbols: how the tokens of ``corpus`` are written.
        least: how often a pair must occur to be merged.
        order: what equally frequent pairs of tokens are sorted by.

    Raises:
        TextError: ``merges`` is negative.
    """
    if merges < 0:
        raise TextError(f"merges is {merges}; give 0 or more.")
    learnt: list[Pair] = []
    heap: list[tuple[int, Any, int]] = []
    while len(learnt) < merges:
        if not heap:
            if corpus.floor <= least:
                break
            heap = [(-count, order(*_split(pair)), pair) for pair, count in corpus.count(least).items()]
            heapq.heapify(heap)
            continue
        count, place, pair = heapq.heappop(heap)
        now = corpus.counts.get(pair, 0)
        if now < -count:  # neighbours of it have been merged since
            if now:
                heapq.heappush(heap, (-now, place, pair))
            continue
        left, right = (symbols[token] for token in _split(pair))
        symbols.append(left + right)
        learnt.append((left, right))
        for born in corpus.merge(pair, len(symbols) - 1):
            heapq.heappush(heap, (-corpus.counts[born], order(*_split(born)), born))
        if len(heap) > 2 * _FREQUENT + 2 * len(corpus.counts):  # most of them are counted no more
            heap = [entry for entry in heap if entry[2] in corpus.counts]
            heapq.heapify(heap)
        told(len(learnt))
    return learnt


class _Corpus:
    """The different words of a corpus, one after the other, spelt in tokens that know their neighbours.

    A place is the index of a token's first byte. Pairs of neighbours count as often as their words occur, and the
    places of their left tokens are known, so a merge looks only at where it happens. A pair is never as frequent as
    when it comes to be: so those below a floor are left alone until all others are merged, which bounds the memory.

    Attributes:
        floor: how often a pair occurs that is counted.
        counts: pair -> how often its tokens are neighbours.
    """

    def __init__(self, words: Mapping[str, int], last: int) -> None:
        """Spell words in `BYTE_SYMBOLS`.

        Args:
            words: word -> how often it occurs.
            last: what is added to the last token of each word.
        """
        spelt = [word.encode() for word in words]
        lengths = np.array([len(word) for word in spelt], np.int64)
        ends = np.cumsum(lengths)
        size = int(lengths.sum())
        tokens = _BYTE_TOKENS[np.frombuffer(b"".join(spelt), np.uint8)]
        tokens[ends - 1] += last
        # The place `size` is that of the token in front of each word and behind it.
        self._tokens = np.append(tokens, np.int32(-1))
        self._after, self._before = np.arange(1, size + 2, dtype=np.int32), np.arange(-1, size, dtype=np.int32)
        self._after[ends - 1] = self._before[ends - lengths] = size
        counts = np.array(list(words.values()), np.int64)
        self._weights = np.repeat(counts.astype(np.min_scalar_type(counts.max(initial=0))), lengths)
        self.floor, self._most = sys.maxsize, 4 * _FREQUENT
        self.counts: dict[int, int] = {}
        self._places: dict[int, list[np.ndarray]] = {}

    def count(self, least: int) -> dict[int, int]:
        """Count all pairs anew, and lower the floor to where `_FREQUENT` of them are above it, or to ``least``."""
        pairs, weights = np.empty(0, np.int64), np.empty(0, np.int64)
        for places in self._blocks():
            pairs, number = np.unique(np.concatenate([pairs, self._pairs(places)]), return_inverse=True)
            weights = np.bincount(number, np.concatenate([weights, self._weights[places]])).astype(np.int64)
        self.floor = least
        if len(weights) > _FREQUENT:
            self.floor = max(least, int(np.partition(weights, -_FREQUENT)[-_FREQUENT]))
        frequent = weights >= self.floor
        pairs = pairs[frequent]
        self.counts = dict(zip(pairs.tolist(), weights[frequent].tolist()))
        self._places = {pair: [] for pair in self.counts}
        for places in self._blocks() if len(pairs) else ():
            block = self._pairs(places)
            known = pairs[np.minimum(np.searchsorted(pairs, block), len(pairs) - 1)] == block
            for pair, _, at in self._groups(block[known], places[known]):
                self._places[pair].append(at)
        return self.counts

    def merge(self, pair: int, made: int) -> list[int]:
        """Put the token ``made`` in place of each ``pair``, from the left; gives the pairs of it that are counted."""
        left, right = _split(pair)
        tokens, after, before, outside = self._tokens, self._after, self._before, len(self._weights)
        del self.counts[pair]
        places = np.concatenate(self._places.pop(pair))
        places = places[(tokens[places] == left) & (tokens[after[places]] == right)]
        if left == right:
            places = _from_the_left(np.sort(places), after)
        seconds = after[places]
        behind = after[seconds]
        front = before[places]
        inner = front < outside
        self._remove(_joined(tokens[front[inner]], left), places[inner])
        tokens[places], tokens[seconds] = made, -1
        after[places], before[behind] = behind, places
        # Of two in a row, the right neighbour of the first is the second, which has seen to both as its left neighbour.
        inner = (behind < outside) & (tokens[behind] != made)
        self._remove(_joined(right, tokens[behind[inner]]), places[inner])
        front = before[places]
        born = self._add(places[inner]) + self._add(front[front < outside])
        if len(self.counts) > self._most:
            self._raise_floor()
        return [pair for pair in born if pair in self.counts]

    def _raise_floor(self) -> None:
        """Count the `_FREQUENT` most frequent pairs only."""
        weights = np.fromiter(self.counts.values(), np.int64, len(self.counts))
        self.floor = int(np.partition(weights, -_FREQUENT)[-_FREQUENT])
        self.counts = {pair: weight for pair, weight in self.counts.items() if weight >= self.floor}
        self._places = {pair: self._places[pair] for pair in self.counts}
        self._most = max(4 * _FREQUENT, 2 * len(self.counts))

    def _remove(self, pairs: np.ndarray, places: np.ndarray) -> None:
        """Count the pair of each place no more, where it is counted."""
        for pair, weight, _ in self._groups(pairs, places):
            if pair in self.counts:
                self.counts[pair] -= weight
                if self.counts[pair] < self.floor:
                    del self.counts[pair], self._places[pair]

    def _add(self, places: np.ndarray) -> list[int]:
        """Count the pairs at ``places``, which are new and nowhere else, and remember these; gives those counted."""
        added = []
        for pair, weight, at in self._groups(self._pairs(places), places):
            if weight >= self.floor:
                self.counts[pair], self._places[pair] = weight, [at]
                added.append(pair)
        return added

    def _blocks(self) -> Iterator[np.ndarray]:
        """All places of pairs, some at a time."""
        size = len(self._weights)
        for start in range(0, size, _BLOCK):
            places = np.arange(start, min(start + _BLOCK, size), dtype=np.int32)
            yield places[(self._tokens[places] >= 0) & (self._after[places] < size)]

    def _pairs(self, places: np.ndarray) -> np.ndarray:
        return _joined(self._tokens[places], self._tokens[self._after[places]])

    def _groups(self, pairs: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Each pair once, with how often it occurs in the words at its places, and these."""
        if len(places):
            order = np.argsort(pairs, kind="stable")
            pairs, places = pairs[order], places[order]
            starts = np.flatnonzero(np.diff(pairs, prepend=-1))
            weights = np.add.reduceat(self._weights[places], starts, dtype=np.int64)
            yield from zip(pairs[starts].tolist(), weights.tolist(), np.split(places, starts[1:]))


def _joined(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    """Pairs of tokens as one number each."""
    return (np.asarray(left, np.int64) << 32) | right


def _split(pair: int) -> tuple[int, int]:
    return pair >> 32, pair & 0xFFFFFFFF


def _from_the_left(places: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of places in a row, whose pairs overlap, every second one, beginning with the first."""
    indices = np.arange(len(places))
    begins = np.append(True, after[places[:-1]] != places[1:])
    return places[(indices - np.maximum.accumulate(np.where(begins, indices, 0))) % 2 == 0]
