"""Learn the merges of a byte-pair vocabulary from a corpus (Sennrich, Haddow and Birch 2016)."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from clip_core.errors import TextError
from clip_core.text.bpe import (
    BYTE_SYMBOLS,
    END_OF_TEXT,
    END_OF_WORD,
    HEADER,
    START_OF_TEXT,
    byte_symbol,
    byte_symbols,
    words,
)
from clip_core.text.tokenizer import require_text

NOT_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))

Pair = tuple[str, str]


def learn(texts: Iterable[str], merges: int) -> str:
    """The text of a merges file, for `BytePairTokenizer`, with up to ``merges`` merges learnt from ``texts``.

    Words are those of `clip_core.text.bpe.words`. The most frequent pair of neighbours is merged first; of equally
    frequent pairs the one that sorts first, so the same texts in any order give the same merges. There are fewer
    merges when no pair is left.

    Raises:
        TextError: a text cannot be used, or ``merges`` is negative.
    """
    if isinstance(texts, str):
        raise TextError("texts is one str; give several texts, such as a list of str.")
    if merges < 0:
        raise TextError(f"merges is {merges}; give 0 or more.")
    counted: Counter[str] = Counter()
    for index, text in enumerate(texts):
        require_text(text, f"text {index}")
        counted.update(words(text))
    for special in (START_OF_TEXT, END_OF_TEXT):
        counted.pop(special, None)

    frequencies = list(counted.values())
    spellings = [byte_symbols(word) for word in counted]
    pair_counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> the words that have or had it
    for place, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += frequencies[place]
            places[pair].add(place)

    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    learnt: list[Pair] = []
    while heap and len(learnt) < merges:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:
            continue  # the count has changed since
        learnt.append(pair)
        changed = set()
        for place in places.pop(pair):
            old = spellings[place]
            new = spellings[place] = _merge(old, pair)
            for gone in pairwise(old):
                pair_counts[gone] -= frequencies[place]
                changed.add(gone)
            for born in pairwise(new):
                pair_counts[born] += frequencies[place]
                places[born].add(place)
                changed.add(born)
        for pair in changed:
            if pair_counts[pair]:
                heapq.heappush(heap, (-pair_counts[pair], pair))
    return "\n".join([HEADER, *map(" ".join, learnt)]) + "\n"


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


def _merge(spelling: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(spelling):
        if tuple(spelling[position : position + 2]) == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(spelling[position])
            position += 1
    return merged
