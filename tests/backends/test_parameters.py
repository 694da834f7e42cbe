"""Weights go into each backend and out of it unchanged, in every form, or are refused whole."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import CheckpointError
from clip_core.models import MODELS
from clip_core.naming import parameters
from tests.models import (
    RESNET,
    VIT,
    logits_of,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)
from tests.weights import same

BOTH = [pytest.param(VIT, id="vit"), pytest.param(RESNET, id="resnet")]


def test_every_memory_layout_and_precision_can_be_loaded(backend):
    weights = sample_weights(RESNET)
    model = backend.CLIP(RESNET, sample_weights(RESNET, seed=1), device="cpu")
    model.load({name: array[::-1].copy()[::-1] if array.ndim else array for name, array in weights.items()})
    assert same(model.export(), weights)
    model.load({name: np.array(array, order="F") for name, array in weights.items()})
    assert same(model.export(), weights)
    model.load(
        {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in weights.items()}
    )
    assert same(model.export(), weights)
    half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in weights.items()}
    model.load(half)
    assert same(model.export(), {name: half[name].astype(array.dtype) for name, array in weights.items()})


def test_what_is_exported_is_a_copy(backend):
    weights = sample_weights(VIT)
    given = {name: array.copy() for name, array in weights.items()}
    model = backend.CLIP(VIT, given, device="cpu")
    for array in (*given.values(), *model.export().values()):
        array[...] = 0
    assert same(model.export(), weights)


@pytest.mark.parametrize("architecture", BOTH)
def test_a_failed_load_changes_nothing(backend, architecture):
    weights = sample_weights(architecture)
    model = backend.CLIP(architecture, weights, device="cpu")
    broken = sample_weights(architecture, seed=1)
    last = list(broken)[-1]
    broken[last] = np.full_like(broken[last], np.nan)
    with pytest.raises(CheckpointError, match=f"{last} holds NaN or infinity in float32"):
        model.load(broken)
    assert same(model.export(), weights)


def test_every_fault_is_reported_at_once(backend):
    weights = sample_weights(VIT)
    model = backend.CLIP(VIT, weights, device="cpu")
    broken = sample_weights(VIT, seed=1)
    del broken["ln_final.bias"]
    broken["visual.head"] = np.zeros(3, np.float32)
    broken["logit_scale"] = np.zeros(1, np.float32)
    broken["visual.proj"] = np.zeros((128, 64), np.int32)
    broken["text_projection"] = np.full((128, 64), 1e300)
    with pytest.raises(CheckpointError) as caught:
        model.load(broken, "broken.pt")
    assert str(caught.value) == (
        "broken.pt does not fit the model: ln_final.bias is missing; visual.head is not a parameter of this model; "
        "logit_scale has shape (1,), expected (); "
        "text_projection holds NaN or infinity in float32; "
        "visual.proj has dtype int32, expected float32, float16 or float64."
    )
    assert same(model.export(), weights)


def test_a_model_is_not_built_from_unfit_weights(backend):
    with pytest.raises(CheckpointError, match=r"^weights\.h5 does not fit the model: .*visual\.proj is missing"):
        backend.CLIP(VIT, sample_weights(RESNET), device="cpu", source="weights.h5")


def test_the_weights_of_another_model_are_named(backend):
    """Before anything is built: these weights are one zero, seen through every index."""
    b32, b16 = (MODELS[name].architecture for name in ("ViT-B/32", "ViT-B/16"))
    weights = {
        parameter.name: np.broadcast_to(np.zeros((), np.float32), parameter.shape) for parameter in parameters(b16)
    }
    with pytest.raises(CheckpointError) as caught:
        backend.CLIP(b32, weights, device="cpu", source="ViT-B-16.pt")
    assert str(caught.value) == (
        "ViT-B-16.pt does not fit ViT-B/32: visual.conv1.weight has shape (768, 3, 16, 16), expected (768, 3, 32, 32); "
        "visual.positional_embedding has shape (197, 768), expected (50, 768). The weights look like ViT-B/16."
    )


def test_models_in_one_process_are_independent(backend):
    """Also of one another's end, and of the same architecture."""
    pixels, tokens = sample_pixels(VIT), sample_tokens(VIT)
    one = backend.CLIP(VIT, sample_weights(VIT), device="cpu")
    before = stages_of(one, pixels, tokens)
    other = backend.CLIP(VIT, sample_weights(VIT, seed=1), device="cpu")
    third = backend.CLIP(RESNET, sample_weights(RESNET), device="cpu")
    between = stages_of(other, pixels, tokens)
    assert not np.allclose(between["logits"], before["logits"], atol=0.1)
    assert logits_of(third, sample_pixels(RESNET), tokens)[0].shape == (3, 4)
    other.load(sample_weights(VIT, seed=2))
    del third
    after = stages_of(one, pixels, tokens)
    assert all(np.array_equal(after[stage], before[stage]) for stage in before)
    assert same(one.export(), sample_weights(VIT))
    assert same(other.export(), sample_weights(VIT, seed=2))
