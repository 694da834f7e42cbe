"""How well a model knows the `shapes` world: combinations it never saw, and full descriptions among many."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from PIL import Image

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
from clip_core.evaluation.retrieval import recall_at
from clip_core.evaluation.zero_shot import class_features, image_features, text_features, top1
from clip_core.preprocess import pixels
from clip_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from backends.base import Model

PROMPT = "a photo of {}"


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
    resolution = model.architecture.image.resolution
    classes = class_features(model, tokenizer, [_prompts(kind) for kind in KINDS])

    def accuracy(kinds: tuple[Kind, ...], purpose: str) -> float:
        pictures, labels = [], []
        for index, (kind, _) in enumerate(product(kinds, range(pictures_per_class))):
            random = random_for(purpose, seed, index)
            thing = Thing(*kind, random.choice(list(RADII)), random.choice(TEXTURES))
            pictures.append(draw(Scene(thing), random))
            labels.append(KINDS.index(kind))
        return top1(image_features(model, pixels(pictures, resolution)), classes, labels)

    descriptions: dict[str, Image.Image] = {}
    index = 0
    while len(descriptions) < captions:
        random = random_for("retrieval", seed, index)
        scene = random_scene(random, KINDS)
        if describe(scene) not in descriptions:
            descriptions[describe(scene)] = draw(scene, random)
        index += 1
    texts = text_features(model, tokenizer, list(descriptions))
    images = image_features(model, pixels(list(descriptions.values()), resolution))
    return {
        "held_out_top1": accuracy(HELD_OUT, "held out"),
        "held_out_classes": len(KINDS),
        "held_out_pictures": len(HELD_OUT) * pictures_per_class,
        "trained_top1": accuracy(TRAINED, "trained"),
        "image_to_text_recall_at_1": recall_at(1, images, texts),
        "text_to_image_recall_at_1": recall_at(1, texts, images),
        "captions": captions,
    }


def _prompts(kind: Kind) -> list[str]:
    """A class is known by its shape and colour alone, so its prompts go through all that is left open."""
    things = [Thing(*kind, size, texture) for size, texture in product(RADII, TEXTURES)]
    return [PROMPT.format(describe(Scene(thing))) for thing in things]
