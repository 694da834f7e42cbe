"""How well a model knows the `shapes` world: combinations it never saw, and full descriptions among many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from clip_core.backend import Model
from clip_core.data.example import fingerprint_of
from clip_core.data.shapes import (
    HELD_OUT,
    KINDS,
    RADII,
    TEXTURES,
    TRAINED,
    Kind,
    Scene,
    Thing,
    describe,
    draw,
    random_for,
    random_scene,
)
from clip_core.evaluation.retrieval import ranks, recall_at
from clip_core.evaluation.zero_shot import class_features, image_features, text_features
from clip_core.preprocess import pixels
from clip_core.text.tokenizer import Tokenizer

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


def evaluate(
    model: Model, tokenizer: Tokenizer, pictures_per_class: int = 50, captions: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Score ``model`` on pictures drawn for the test, none of which is in any training set.

    Returns:
        ``held_out_top1``: share of single things of a `HELD_OUT` shape and colour that are put into their own class,
        out of ``held_out_classes``: every shape in every colour. ``trained_top1``: the same for combinations that
        training shows. ``image_to_text_recall_at_1`` and ``text_to_image_recall_at_1``: share of pictures whose own
        full description is the nearest of ``captions`` distinct ones, and the other way; trained and held-out
        combinations both occur. ``held_out_pictures``: number of pictures behind the first score.
    """
    tower = model.architecture.image
    held_out = SingleThings(HELD_OUT, "held out", pictures_per_class, seed)
    trained = SingleThings(TRAINED, "trained", pictures_per_class, seed)
    classes = class_features(model, tokenizer, held_out.prompts)

    def accuracy(things: SingleThings) -> float:
        pictures, labels = zip(*(things[index] for index in range(len(things))))
        features = image_features(model, pixels(pictures, tower.resolution, tower.pixels))
        return recall_at(1, ranks(features, classes, np.array(labels)[:, None]))

    descriptions: dict[str, Image.Image] = {}
    index = 0
    while len(descriptions) < captions:
        random = random_for("retrieval", seed, index)
        scene = random_scene(random, KINDS)
        if describe(scene) not in descriptions:
            descriptions[describe(scene)] = draw(scene, random)
        index += 1
    texts = text_features(model, tokenizer, list(descriptions))
    images = image_features(model, pixels(list(descriptions.values()), tower.resolution, tower.pixels))
    return {
        "held_out_top1": accuracy(held_out),
        "held_out_classes": len(KINDS),
        "held_out_pictures": len(held_out),
        "trained_top1": accuracy(trained),
        "image_to_text_recall_at_1": recall_at(1, ranks(images, texts)),
        "text_to_image_recall_at_1": recall_at(1, ranks(texts, images)),
        "captions": captions,
    }
