"""Steps of a small model in any framework, and how far two runs of them may be apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import backends
from clip_core.initialize import initialize
from clip_core.naming import Weights
from clip_core.training.recipe import Recipe
from clip_core.training.trainable import with_initial_scale
from tests.training.distributed_worker import ARCHITECTURE, batches

RATE = 1e-3
STEPS = 20
LOSS_BOUND = 1e-4  # of each step, relative, as of its norm and scale; measured 1.1e-5 of losses, 5.1e-5 of norms
# Of weights and their average after 20 steps, half of what one step at this rate can move. Adam divides a gradient by
# its own size, so that where the true gradient is nearly zero rounding decides the direction; measured 7.2e-5.
WEIGHT_BOUND = RATE / 2


def recipe(changes: dict | None = None) -> Recipe:
    sections: dict = {"model": {"architecture": "shapes"}, "training": {"steps": STEPS}}
    data = sections | {"optimizer": {"learning_rate": RATE}}
    for section, values in (changes or {}).items():
        data[section] = data.get(section, {}) | values
    return Recipe.parse(data)


def trainer_for(backend: str, what: Recipe, weights: Weights | None = None):
    architecture = replace(ARCHITECTURE, logit_bias=what.loss.kind == "sigmoid")
    if weights is None:
        weights = with_initial_scale(initialize(architecture, 0), what.loss)
    model = backends.get(backend).CLIP(architecture, weights, device="cpu")
    return backends.get(backend).Trainer(model, what)


def run(trainer, steps: slice = slice(6)) -> list:
    return [trainer.step(pixels, tokens, RATE) for pixels, tokens in (batches() * 7)[steps]]


def without_key_biases(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state without what has no gradient but rounding: the middle third of the biases of queries, keys, values."""
    kept = {}
    for name, array in state.items():
        if name.endswith("attn.in_proj_bias"):
            array = np.delete(array, np.s_[len(array) // 3 : 2 * len(array) // 3])
        kept[name] = array
    return kept
