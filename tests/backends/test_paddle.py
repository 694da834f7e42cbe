"""What only Paddle has: one current device, one thread unless told otherwise, and no half precision on the CPU."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from backends.paddle import CLIP, layers, tensors
from backends.paddle.tensors import use_device
from clip_core.errors import ClipError
from tests.models import RESNET, VIT, sample_pixels, sample_weights

IN_A_THREAD = """
import os, signal, threading, backends
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
thread = threading.Thread(target=backends.get, args=("paddle",))
thread.start()
thread.join()
from paddle import nn, to_tensor
assert nn.Embedding(2, 3)(to_tensor([0, 1])).numpy().shape == (2, 3)
os.kill(os.getpid(), signal.SIGTERM)
assert received == [signal.SIGTERM]
"""


def test_the_thread_that_imports_paddle_may_end_and_signals_stay_as_they_are():
    subprocess.run([sys.executable, "-c", IN_A_THREAD], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_refused_on_the_cpu(precision):
    with pytest.raises(ClipError) as caught:
        CLIP(VIT, sample_weights(VIT), "cpu", precision)
    assert str(caught.value) == f"Paddle has no {precision} kernels for the CPU; use precision fp32, or a GPU."


def test_the_current_device_stays():
    CLIP(VIT, sample_weights(VIT))
    assert paddle.get_device() == "cpu"
    with pytest.raises(ClipError, match=r"^Paddle cannot use the device 'cuda' here: .*not compiled with CUDA\.$"):
        CLIP(VIT, sample_weights(VIT), "cuda")
    assert paddle.get_device() == "cpu"


@pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("2,1", 2), ("", 5), ("0", 5), ("many", 5), (None, 5)])
def test_threads(monkeypatch, asked, threads):
    given = []
    monkeypatch.setattr(paddle.core, "set_num_threads", given.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(5)))
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    use_device(None)
    assert given == [threads]


def test_paddles_threads_sleep_soon_after_their_work(monkeypatch):
    openmp = ctypes.CDLL(str(tensors.OPENMP))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for chosen, expected in ((None, 1), ("7", 200)):
        openmp.kmp_set_blocktime(200)
        if chosen is not None:
            monkeypatch.setenv("KMP_BLOCKTIME", chosen)
        use_device(None)
        assert openmp.kmp_get_blocktime() == expected


def test_the_users_initial_values_come_back():
    ones, twos = paddle.nn.initializer.Constant(1.0), paddle.nn.initializer.Constant(2.0)
    paddle.nn.initializer.set_global_initializer(ones, twos)
    try:
        CLIP(VIT, sample_weights(VIT))
        layer = paddle.nn.Linear(2, 2)
    finally:
        paddle.nn.initializer.set_global_initializer(None)
    assert (layer.weight.numpy() == 1).all()
    assert (layer.bias.numpy() == 2).all()


def test_building_a_model_draws_no_random_numbers():
    paddle.seed(3)
    expected = paddle.rand([4]).numpy()
    paddle.seed(3)
    CLIP(RESNET, sample_weights(RESNET))
    assert (paddle.rand([4]).numpy() == expected).all()


def test_embedding_builds_no_gradient():
    model = CLIP(VIT, sample_weights(VIT))
    assert not model.encode_image(sample_pixels(VIT)).stop_gradient
    with model._evaluation():
        assert model.encode_image(sample_pixels(VIT)).stop_gradient
    assert not model.encode_image(sample_pixels(VIT)).stop_gradient


@pytest.mark.parametrize("learnt", [(0, 1, 2), (0,), (1, 2), (2,), ()])
def test_a_linear_layer_has_the_gradients_of_paddles_own(monkeypatch, learnt):
    calls, original = [], layers.RepeatedBias.apply
    monkeypatch.setattr(layers.RepeatedBias, "apply", lambda *given: calls.append(given) or original(*given))
    generator = np.random.default_rng(0)
    drawn = [generator.standard_normal(shape, np.float32) for shape in ((3, 5, 16), (16, 24), (24,))]
    found = []
    for compute in (layers.linear, paddle.nn.functional.linear):
        given = [paddle.to_tensor(array, stop_gradient=place not in learnt) for place, array in enumerate(drawn)]
        result = compute(*given)
        result.square().sum().backward()
        assert [place for place, tensor in enumerate(given) if tensor.grad is not None] == list(learnt)
        found.append([result.numpy(), *(given[place].grad.numpy() for place in learnt)])
    assert len(calls) == (learnt in ((0, 1, 2), (1, 2)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_the_gradients_of_some_inputs_alone_can_be_asked_for():
    model, pixels = CLIP(VIT, sample_weights(VIT)), paddle.to_tensor(sample_pixels(VIT), stop_gradient=False)
    bias = model.visual.transformer.resblocks[0].mlp.c_fc.bias
    expected = paddle.grad(model.encode_image(pixels).square().sum(), [pixels, bias])
    for tensor, gradient in zip([pixels, bias], expected):
        (found,) = paddle.grad(model.encode_image(pixels).square().sum(), [tensor])
        assert gradient.abs().max() > 0
        np.testing.assert_allclose(found.numpy(), gradient.numpy(), rtol=0, atol=1e-6 * gradient.abs().max().item())
