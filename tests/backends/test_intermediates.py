"""`forward_intermediates`: what the blocks of image towers compute, in every backend as in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.intermediates import Intermediates
from tests.models import VIT, sample_pixels, sample_weights
from tests.tolerances import first_beyond
from tests.towers import EXAMPLES, IMAGES

OF_IMAGES = {tower.kind: next(each for each in EXAMPLES.values() if each.image == tower) for tower in IMAGES}
# Kind -> whether its blocks have attention, and whether it ends in an attention pool.
ATTENTION = {"vit": (True, False), "low_resource": (True, False), "siglip": (True, True), "resnet": (False, True)}


def arrays(found: Intermediates) -> dict[str, np.ndarray]:
    named = {f"{block.block}.{name}": value for block in found.blocks for name, value in vars(block).items()}
    return {name: value for name, value in (named | {"pool": found.pool}).items() if isinstance(value, np.ndarray)}


@cache
def expected(architecture: Architecture, attention: bool) -> dict[str, np.ndarray]:
    judge = Reference(architecture, sample_weights(architecture), precision="fp64")
    return arrays(judge.forward_intermediates(sample_pixels(architecture), attention=attention))


@pytest.mark.parametrize("kind", OF_IMAGES)
def test_every_block_is_that_of_the_reference_and_a_changed_weight_is_noticed(backend, kind):
    architecture, attention = OF_IMAGES[kind], kind in ATTENTION
    weights, pixels = sample_weights(architecture), sample_pixels(architecture)
    model, reference = backend.CLIP(architecture, weights, device="cpu"), expected(architecture, attention)
    found = arrays(model.forward_intermediates(pixels, attention=attention))
    assert list(found) == list(reference)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert first_beyond(found, reference) is None
    maps = {name: value for name, value in found.items() if name == "pool" or name.endswith("attention")}
    of_blocks, of_pool = ATTENTION.get(kind, (False, False))
    assert (len(maps) > of_pool, "pool" in maps) == (of_blocks, of_pool)
    for value in maps.values():
        np.testing.assert_allclose(value.sum(axis=-1), 1, rtol=1e-5)
    name = next(name for name in weights if name.startswith("visual.") and name.endswith(".weight"))
    changed = weights[name].copy()
    changed.reshape(-1)[::-7] += 0.1
    model.load(weights | {name: changed})
    assert first_beyond(arrays(model.forward_intermediates(pixels, attention=attention)), reference) is not None


def test_chosen_blocks_and_what_is_not_there(backend):
    architecture = OF_IMAGES["vit"]
    model, pixels = backend.CLIP(architecture, sample_weights(architecture), device="cpu"), sample_pixels(architecture)
    first, last, again = model.forward_intermediates(pixels, blocks=[-2, 1, -1], tokens=False, attention=True).blocks
    assert (first.block, last.block, last.patches, last.token) == (0, 1, None, None)
    assert last.attention.shape == (len(pixels), 2, 5, 5)
    np.testing.assert_array_equal(again.attention, last.attention)
    assert model.forward_intermediates(pixels, blocks=[]).blocks == ()
    for blocks in ([2], [-3], [0.5], [True]):
        with pytest.raises(ClipError, match=r"There is no block .* of 2 blocks; choose from -2 to 1"):
            model.forward_intermediates(pixels, blocks=blocks)
    for blocks in (2, np.array(2)):
        with pytest.raises(ClipError, match=r"The blocks are .*2.*, expected their numbers, such as \[0, -1\]"):
            model.forward_intermediates(pixels, blocks=blocks)
    with pytest.raises(ClipError, match="give at least one picture"):
        model.forward_intermediates(pixels[:0])
    mixer = OF_IMAGES["mixer"]
    model = backend.CLIP(mixer, sample_weights(mixer), device="cpu")
    with pytest.raises(ClipError, match="The image tower, a Mixer, has no attention; leave attention out"):
        model.forward_intermediates(sample_pixels(mixer), attention=True)


@pytest.mark.needs("torch")
def test_hooks_see_the_same_and_change_nothing():
    from backends.torch import CLIP

    model, pixels, calls = CLIP(VIT, sample_weights(VIT), device="cpu"), sample_pixels(VIT), []
    plain = arrays(model.forward_intermediates(pixels, attention=True))
    model.visual.transformer.resblocks[-1].register_forward_hook(lambda *_: calls.append(1))
    hooked = arrays(model.forward_intermediates(pixels, attention=True))
    assert calls == [1]
    assert first_beyond(hooked, plain) is None


@pytest.mark.needs("torch")
def test_attention_and_states_are_those_of_pytorch_itself():
    import torch

    from backends.torch import CLIP

    model, pixels = CLIP(VIT, sample_weights(VIT), device="cpu"), sample_pixels(VIT)
    found = model.forward_intermediates(pixels, blocks=[-1], attention=True).blocks[0]
    inputs: list[torch.Tensor] = []
    block = model.visual.transformer.resblocks[-1]
    block.register_forward_hook(lambda _, given, output: inputs.extend([given[0], output]))
    with torch.no_grad():
        model.encode_image(pixels)
        x = block.ln_1(inputs[0])
        weights = block.attn(x, x, x, average_attn_weights=False)[1].numpy()
    output = inputs[1].transpose(0, 1).numpy()
    np.testing.assert_allclose(found.attention, weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.token, output[:, 0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.patches.reshape(output[:, 1:].shape), output[:, 1:], rtol=0, atol=1e-4)
