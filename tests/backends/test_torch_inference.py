"""The fast paths of inference in PyTorch give what the plain ones give, see each change, and yield to watchers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends.torch import CLIP, layers, packs
from clip_core.backend import plainly
from clip_core.similarity import normalize
from clip_core.tolerances import EMBEDDING
from tests.models import sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES

ARCHITECTURE = EXAMPLES["vit and transformer"]


@pytest.fixture
def model():
    return CLIP(ARCHITECTURE, sample_weights(ARCHITECTURE), device="cpu")


@pytest.fixture
def inputs():
    return sample_pixels(ARCHITECTURE), sample_tokens(ARCHITECTURE)


@pytest.fixture
def fast(monkeypatch):
    """The calls of oneDNN's linear layer."""
    calls, original = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: calls.append(given) or original(*given))
    return calls


def features(model, pixels, tokens):
    found = model.encode_image(pixels), model.encode_text(tokens)
    return [normalize(each.detach().float().numpy()) for each in found]


def test_inference_gives_what_is_computed_with_gradients(model, inputs, fast):
    expected = features(model, *inputs)
    assert not fast
    with torch.no_grad():
        found = features(model, *inputs)
    assert bool(fast) == packs.HAS_ONEDNN
    for one, other in zip(found, expected):
        assert np.abs(one - other).max() <= EMBEDDING


@pytest.mark.parametrize("name", ["visual.transformer.resblocks.0.mlp.c_fc.weight", "text_projection"])
def test_a_changed_weight_changes_the_features_at_once(model, inputs, name):
    with torch.no_grad():
        before = features(model, *inputs)
        model.get_parameter(name)[..., 0] += 1
        found = features(model, *inputs)
    expected = features(CLIP(ARCHITECTURE, model.export(), device="cpu"), *inputs)
    assert max(np.abs(one - other).max() for one, other in zip(found, before)) > EMBEDDING
    for one, other in zip(found, expected):
        assert np.abs(one - other).max() <= EMBEDDING


def test_pictures_in_chunks(model, inputs, monkeypatch):
    whole = model.embed_image(inputs[0])
    monkeypatch.setattr(layers, "CHUNK", 1)
    assert np.abs(normalize(model.embed_image(inputs[0])) - normalize(whole)).max() <= EMBEDDING
    assert model.embed_image(inputs[0][:0]).shape == (0, ARCHITECTURE.embed_dim)


def test_modes_see_the_operators_of_pytorch_itself(model, inputs, fast):
    seen = set()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watching():
        features(model, *inputs)
    assert "addmm" in seen
    assert not fast


def test_the_plain_way_calls_the_functions_of_pytorch(model, inputs, fast):
    with plainly(), torch.no_grad():
        features(model, *inputs)
    assert not fast


def test_autocast_chooses_the_precision(model, inputs, fast):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.encode_image(inputs[0]).dtype == torch.bfloat16
    assert not fast
