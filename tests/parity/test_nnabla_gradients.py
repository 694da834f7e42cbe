"""NNabla's gradients: a static graph and computing at once, BLAS and NNabla's native functions, and each function."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

from backends.nnabla import functions
from backends.nnabla.layers import BatchNorm2d
from tests import tolerances
from tests.gradients import beyond, framework_gradients
from tests.models import GELU, RESNET, VIT, reference_stages, sample_pixels, sample_tokens, sample_weights, stages_of
from tests.requested import load_backend

ARCHITECTURES = [pytest.param(VIT, id="vit"), pytest.param(RESNET, id="resnet"), pytest.param(GELU, id="gelu")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_static_graph_gives_the_same_gradients(architecture):
    at_once = framework_gradients("nnabla", architecture)
    assert beyond(framework_gradients("nnabla", architecture, static=True), at_once) == {}


@pytest.mark.parametrize("static", [False, True], ids=["auto_forward", "static"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_native_functions_give_the_same_gradients(monkeypatch, architecture, static):
    with_blas = framework_gradients("nnabla", architecture)
    monkeypatch.setattr(functions, "on_cpu", lambda: False)
    assert beyond(framework_gradients("nnabla", architecture, static), with_blas) == {}


def test_native_functions_give_the_same_values(monkeypatch):
    model = load_backend("nnabla").CLIP(VIT, sample_weights(VIT), device="cpu")
    pixels, tokens = sample_pixels(VIT), sample_tokens(VIT)
    monkeypatch.setattr(functions, "on_cpu", lambda: False)
    assert tolerances.beyond(stages_of(model, pixels, tokens), reference_stages(VIT)) == {}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


CAUSAL = np.tril(np.ones((5, 5)))[None, None]
# The function, its inputs in float64, and which of them have a gradient.
FUNCTIONS = {
    "linear": (functions.Linear(transposed=True), (random(2, 3, 5), random(4, 5), random(4)), (0, 1, 2)),
    "linear without bias": (functions.Linear(transposed=True), (random(2, 5), random(4, 5)), (0, 1)),
    "projection": (functions.Linear(transposed=False), (random(2, 3, 5), random(5, 4)), (0, 1)),
    "layer norm": (functions.LayerNorm(1e-5), (random(2, 3, 6), random(6), random(6, seed=1)), (0, 1, 2)),
    "batch norm": (
        functions.BatchNorm(nn.Variable((3,)), nn.Variable((3,)), momentum=0.1, epsilon=1e-5),
        (random(2, 3, 2, 4), random(3), random(3, seed=1)),
        (0, 1, 2),
    ),
    "quick GELU": (functions.QuickGELU(), (3 * random(2, 3, 4),), (0,)),
    "attention": (functions.Attend(2), (random(2, 3, 8), random(2, 5, 8), random(2, 5, 8, seed=1)), (0, 1, 2)),
    "causal attention": (
        functions.Attend(2),
        (random(2, 5, 8), random(2, 5, 8, seed=1), random(2, 5, 8, seed=2), CAUSAL),
        (0, 1, 2),
    ),
    "patches": (functions.EmbedPatches(), (random(2, 3, 4, 4), random(5, 3, 2, 2)), (0, 1)),
    "pick": (functions.Pick(), (random(2, 3, 4), np.array([2, 0])), (0,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_has_its_gradient(name):
    """Every number of every input, by central differences in float64."""
    function, arrays, with_gradient = FUNCTIONS[name]

    def value(*inputs: np.ndarray) -> np.ndarray:
        result = np.empty(function.shape(*(array.shape for array in inputs)))
        function.compute(result, *inputs)
        return result

    onward = random(*value(*arrays).shape, seed=9)  # the gradient of the result
    gradients = function.gradients(onward, [True] * len(arrays), *arrays)
    assert len(gradients) == len(arrays)
    for index, array in enumerate(arrays):
        if index not in with_gradient:
            assert gradients[index] is None
            continue
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            slopes = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved[place] += step
                slopes.append((value(*arrays[:index], moved, *arrays[index + 1 :]) * onward).sum())
            expected[place] = (slopes[0] - slopes[1]) / 2e-5
        assert np.abs(gradients[index] - expected).max() < 1e-7, f"input {index}"


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (1, 1e-3), (10, 1e-2)])
def test_batch_norm_of_maps_that_hardly_vary(mean, spread):
    """As of pictures of one colour: a variance that is a difference of means would have no digit left."""
    x = (mean + spread * random(8, 4, 16, 16)).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    norm = BatchNorm2d(4)
    norm.weight.d, norm.bias.d, norm.training = 1, 0, True
    with nn.auto_forward():
        found = norm(nn.Variable.from_numpy_array(x)).d
    assert np.abs(found - expected).max() < 1e-4
    assert norm.running_mean.d == pytest.approx(0.1 * exact.mean((0, 2, 3)), rel=1e-5)
    assert norm.running_var.d == pytest.approx(0.9 + 0.1 * exact.var((0, 2, 3), ddof=1), rel=1e-5)


def test_saturated_activations_neither_overflow_nor_warn():
    extreme = np.array([-1e4, -88.0, 0.0, 88.0, 1e4], np.float32)
    result = np.empty_like(extreme)
    functions.QuickGELU().compute(result, extreme)
    assert result.tolist() == [0, 0, 0, 88, 1e4]
    assert functions.QuickGELU().gradients(np.ones_like(extreme), [True], extreme)[0].tolist() == [0, 0, 0.5, 1, 1]


def test_gradients_add_up():
    """A variable that is used twice gets the sum of both gradients."""
    weight = nn.Variable.from_numpy_array(random(4, 5), need_grad=True)
    x = nn.Variable.from_numpy_array(random(3, 5))
    result = functions.linear(x, weight) + 2 * functions.linear(x, weight)
    weight.grad.zero()
    result.forward()
    result.backward(np.ones((3, 4), np.float32))
    assert np.allclose(weight.g, 3 * random(3, 5).sum(axis=0), rtol=1e-6)
