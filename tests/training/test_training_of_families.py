"""A small Mixer and a small low-resource model take the same steps in every framework, and go on in another one."""

from __future__ import annotations

import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.initialize import initialize
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from clip_core.towers.mixer import TextMixer, VisionMixer
from tests.models import sample_pixels, sample_tokens
from tests.requested import FRAMEWORKS
from tests.training.steps import LOSS_BOUND, RATE, recipe

MIXER = Architecture(
    16,
    VisionMixer(resolution=24, patch=8, width=32, layers=2, token_mlp_width=24),
    TextMixer(context_length=8, vocabulary_size=40, width=48, layers=2, token_mlp_width=20),
)
LOW_RESOURCE = Architecture(
    16,
    LowResourceVisionTransformer(
        resolution=24, patch=8, width=32, layers=2, heads=8, mlp_width=48, head_width=40, feature_width=24
    ),
    LowResourceTextTransformer(context_length=8, vocabulary_size=40, width=48, layers=2, heads=8, mlp_width=80),
)


def trainer_for(name: str, architecture: Architecture):
    model = backends.get(name).CLIP(architecture, initialize(architecture, 0), device="cpu")
    return backends.get(name).Trainer(model, recipe())


@pytest.mark.parametrize("architecture", [MIXER, LOW_RESOURCE], ids=["mixer", "low-resource"])
def test_ten_steps_are_the_same_and_go_on_in_another_framework(architecture):
    batches = [(sample_pixels(architecture, 8, seed), sample_tokens(architecture, 8, seed)) for seed in range(2)] * 5
    trainers = {name: trainer_for(name, architecture) for name in FRAMEWORKS}
    losses: dict[str, list[float]] = {name: [] for name in FRAMEWORKS}
    for step, (pixels, tokens) in enumerate(batches):
        if step == 5:
            states = {name: trainer.state() for name, trainer in trainers.items()}
            for name, other in zip(FRAMEWORKS, [*FRAMEWORKS[1:], FRAMEWORKS[0]]):
                trainers[name] = trainer_for(name, architecture)
                trainers[name].restore(states[other])
        for name, trainer in trainers.items():
            losses[name].append(trainer.step(pixels, tokens, RATE).loss)
    first = losses[FRAMEWORKS[0]]
    assert first[-1] < 0.9 * first[1]
    for name in FRAMEWORKS[1:]:
        assert losses[name] == pytest.approx(first, rel=LOSS_BOUND), name
