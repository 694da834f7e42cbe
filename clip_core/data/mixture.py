"""Several sources as one, each with its share of every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from math import floor
from typing import Any

import numpy as np

from clip_core.data.example import Example, Ordered, Place, Source, Texts, fingerprint_of
from clip_core.data.order import shuffled
from clip_core.errors import ClipError


class Mixture:
    """The examples of ``parts`` one after the other, with a rule which of them an epoch has.

    An epoch has as many places as the parts have examples together. Without weights each example has one place. With
    weights each part has its share of the places, and fills them by going through its own shuffled examples again and
    again, going on in the next epoch where it stopped in the last: none is left out for ever. A part with more places
    than examples has some of them more than once in an epoch, and only these can meet themselves in a batch.

    The places are shuffled. Where a part has an order of its own, the parts come one by one in even steps instead, each
    in its order, so that every batch has nearly the same number of examples of each.

    Args:
        seed: of the order of the places, and of that in which parts with weights are gone through.

    Raises:
        ClipError: a weight is so small that its part has no place.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float] | None, seed: int):
        self._parts, self._seed = parts, seed
        self._by_turns = any(isinstance(part, Ordered) for part in parts)
        sizes = [len(part) for part in parts]
        self._starts = np.cumsum([0, *sizes])
        self.places = sizes if weights is None else _quotas(len(self), weights)
        self._first_places = np.cumsum([0, *self.places])
        if 0 in self.places:
            raise ClipError(
                f"Part {self.places.index(0)} of the mixture has no place among {len(self)} examples; raise its weight."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - int(self._starts[part])]

    def fingerprint(self) -> str:
        return fingerprint_of(Texts(part.fingerprint() for part in self._parts), self.places)

    def files(self) -> Iterable[str]:
        return chain.from_iterable(part.files() for part in self._parts)

    def captions(self) -> Iterator[str]:
        """Those of all parts in turn, so that the first ones are of each."""
        for turn in zip_longest(*(part.captions() for part in self._parts)):
            yield from (caption for caption in turn if caption is not None)

    def order(self, epoch: int, position: int, batch_size: int) -> Place:
        """Which example is at a position of an epoch."""
        if self._by_turns:
            return Place(position, self._in_turn(epoch, position, batch_size))
        place = self._shuffled[epoch * len(self) + position]
        part = int(np.searchsorted(self._first_places, place, side="right")) - 1
        own = epoch * self.places[part] + place - int(self._first_places[part])
        return Place(place, int(self._starts[part]) + self._orders[part][own])

    def _in_turn(self, epoch: int, position: int, batch_size: int) -> int:
        """The example at a position where the parts take turns."""
        part, before = self._turn(position)
        source, size = self._parts[part], len(self._parts[part])
        place = epoch * self.places[part] + before
        if isinstance(source, Ordered):
            share = max(1, round(batch_size * self.places[part] / len(self)))  # of a batch
            found = source.order(*divmod(place, size), share).example
        else:
            found = self._orders[part][place]
        return int(self._starts[part]) + found

    def _turn(self, position: int) -> tuple[int, int]:
        """The part whose turn it is at a position, and how many turns it has had before in the epoch."""
        rest = len(self)
        for part, places in enumerate(self.places):
            before = position * places // rest
            if (position + 1) * places // rest > before:
                return part, before
            position, rest = position - before, rest - places  # among the parts that follow
        raise IndexError(position)

    @cached_property
    def _shuffled(self) -> Any:
        return shuffled(len(self), self._seed)

    @cached_property
    def _orders(self) -> list[Any]:
        return [shuffled(len(part), self._seed + 1 + number) for number, part in enumerate(self._parts)]


def _quotas(places: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to ``weights`` with the sum ``places``; the largest remainders are rounded up."""
    exact = [places * weight / sum(weights) for weight in weights]
    quotas = [floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: quotas[part] - exact[part])
    for part in by_remainder[: places - sum(quotas)]:
        quotas[part] += 1
    return quotas
