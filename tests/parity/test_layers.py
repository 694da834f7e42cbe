"""What each block computes: its name, and that a fault is found where it is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import RESNET, VIT, reference_layers, sample_pixels, sample_tokens, sample_weights
from tests.tolerances import first_beyond

TEXT_LAYERS = [
    "token_embedding",
    *(f"transformer.resblocks.{index}" for index in range(3)),
    "ln_final",
    "text_features",
]
VIT_LAYERS = [
    "visual.ln_pre",
    *(f"visual.transformer.resblocks.{index}" for index in range(2)),
    "visual.ln_post",
    "image_features",
    *TEXT_LAYERS,
]
RESNET_LAYERS = [
    "visual.stem",
    "visual.layer1.0",
    *(f"visual.layer{stage}.{block}" for stage in (2, 3) for block in (0, 1)),
    "visual.layer4.0",
    "image_features",
    *TEXT_LAYERS,
]
ARCHITECTURES = [pytest.param(VIT, VIT_LAYERS, id="vit"), pytest.param(RESNET, RESNET_LAYERS, id="resnet")]


@pytest.mark.parametrize(("architecture", "names"), ARCHITECTURES)
def test_names(architecture, names):
    """In the order of computation; tests/test_towers.py compares names and values of the backends with these."""
    assert list(reference_layers(architecture)) == names


@pytest.mark.parametrize(
    ("architecture", "parameter", "layer"),
    [
        (VIT, "visual.ln_pre.bias", "visual.ln_pre"),
        (VIT, "visual.transformer.resblocks.1.attn.out_proj.weight", "visual.transformer.resblocks.1"),
        (VIT, "visual.proj", "image_features"),
        (VIT, "token_embedding.weight", "token_embedding"),
        (VIT, "transformer.resblocks.2.mlp.c_fc.bias", "transformer.resblocks.2"),
        (VIT, "ln_final.weight", "ln_final"),
        (RESNET, "visual.bn2.running_mean", "visual.stem"),
        (RESNET, "visual.layer3.1.conv2.weight", "visual.layer3.1"),
        (RESNET, "visual.layer4.0.downsample.1.running_var", "visual.layer4.0"),
        (RESNET, "visual.attnpool.q_proj.weight", "image_features"),
        (RESNET, "transformer.resblocks.0.ln_2.weight", "transformer.resblocks.0"),
    ],
)
def test_a_fault_is_found_where_it_is(backend, architecture, parameter, layer):
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    expected = reference_layers(architecture)
    weights[parameter] = weights[parameter] + np.float32(0.1)
    found = backend.CLIP(architecture, weights, device="cpu").layers(pixels, tokens)
    assert first_beyond(found, expected) == layer
