"""A small Mixer takes the same steps in every framework, and goes on in another one."""

from __future__ import annotations

import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.initialize import initialize
from clip_core.towers.mixer import TextMixer, VisionMixer
from tests.models import sample_pixels, sample_tokens
from tests.requested import FRAMEWORKS
from tests.training.steps import LOSS_BOUND, RATE, recipe

ARCHITECTURE = Architecture(
    16,
    VisionMixer(resolution=24, patch=8, width=32, layers=2, token_mlp_width=24),
    TextMixer(context_length=8, vocabulary_size=40, width=48, layers=2, token_mlp_width=20),
)
BATCHES = [(sample_pixels(ARCHITECTURE, 8, seed), sample_tokens(ARCHITECTURE, 8, seed)) for seed in range(2)] * 5


def trainer_for(name: str):
    model = backends.get(name).CLIP(ARCHITECTURE, initialize(ARCHITECTURE, 0), device="cpu")
    return backends.get(name).Trainer(model, recipe())


def test_ten_steps_are_the_same_and_go_on_in_another_framework():
    trainers = {name: trainer_for(name) for name in FRAMEWORKS}
    losses: dict[str, list[float]] = {name: [] for name in FRAMEWORKS}
    for step, (pixels, tokens) in enumerate(BATCHES):
        if step == 5:
            states = {name: trainer.state() for name, trainer in trainers.items()}
            for name, other in zip(FRAMEWORKS, [*FRAMEWORKS[1:], FRAMEWORKS[0]]):
                trainers[name] = trainer_for(name)
                trainers[name].restore(states[other])
        for name, trainer in trainers.items():
            losses[name].append(trainer.step(pixels, tokens, RATE).loss)
    first = losses[FRAMEWORKS[0]]
    assert first[-1] < 0.9 * first[1]
    for name in FRAMEWORKS[1:]:
        assert losses[name] == pytest.approx(first, rel=LOSS_BOUND), name
