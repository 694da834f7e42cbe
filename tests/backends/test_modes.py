"""Evaluation and training, devices and precisions."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import ClipError
from tests.models import RESNET, VIT, sample_pixels, sample_tokens, sample_weights


def normalisation(model):
    """The first batch normalisation of the image tower."""
    return model.visual.bn1


@pytest.mark.parametrize("mode", ["fresh", "training"])
def test_embedding_moves_nothing(framework, mode):
    weights, pixels, tokens = sample_weights(RESNET), sample_pixels(RESNET), sample_tokens(RESNET)
    model = framework.CLIP(RESNET, weights, device="cpu")
    expected = model.embed_image(pixels), model.embed_text(tokens)
    if mode == "training":
        model.train()
    for _ in range(2):
        assert np.array_equal(model.embed_image(pixels), expected[0])
        assert np.array_equal(model.embed_text(tokens), expected[1])
    model.layers(pixels, tokens)
    assert all(np.array_equal(array, weights[name]) for name, array in model.export().items())
    assert model.training == (mode == "training")


def test_a_frozen_part_stays_frozen(framework):
    model = framework.CLIP(RESNET, sample_weights(RESNET), device="cpu")
    model.train()
    normalisation(model).eval()
    model.embed_image(sample_pixels(RESNET))
    assert not normalisation(model).training
    assert model.visual.bn2.training
    assert model.training


def test_a_failed_embedding_keeps_the_mode(framework):
    model = framework.CLIP(RESNET, sample_weights(RESNET), device="cpu")
    model.train()
    with pytest.raises(ClipError):
        model.embed_image(np.zeros((1, 3, 8, 8), np.float32))
    assert model.training
    assert normalisation(model).training


def test_layers_without_statistics_do_the_same_in_both_modes(framework):
    model = framework.CLIP(VIT, sample_weights(VIT), device="cpu")
    before = model.embed_image(sample_pixels(VIT))
    model.train()
    model.eval()
    assert not model.training
    assert np.array_equal(model.embed_image(sample_pixels(VIT)), before)


def test_the_cpu_by_name(backend):
    pixels = sample_pixels(VIT)
    model = backend.CLIP(VIT, sample_weights(VIT), device="cpu")
    assert np.array_equal(model.embed_image(pixels), backend.CLIP(VIT, sample_weights(VIT)).embed_image(pixels))


@pytest.mark.parametrize("device", ["nonsense", "", "cuda:x", "cuda:99"])
def test_an_unknown_device(backend, device):
    with pytest.raises(ClipError) as caught:
        backend.CLIP(VIT, sample_weights(VIT), device=device)
    assert repr(device) in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("precision", ["fp8", "float32", "", None])
def test_an_unknown_precision(backend, precision):
    with pytest.raises(ClipError, match=rf"^There is no precision {precision!r}"):
        backend.CLIP(VIT, sample_weights(VIT), device="cpu", precision=precision)
