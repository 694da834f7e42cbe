"""One training step in PyTorch against the same step in NumPy, and the state that goes in and out."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from backends.torch.model import CLIP
from backends.torch.training import Trainer
from backends.torch.training import contrastive_loss as torch_loss
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.naming import parameters
from clip_core.similarity import contrastive_loss, logits
from clip_core.training.recipe import Loss, Recipe
from tests.training.tiny import TINY

RATE = 3e-3


def batch(seed: int, n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.standard_normal((n, 3, 32, 32)).astype(np.float32)
    tokens = np.zeros((n, 24), np.int64)
    tokens[:, :5] = generator.integers(0, 700, (n, 5))
    tokens[:, 5] = TINY.text.vocabulary_size - 1
    return pixels, tokens


def trainer(precision: str = "fp32", **options) -> Trainer:
    training = {"steps": 10, "precision": precision}
    recipe = Recipe.parse({"model": {"architecture": TINY.to_dict()}, "training": training, "optimizer": options})
    return Trainer(CLIP(TINY, initialize(TINY, 0), device="cpu"), recipe)


def softmax_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch_loss(Loss(), (image, text), (image, text), 0, scale, None)[0]


def gradients_of(model: CLIP, pixels: np.ndarray, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    loss = softmax_loss(model.encode_image(pixels), model.encode_text(tokens), model.logit_scale.exp())
    table = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(table.values()))
    return loss.item(), {name: gradient.numpy().astype(np.float64) for name, gradient in zip(table, grads)}


def test_the_loss_is_the_numpy_loss():
    generator = np.random.default_rng(1)
    image, text = generator.standard_normal((2, 7, 16)).astype(np.float32)
    expected, _ = contrastive_loss(logits(image, text, 30.0))
    found = softmax_loss(torch.tensor(image), torch.tensor(text), torch.tensor(30.0))
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_three_steps_are_adamw_written_out_in_numpy(clip):
    options = {"weight_decay": 0.3, "betas": (0.8, 0.95), "epsilon": 1e-7, "gradient_clip": clip}
    tested, twin = trainer(**options), CLIP(TINY, initialize(TINY, 0), device="cpu")
    weights = {name: array.astype(np.float64) for name, array in initialize(TINY, 0).items()}
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    decayed = {p.name for p in parameters(TINY) if p.kind in ("linear", "conv", "projection", "embedding")}
    assert 0 < len(decayed) < len(weights)
    for step in range(1, 4):
        twin.load({name: array.astype(np.float32) for name, array in weights.items()})
        loss, gradients = gradients_of(twin, *batch(step))
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        result = tested.step(*batch(step), learning_rate=RATE * step)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
        assert result.logit_scale == pytest.approx(exp(weights["logit_scale"]), rel=1e-5)
        for name, gradient in gradients.items():
            if clip is not None:
                gradient = gradient * min(1, clip / (norm + 1e-6))
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            weights[name] = weights[name] * (1 - RATE * step * (0.3 if name in decayed else 0))
            corrected = first[name] / (1 - 0.8**step), second[name] / (1 - 0.95**step)
            weights[name] = weights[name] - RATE * step * corrected[0] / (np.sqrt(corrected[1]) + 1e-7)
    state = tested.state()
    assert state["updates"] == 3
    for name in weights:
        # Adam divides by the size of the gradient, so where that is nearly nothing rounding decides.
        sure = np.sqrt(second[name]) > 1e-6
        assert np.abs(state[f"weights/{name}"] - weights[name])[sure].max(initial=0) < 2e-5, name
        for kind, expected in (("first_moment", first[name]), ("second_moment", second[name])):
            assert np.abs(state[f"{kind}/{name}"] - expected).max() < 1e-4 * np.abs(expected).max() + 1e-9, name


def test_the_logit_scale_stays_at_most_100():
    tested = trainer()
    weights = tested.model.export() | {"logit_scale": np.float32(log(99.9))[()] * np.ones((), np.float32)}
    tested.model.load(weights)
    for step in range(5):
        tested.step(*batch(step), learning_rate=0.5)
        assert tested.model.export()["logit_scale"] <= np.float32(log(100))


def test_bfloat16_steps_follow_float32_steps():
    exact, rough = trainer(), trainer("bf16")
    losses = [(exact.step(*batch(seed), 1e-4).loss, rough.step(*batch(seed), 1e-4).loss) for seed in range(5)]
    for fp32, bf16 in losses:
        assert bf16 == pytest.approx(fp32, rel=0.02)
    assert losses[0][0] != losses[0][1]
    assert {tensor.dtype for tensor in rough.model.parameters()} == {torch.float32}


def test_a_restored_trainer_goes_on_with_the_same_numbers():
    first = trainer(gradient_clip=1.0)
    for step in range(3):
        first.step(*batch(step), RATE)
    state = first.state()
    expected = [first.step(*batch(step), RATE) for step in range(3, 6)]
    second = trainer(gradient_clip=1.0)
    second.restore(state)
    assert [second.step(*batch(step), RATE) for step in range(3, 6)] == expected
    for name, array in first.state().items():
        assert np.array_equal(array, second.state()[name]), name


def test_the_state_is_a_copy():
    tested = trainer()
    state = tested.state()
    before = {name: array.copy() for name, array in state.items()}
    tested.step(*batch(0), RATE)
    assert all(np.array_equal(array, before[name]) for name, array in state.items())


def test_a_state_that_does_not_fit_changes_nothing_and_lists_every_fault():
    tested = trainer()
    tested.step(*batch(0), RATE)
    before = tested.state()
    bad = {name: array + 1 for name, array in before.items()}
    del bad["first_moment/logit_scale"]
    bad["second_moment/visual.proj"] = np.zeros((2, 2), np.float32)
    bad["weights/ln_final.weight"] = np.full(64, np.nan, np.float32)
    bad["third_moment/visual.proj"] = np.zeros((), np.float32)
    with pytest.raises(CheckpointError) as caught:
        tested.restore(bad)
    for fault in (
        "first_moment/logit_scale is missing",
        "second_moment/visual.proj is float32 (2, 2), expected float32 (64, 32)",
        "weights/ln_final.weight holds NaN or infinity",
        "third_moment/visual.proj is not part of a training state",
    ):
        assert fault in str(caught.value)
    assert all(np.array_equal(array, before[name]) for name, array in tested.state().items())


def test_weights_in_half_precision_cannot_be_trained():
    with pytest.raises(ClipError, match="half-precision"):
        Trainer(CLIP(TINY, initialize(TINY, 0), device="cpu", precision="bf16"), trainer().recipe)
