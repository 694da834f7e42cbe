"""How well a model knows the drawn world, as plain numbers."""

from __future__ import annotations

from clip_core.backend import Model
from clip_core.evaluation.tasks import Encoder
from clip_core.evaluation.world import World
from clip_core.text.tokenizer import Tokenizer


def known(model: Model, tokenizer: Tokenizer, pictures_per_class: int, scenes: int, seed: int = 0) -> dict[str, float]:
    """The scores of `World` by name; this process draws and encodes alone."""
    world = World(pictures_per_class, scenes, seed)
    scores = world.score(world.encode(Encoder(model, tokenizer, workers=0)), 100.0, seed).scores
    return {name: score.value for name, score in scores.items()}
