"""The fast paths in PyTorch give what the plain ones give, see each change, and yield to watchers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
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


@pytest.mark.parametrize("gradients", [False, True])
def test_features_are_those_of_the_plain_way(model, inputs, fast, gradients):
    with plainly():
        expected = features(model, *inputs)
    assert not fast
    with torch.set_grad_enabled(gradients):
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


def derivatives(compute, given, learnt):
    """What ``compute`` gives, and the gradients and second derivatives of its square by those that are learnt."""
    given = [tensor.clone().requires_grad_(place in learnt) for place, tensor in enumerate(given)]
    asked = [given[place] for place in learnt]
    result = compute(*given)
    first = torch.autograd.grad(result.square().sum(), asked, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), asked)
    return [each.detach() for each in (result, *first, *second)]


@pytest.mark.parametrize("learnt", [(0, 1, 2), (0,), (1, 2)])
@pytest.mark.parametrize("shape", [(5, 16), (3, 5, 16)])
def test_a_linear_layer_has_the_derivatives_of_pytorchs_own(fast, learnt, shape):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(size, generator=generator) for size in (shape, (24, 16), (24,))]
    found = derivatives(layers.linear, given, learnt)
    assert bool(fast) == packs.HAS_ONEDNN
    expected = derivatives(torch.nn.functional.linear, given, learnt)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "bias",
    [
        *(torch.arange(16.0)[::2], torch.ones(1).expand(8), torch.tensor(2.0), torch.ones(1)),
        *(torch.arange(8, dtype=torch.float64), torch.ones(8, device="meta")),
    ],
    ids=["every other number", "one number for all", "scalar", "vector of one", "float64", "without values"],
)
def test_a_bias_that_onednn_would_misread_is_left_to_pytorch(fast, bias, gradients):
    x, weight = torch.ones(3, 4), torch.nn.Parameter(torch.ones(8, 4))
    with torch.set_grad_enabled(gradients):
        try:
            expected = torch.nn.functional.linear(x, weight, bias)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                layers.linear(x, weight, bias)
        else:
            assert torch.equal(layers.linear(x, weight, bias), expected)
    assert not fast


def test_a_layer_without_outputs_has_a_gradient_of_zeros(fast):
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(0, 3, requires_grad=True)
    layers.linear(x, weight, None).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))
    assert weight.grad.shape == (0, 3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_weight_is_left_to_pytorch(fast):
    x, weight = torch.ones(3, 4), torch.eye(4)
    assert torch.equal(layers.linear(x, weight.to_sparse_csr(), torch.ones(4)), x + 1)
    assert not fast


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of PyTorch's own code
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_linear_layer_is_differentiated_forwards(fast):
    generator = torch.Generator().manual_seed(0)
    x, direction, weight = (torch.randn(8, 8, generator=generator) for _ in range(3))
    with forward_ad.dual_level():
        result = layers.linear(forward_ad.make_dual(x, direction), weight, None)
        tangent = forward_ad.unpack_dual(result).tangent
    assert (tangent - direction @ weight.t()).abs().max() < 1e-5
    assert not fast


def test_attention_that_is_trained_in_bf16_is_that_of_float32_rounded():
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 5, 64, generator=generator).bfloat16() for _ in range(3)]
    expected = [tensor.float().requires_grad_() for tensor in given]
    found = [tensor.requires_grad_() for tensor in given]
    with torch.autocast("cpu", torch.bfloat16):
        result = layers.attend(*found, heads=2, mask=layers.causal_mask(5))
    wanted = layers.attend(*expected, heads=2, mask=layers.causal_mask(5))
    assert torch.equal(result, wanted.bfloat16())
    gradient = torch.randn(2, 5, 64, generator=generator).bfloat16()
    result.backward(gradient)
    wanted.backward(gradient.float())
    for one, other in zip(found, expected):
        assert torch.equal(one.grad, other.grad.bfloat16())


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
