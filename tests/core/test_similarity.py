"""The oracle itself: by hand, against PyTorch, and its gradients numerically."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_core.errors import ClipError
from clip_core.similarity import contrastive_loss, logits, normalize, pair_probabilities, probabilities, sigmoid_loss


def random_logits(n: int, seed: int = 0, scale: float = 5.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n)) * scale


def numeric_gradient(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a function of an array."""
    gradient = np.empty_like(at)
    for place in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[place] = step
        gradient[place] = (function(at + change) - function(at - change)) / (2 * step)
    return gradient


def test_normalize_by_hand():
    features = np.array([[3.0, 4.0], [0.0, -2.0]], np.float32)
    assert np.array_equal(normalize(features), np.array([[0.6, 0.8], [0.0, -1.0]], np.float32))
    assert normalize(features).dtype == np.float32
    assert np.array_equal(normalize(features.astype(np.float64)[None]), [[[0.6, 0.8], [0.0, -1.0]]])


def test_logits_by_hand():
    image = np.array([[3.0, 4.0], [5.0, 0.0]])
    text = np.array([[1.0, 0.0], [0.0, 7.0], [-6.0, -8.0]])
    expected = [[60.0, 80.0, -100.0], [100.0, 0.0, -60.0]]
    np.testing.assert_allclose(logits(image, text, 100.0), expected, rtol=1e-15, atol=1e-13)
    single = logits(image.astype(np.float32), text.astype(np.float32), np.float64(100.0))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-6)


def test_probabilities_by_hand_and_without_overflow():
    np.testing.assert_allclose(probabilities(np.array([[log(1), log(2), log(5)]])), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)
    extreme = probabilities(np.array([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], np.float32))
    assert np.array_equal(extreme[0], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(extreme[1], [1 / 3] * 3, rtol=1e-15)
    assert extreme.dtype == np.float64


def test_probabilities_equal_pytorch():
    values = np.random.default_rng(1).standard_normal((2, 3, 5)) * 30
    np.testing.assert_allclose(probabilities(values), F.softmax(torch.tensor(values), dim=-1).numpy(), rtol=1e-13)


def test_pair_probabilities_equal_pytorch_without_overflow():
    values = np.append(np.random.default_rng(1).standard_normal(30) * 30, [1e4, -1e4, 0]).astype(np.float32)
    found = pair_probabilities(values)
    np.testing.assert_allclose(found, torch.sigmoid(torch.tensor(values, dtype=torch.float64)).numpy(), rtol=1e-13)
    assert np.array_equal(found[-3:], [1, 0, 0.5])


def test_contrastive_loss_by_hand():
    # Rows: e^a / (e^a + 1) with a = log 3 is 3/4; columns the same.
    loss, gradient = contrastive_loss(np.array([[log(3), 0.0], [0.0, log(3)]]))
    assert loss == pytest.approx(log(4 / 3), rel=1e-15)
    np.testing.assert_allclose(gradient, [[-1 / 8, 1 / 8], [1 / 8, -1 / 8]], rtol=1e-14)
    # Only rows differ: images cross-entropy log(1 + e^-2) and log(2), texts log(1 + e^-2) and log 2.
    loss, _ = contrastive_loss(np.array([[2.0, 0.0], [0.0, 0.0]]))
    assert loss == pytest.approx((log(1 + exp(-2)) + log(2)) / 2, rel=1e-15)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_contrastive_loss_and_gradient_equal_pytorch(n, reduction):
    values = torch.tensor(random_logits(n), requires_grad=True)
    target = torch.arange(n)
    expected = F.cross_entropy(values, target) + F.cross_entropy(values.T, target)
    if reduction == "mean":
        expected = expected / 2
    expected.backward()
    loss, gradient = contrastive_loss(values.detach().numpy(), reduction)
    assert loss == pytest.approx(expected.item(), rel=1e-13, abs=1e-15)
    np.testing.assert_allclose(gradient, values.grad.numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_contrastive_gradient_equals_differences(reduction):
    values = random_logits(4, seed=2)
    _, gradient = contrastive_loss(values, reduction)
    np.testing.assert_allclose(
        gradient, numeric_gradient(lambda at: contrastive_loss(at, reduction)[0], values), atol=1e-9
    )
    assert abs(gradient).max() > 1e-2


def test_contrastive_loss_is_not_symmetric_in_its_pairs():
    """Swapping two texts makes pairs of non-pairs: the loss must notice."""
    values = np.eye(4) * 10
    assert contrastive_loss(values)[0] < 1e-3
    assert contrastive_loss(values[:, [1, 0, 2, 3]])[0] > 4


def test_sigmoid_loss_by_hand():
    # sigmoid(log 3) = 3/4 for the pairs; sigmoid(-(0 + 0)) = 1/2 for the others; two of each, divided by n = 2.
    loss, gradient, bias_gradient = sigmoid_loss(np.array([[log(3), 0.0], [0.0, log(3)]]), 0.0)
    assert loss == pytest.approx(log(4 / 3) + log(2), rel=1e-15)
    np.testing.assert_allclose(gradient, [[-1 / 8, 1 / 4], [1 / 4, -1 / 8]], rtol=1e-14)
    assert bias_gradient == pytest.approx(1 / 4, rel=1e-14)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_sigmoid_loss_and_gradients_equal_pytorch(n):
    values = torch.tensor(random_logits(n, seed=3), requires_grad=True)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    sign = 2 * torch.eye(n, dtype=torch.float64) - 1
    expected = -F.logsigmoid(sign * (values + bias)).sum() / n
    expected.backward()
    loss, gradient, bias_gradient = sigmoid_loss(values.detach().numpy(), -10.0)
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, values.grad.numpy(), rtol=1e-11, atol=1e-14)
    assert bias_gradient == pytest.approx(bias.grad.item(), rel=1e-11)


def test_sigmoid_gradients_equal_differences():
    values = random_logits(4, seed=4)
    _, gradient, bias_gradient = sigmoid_loss(values, -1.5)
    np.testing.assert_allclose(gradient, numeric_gradient(lambda at: sigmoid_loss(at, -1.5)[0], values), atol=1e-9)
    bias = numeric_gradient(lambda at: sigmoid_loss(values, float(at[0]))[0], np.array([-1.5]))
    assert bias_gradient == pytest.approx(bias[0], abs=1e-8)
    assert abs(bias_gradient) > 1e-2


def test_losses_do_not_overflow_and_take_single_precision():
    values = np.array([[-1e4, 1e4], [1e4, -1e4]], np.float32)
    loss, gradient = contrastive_loss(values)
    assert loss == pytest.approx(2e4)
    assert np.array_equal(gradient, [[-0.5, 0.5], [0.5, -0.5]])
    loss, gradient, bias_gradient = sigmoid_loss(values, 0.0)
    assert loss == pytest.approx(2e4)
    assert np.array_equal(gradient, [[-0.5, 0.5], [0.5, -0.5]])
    assert bias_gradient == 0


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (4,), (1, 2, 2)])
def test_losses_refuse_logits_that_are_not_of_pairs(shape):
    for loss in (contrastive_loss, lambda values: sigmoid_loss(values, 0.0)):
        with pytest.raises(ClipError, match=r"^The logits of a loss have shape .*; n pairs need \[n, n\]"):
            loss(np.zeros(shape))
