"""A model and a recipe small enough to train in a test."""

from __future__ import annotations

from typing import Any

from backends.torch.model import CLIP
from backends.torch.training import Trainer
from clip_core.architecture import Architecture
from clip_core.data.shapes import TrainingSet
from clip_core.initialize import initialize
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training.recipe import Recipe

TINY = Architecture(
    embed_dim=32,
    image=VisionTransformer(resolution=32, patch=16, width=64, layers=2, heads=1),
    text=TextTransformer(context_length=24, vocabulary_size=514 + 200, width=64, layers=1, heads=1),
)
# What each line of metrics.jsonl tells, in this order.
METRICS = [
    *("step", "epoch", "loss", "logit_scale", "learning_rate", "gradient_norm", "top1", "top5"),
    "samples_per_second",
]


def tiny_recipe(steps: int = 12, **changes: dict[str, Any]) -> Recipe:
    sections: dict[str, dict[str, Any]] = {
        "model": {"architecture": TINY.to_dict()},
        "training": {"steps": steps, "seed": 5},
        "data": {"source": {"kind": "shapes", "examples": 60}, "batch_size": 8},
        "optimizer": {"learning_rate": 1e-3, "gradient_clip": 1.0},
        "schedule": {"warm_up_steps": 3},
        "checkpoint": {"every_steps": 4, "keep": 2},
    }
    return Recipe.parse({name: sections.get(name, {}) | changes.get(name, {}) for name in sections | changes})


def tiny_trainer(recipe: Recipe) -> Trainer:
    architecture = recipe.model.build()
    model = CLIP(architecture, initialize(architecture, recipe.training.seed), device="cpu")
    return Trainer(model, recipe)


def tiny_data(recipe: Recipe) -> TrainingSet:
    return recipe.data.source.open(recipe.training.seed)
