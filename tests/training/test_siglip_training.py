"""A small SigLIP takes the same steps of the sigmoid loss in every framework, and goes on in another one."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

import backends
from clip_core import similarity
from clip_core.initialize import initialize
from clip_core.training.trainable import with_initial_scale
from tests.models import sample_pixels, sample_tokens
from tests.requested import FRAMEWORKS
from tests.siglip import SIGLIP
from tests.training.steps import LOSS_BOUND, RATE, recipe

STEPS = 10
RECIPE = recipe(
    {
        "loss": {"kind": "sigmoid", "initial_logit_scale": 10.0},
        "optimizer": {"betas": (0.9, 0.95), "weight_decay": 1e-4, "gradient_clip": 1.0},
    }
)
BATCHES = [(sample_pixels(SIGLIP, 8, seed), sample_tokens(SIGLIP, 8, seed)) for seed in range(STEPS)]
WEIGHTS = with_initial_scale(initialize(SIGLIP, 0), RECIPE.loss)


def trainer_for(name: str):
    backend = backends.get(name)
    return backend.Trainer(backend.CLIP(SIGLIP, WEIGHTS, device="cpu"), RECIPE)


@pytest.fixture(scope="module")
def expected():
    """The results of all steps in the first framework, and its state after half of them."""
    trainer = trainer_for(FRAMEWORKS[0])
    results = [trainer.step(*batch, RATE) for batch in BATCHES[: STEPS // 2]]
    state = trainer.state()
    return results + [trainer.step(*batch, RATE) for batch in BATCHES[STEPS // 2 :]], state


def assert_same(found, expected) -> None:
    for name in ("loss", "gradient_norm", "logit_scale"):
        values, wanted = ([getattr(result, name) for result in side] for side in (found, expected))
        np.testing.assert_allclose(values, wanted, rtol=LOSS_BOUND, err_msg=name)


def test_every_framework_takes_the_same_ten_steps(framework, expected):
    trainer = trainer_for(framework.name)
    assert_same([trainer.step(*batch, RATE) for batch in BATCHES], expected[0])
    changed = trainer.model.export()
    moved = {name for name, array in WEIGHTS.items() if not np.array_equal(changed[name], array)}
    assert moved == WEIGHTS.keys()


def test_a_run_goes_on_in_another_framework(framework, expected):
    results, state = expected
    trainer = trainer_for(framework.name)
    trainer.restore(state)
    assert_same([trainer.step(*batch, RATE) for batch in BATCHES[STEPS // 2 :]], results[STEPS // 2 :])


def test_the_first_loss_is_that_of_the_oracle(expected):
    judge = backends.get("numpy").CLIP(SIGLIP, WEIGHTS, precision="fp64")
    pixels, tokens = BATCHES[0]
    scale, bias = exp(float(WEIGHTS["logit_scale"])), float(WEIGHTS["logit_bias"])
    assert (scale, bias) == (pytest.approx(10), -10)
    logits = similarity.logits(judge.encode_image(pixels), judge.encode_text(tokens), scale)
    assert expected[0][0].loss == pytest.approx(similarity.sigmoid_loss(logits, bias)[0], rel=1e-5)
