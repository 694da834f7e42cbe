"""What only PyTorch has: half precision on the CPU, and modules that its own tools understand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.torch import CLIP
from clip_core.errors import ClipError
from clip_core.naming import parameters
from tests import tolerances
from tests.models import REDUCED, RESNET, VIT, reference_stages, sample_pixels, sample_tokens, sample_weights, stages_of
from tests.towers import EXAMPLES


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50", "RN50x16"])
def test_half_precision_is_within_its_bounds(name, precision):
    architecture = REDUCED[name]
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    found = stages_of(CLIP(architecture, sample_weights(architecture), "cpu", precision), pixels, tokens)
    expected = reference_stages(architecture)
    assert tolerances.beyond(found, expected, tolerances.HALF[precision]) == {}
    assert set(tolerances.beyond(found, expected)) == set(expected), "it must not have been computed in float32"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_stays_in_float32(precision):
    model = CLIP(RESNET, sample_weights(RESNET), "cpu", precision)
    kinds = {parameter.name: parameter.kind for parameter in parameters(RESNET)}
    half = {name for name, tensor in model.state_dict().items() if tensor.dtype == model.dtype}
    assert {kinds[name] for name in half} == {"linear", "conv", "vector"}
    assert all(name in half for name, kind in kinds.items() if kind in ("linear", "conv"))
    weights = sample_weights(RESNET)
    for name, array in model.export().items():
        expected = torch.tensor(weights[name]).to(model.dtype).float().numpy() if name in half else weights[name]
        assert np.array_equal(array, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_have_the_precision_and_logits_are_float32(precision):
    model = CLIP(VIT, sample_weights(VIT), "cpu", precision)
    pixels, tokens = sample_pixels(VIT), sample_tokens(VIT)
    for features in (
        model.encode_image(pixels),
        model.encode_image(pixels[:0]),
        model.encode_text(tokens),
        model.encode_text(tokens[:0]),
    ):
        assert features.dtype == model.dtype
    assert [logits.dtype for logits in model(pixels, tokens)] == [torch.float32] * 2


def test_embedding_builds_no_gradient():
    model = CLIP(VIT, sample_weights(VIT), "cpu")
    assert model.encode_image(sample_pixels(VIT)).requires_grad
    with model._evaluation():
        assert not model.encode_image(sample_pixels(VIT)).requires_grad
    assert torch.is_grad_enabled()


def test_building_a_model_draws_no_random_numbers():
    before = torch.get_rng_state()
    CLIP(RESNET, sample_weights(RESNET), "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", EXAMPLES)
def test_building_a_model_draws_no_normal_values(name, monkeypatch):
    """Not even on the meta device, where PyTorch imports torch._dynamo for them."""
    monkeypatch.setattr(torch.nn.init, "normal_", lambda *_, **__: pytest.fail("drawn"))
    CLIP(EXAMPLES[name], sample_weights(EXAMPLES[name]), "cpu")


def test_its_own_state_dictionary_has_the_canonical_names():
    model = CLIP(RESNET, sample_weights(RESNET), "cpu")
    other = CLIP(RESNET, sample_weights(RESNET, seed=1), "cpu")
    other.load_state_dict(model.state_dict(), strict=True)
    assert np.array_equal(other.embed_image(sample_pixels(RESNET)), model.embed_image(sample_pixels(RESNET)))


def test_devices():
    assert CLIP(VIT, sample_weights(VIT), torch.device("cpu")).device == torch.device("cpu")
    with pytest.raises(
        ClipError, match=r"^PyTorch cannot use the device 'cuda:x' here: Invalid device string: 'cuda:x'"
    ):
        CLIP(VIT, sample_weights(VIT), "cuda:x")
    with pytest.raises(ClipError, match=r"^PyTorch cannot use the device 1\.5 here: "):
        CLIP(VIT, sample_weights(VIT), 1.5)
