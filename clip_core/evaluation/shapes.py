"""What the `shapes` world is tested with: pictures of combinations that training never shows, and described scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from clip_core.data.example import Photograph, fingerprint_of
from clip_core.data.shapes import (
    KINDS,
    RADII,
    TEXTURES,
    Kind,
    Scene,
    Thing,
    describe,
    draw,
    random_for,
    random_scene,
)

PROMPT = "a photo of {}"


@dataclass(frozen=True)
class SingleThings:
    """Pictures of one thing each, of all ``kinds`` in turn, with the place of its kind in `KINDS`."""

    kinds: Sequence[Kind]
    purpose: str  # different purposes never share pictures
    pictures_per_class: int
    seed: int = 0

    @property
    def classes(self) -> list[str]:
        return [" ".join(reversed(kind)) for kind in KINDS]

    @property
    def prompts(self) -> list[list[str]]:
        """Of each of `KINDS`: a class is known by shape and colour, so its prompts go through all that is left open."""
        attributes = list(product(RADII, TEXTURES))
        things = [[Thing(*kind, size, texture) for size, texture in attributes] for kind in KINDS]
        return [[PROMPT.format(describe(Scene(thing))) for thing in of_kind] for of_kind in things]

    @property
    def labels(self) -> np.ndarray:
        return np.tile([KINDS.index(kind) for kind in self.kinds], self.pictures_per_class)

    def __len__(self) -> int:
        return len(self.kinds) * self.pictures_per_class

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        place, kind = divmod(index, len(self.kinds))
        random = random_for(self.purpose, self.seed, kind * self.pictures_per_class + place)
        thing = Thing(*self.kinds[kind], random.choice(list(RADII)), random.choice(TEXTURES))
        return draw(Scene(thing), random), KINDS.index(self.kinds[kind])

    def name(self, index: int) -> str:
        place, kind = divmod(index, len(self.kinds))
        return f"{self.classes[KINDS.index(self.kinds[kind])]} {place}"

    def fingerprint(self) -> str:
        return fingerprint_of(self.purpose, str(self.kinds), [self.seed, self.pictures_per_class])

    def files(self) -> Iterable[str]:
        return ()


class Scenes:
    """Drawn scenes with their descriptions, all distinct, of trained and held-out combinations."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._numbers: dict[str, int] = {}  # description -> the number of its scene among all that the seed gives
        self._seed, number = seed, 0
        while len(self._numbers) < count:
            random = random_for("retrieval", seed, number)
            self._numbers.setdefault(describe(random_scene(random, KINDS)), number)
            number += 1
        self._descriptions = list(self._numbers)

    def __len__(self) -> int:
        return len(self._descriptions)

    def __getitem__(self, index: int) -> Photograph:
        description = self._descriptions[index]
        random = random_for("retrieval", self._seed, self._numbers[description])
        return Photograph(draw(random_scene(random, KINDS), random), (description,))

    def fingerprint(self) -> str:
        return fingerprint_of("scenes", [self._seed, len(self)])

    def files(self) -> Iterable[str]:
        return ()

    def captions(self) -> Iterator[str]:
        return iter(self._descriptions)
