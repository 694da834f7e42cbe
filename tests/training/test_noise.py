"""Dropout and drop path: the same in every framework, in micro batches, when recomputed, and in a resumed run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.noise import HIGHEST_RATE, LEVELS, Noise, PatchNoise
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.training.cautions import cautions
from tests.models import sample_pixels, sample_tokens
from tests.requested import FRAMEWORKS
from tests.towers import EXAMPLES, IMAGES, TEXTS
from tests.training.distributed_worker import ARCHITECTURE
from tests.training.steps import LOSS_BOUND, RATE, recipe

# Each example with a tower that can drop something, beside another that can.
TAKING = {
    name: replace(
        example,
        image=example.image if example.image.noises else IMAGES[0],
        text=example.text if example.text.noises else TEXTS[0],
    )
    for name, example in EXAMPLES.items()
    if example.image.noises or example.text.noises
}
BATCH = 6


def noise_for(architecture: Architecture) -> dict:
    """All that it can drop, about a fifth of everything; half of the patches."""
    rates = {"dropout": 0.1, "drop_path": 0.2, "patch_dropout": 0.5}
    return {place: {key: rates[key] for key in tower.noises} for place, tower in architecture.towers.items()}


NOISE = noise_for(ARCHITECTURE)


def trainer_for(name: str, architecture: Architecture = ARCHITECTURE, noise: dict = NOISE, **training: object):
    what = recipe({"regularization": noise, "training": training})
    model = backends.get(name).CLIP(architecture, initialize(architecture, 0), device="cpu")
    return backends.get(name).Trainer(model, what)


def at_once(framework: str) -> AbstractContextManager:
    """NNabla computes when it is asked to, the others always."""
    if framework != "nnabla":
        return nullcontext()
    import nnabla as nn

    return nn.auto_forward()


def losses(trainer, architecture: Architecture = ARCHITECTURE, steps: range = range(4)) -> list[float]:
    return [
        trainer.step(sample_pixels(architecture, BATCH, seed), sample_tokens(architecture, BATCH, seed), RATE).loss
        for seed in steps
    ]


def noise(**changes) -> Noise:
    return replace(Noise(dropout=0.25, drop_path=0.0, seed=3, step=5, tower=0, block=1, first=0), **changes)


def test_what_is_dropped_and_what_is_kept():
    found = noise().factors(0, (64, 50, 32))
    assert found.dtype == np.float32
    assert set(np.unique(found)) == {np.float32(0), np.float32(4 / 3)}
    assert found.mean() == pytest.approx(1, abs=0.01)  # five standard deviations of 102,400 draws
    rows = noise(dropout=0.0, drop_path=0.5).factors(1, (2000, 7, 3))
    assert rows.shape == (2000, 1, 1)
    assert set(np.unique(rows)) == {np.float32(0), np.float32(2)}
    assert rows.mean() == pytest.approx(1, abs=0.12)
    both = noise(drop_path=0.5).factors(0, (2000, 40))
    assert set(np.unique(both)) == {np.float32(0), np.float32(2) * np.float32(4 / 3)}
    assert (both == 0).all(axis=1).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("key", ["dropout", "drop_path"])
def test_something_is_kept_at_the_highest_rate(key):
    assert list(np.unique(noise(dropout=HIGHEST_RATE).factors(0, (4, 1 << 17)))) == [0, LEVELS]
    with pytest.raises(
        ClipError, match=rf"regularization\.text\.{key} is 0\.999999: .* less than or equal to 0\.99998"
    ):
        recipe({"regularization": {"text": {key: 0.999999}}})


def test_draws_depend_on_the_example_alone():
    """Not on the others of its part of the batch, nor on the length of their texts."""
    whole = noise().factors(0, (8, 6, 5))
    assert np.array_equal(noise(first=3).factors(0, (2, 6, 5)), whole[3:5])
    assert np.array_equal(noise().factors(0, (8, 4, 5)), whole[:, :4])
    assert len({row.tobytes() for row in whole}) == 8


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 6}, {"tower": 1}, {"block": 2}])
def test_every_block_of_every_step_draws_its_own(change):
    assert not np.array_equal(noise(**change).factors(0, (4, 16)), noise().factors(0, (4, 16)))
    assert not np.array_equal(noise().factors(1, (4, 16)), noise().factors(0, (4, 16)))


@pytest.mark.parametrize("architecture", TAKING.values(), ids=TAKING.keys())
def test_every_framework_drops_the_same(architecture):
    steps = range(3)
    rates = noise_for(architecture)
    first, *others = (losses(trainer_for(name, architecture, rates), architecture, steps) for name in FRAMEWORKS)
    for found in others:
        assert found == pytest.approx(first, rel=LOSS_BOUND)
    (plain,) = losses(trainer_for(FRAMEWORKS[0], architecture, {}), architecture, range(1))
    for place, key in ((place, key) for place, tower in architecture.towers.items() for key in tower.noises):
        alone = trainer_for(FRAMEWORKS[0], architecture, {place: {key: rates[place][key]}})
        assert abs(losses(alone, architecture, range(1))[0] / plain - 1) > 10 * LOSS_BOUND, (place, key)


def test_patches_are_left_out_of_each_picture_by_chance():
    patches = PatchNoise(patch_dropout=0.5, seed=3, step=5, first=0)
    found = patches.kept(2000, 9)
    assert found.shape == (2000, 4)
    assert (np.diff(found, axis=1) > 0).all()
    assert np.bincount(found.reshape(-1), minlength=9) == pytest.approx(np.full(9, 2000 * 4 / 9), rel=0.1)
    assert np.array_equal(replace(patches, first=7).kept(5, 9), found[7:12])
    assert not np.array_equal(replace(patches, step=6).kept(5, 9), found[:5])
    assert replace(patches, patch_dropout=0.99).kept(3, 9).shape == (3, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tokens_in_front_of_the_patches_stay(framework):
    visual = trainer_for(framework).model.visual
    module = visual.patch_dropout
    module.noise = PatchNoise(patch_dropout=0.5, seed=3, step=5, first=2)
    x = np.random.default_rng(0).standard_normal((3, 10, 4)).astype(np.float32)
    tensor, to_array = backends.get(framework).to_tensor(x), backends.get(framework).to_array

    def left(training: bool):
        if framework == "torch":  # no module of its own
            return module(tensor, training)
        visual.train() if training else visual.eval()
        return module(tensor)

    assert np.array_equal(to_array(left(training=False)), x)
    kept = np.concatenate([np.zeros((3, 1), np.int64), 1 + module.noise.kept(3, 9)], axis=1)
    with at_once(framework):
        assert np.array_equal(to_array(left(training=True)), np.take_along_axis(x, kept[:, :, None], axis=1))


def test_what_a_block_drops():
    import torch

    from backends.torch.layers import attend_tokens

    trainer = trainer_for("torch")
    block = trainer.model.visual.transformer.resblocks[1].train()
    block.noise = noise(drop_path=0.5)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5, 64)).astype(np.float32))
    attention, mlp = (torch.from_numpy(block.noise.factors(part, x.shape)) for part in (0, 1))
    with torch.no_grad():
        expected = x + attention * attend_tokens(block.attn, block.ln_1(x), None)
        expected = expected + mlp * block.mlp(block.ln_2(expected))
        assert torch.equal(block(x, batch_first=True), expected)
        assert not torch.equal(block.eval()(x, batch_first=True), expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_micro_batches_and_recomputed_blocks_drop_the_same(framework):
    whole = losses(trainer_for(framework))
    assert losses(trainer_for(framework, gradient_checkpointing=True)) == whole
    assert losses(trainer_for(framework, micro_batch_size=4)) == pytest.approx(whole, rel=LOSS_BOUND)


def test_a_resumed_run_goes_on_with_its_own_noise_in_another_framework():
    expected = losses(trainer_for(FRAMEWORKS[0]))
    first, second = trainer_for(FRAMEWORKS[0]), trainer_for(FRAMEWORKS[-1])
    losses(first, steps=range(2))
    second.restore(first.state())
    assert losses(second, steps=range(2, 4)) == pytest.approx(expected[2:], rel=LOSS_BOUND)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_between_steps_nothing_is_dropped(framework):
    trainer = trainer_for(framework, noise={"image": {"dropout": 0.5}})
    pixels, tokens = sample_pixels(ARCHITECTURE, 3), sample_tokens(ARCHITECTURE, 3)
    trainer.step(pixels, tokens, RATE)
    model = trainer.model
    expected = backends.get(framework).CLIP(ARCHITECTURE, model.export(), device="cpu").embed_image(pixels)
    model.train()
    with at_once(framework):
        found = backends.get(framework).to_array(model.encode_image(pixels))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)  # what is not for gradients is computed in other parts


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frozen_tower_drops_nothing(framework):
    frozen = {"optimizer": {"frozen": ["image"]}}
    one, other = (
        backends.get(framework).Trainer(
            backends.get(framework).CLIP(ARCHITECTURE, initialize(ARCHITECTURE, 0), device="cpu"),
            recipe(frozen | {"regularization": regularization}),
        )
        for regularization in ({"image": {"dropout": 0.5}}, {})
    )
    assert losses(one, steps=range(1)) == losses(other, steps=range(1))


def test_a_rate_for_a_frozen_tower_is_pointed_out():
    found = cautions(recipe({"optimizer": {"frozen": ["image"]}, "regularization": NOISE}), 10)
    assert [sentence for sentence in found if "regularization" in sentence] == [
        f"regularization.image.{key} has no effect: optimizer.frozen names the image tower."
        for key in ("dropout", "drop_path", "patch_dropout")
    ]


def test_what_cannot_drop_says_so():
    architecture = replace(ARCHITECTURE, image=ModifiedResNet(resolution=64, width=8, blocks=(1, 1, 1, 1), heads=4))
    with pytest.raises(ClipError, match=r"^regularization\.image\.drop_path does not go with a ResNet; leave it out"):
        trainer_for("torch", architecture, {"image": {"drop_path": 0.1}})
    with pytest.raises(ClipError, match=r"^regularization\.image\.patch_dropout does not go with a Mixer; leave "):
        trainer_for("torch", EXAMPLES["mixer and distilbert"], {"image": {"patch_dropout": 0.1}})
    with pytest.raises(ClipError, match=r"^training\.compile does not go with regularization\.text\.dropout; leave "):
        trainer_for("torch", noise={"text": {"dropout": 0.1}}, compile=True)
    with pytest.raises(
        ClipError, match=r"regularization\.text\.dropout is 1: input should be less than or equal to 0\.9999"
    ):
        recipe({"regularization": {"text": {"dropout": 1}}})
