"""Every backend against open_clip, an independent implementation, with the same random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from open_clip.model import CLIP as OpenClip
from open_clip.model import resize_pos_embed
from torch.utils.flop_counter import FlopCounterMode

from clip_core.architecture import Architecture
from clip_core.backend import Backend
from clip_core.models import ARCHITECTURES, MODELS
from clip_core.naming import Weights
from clip_core.resize import at_resolution
from clip_core.towers.text_transformer import TextTransformer
from tests import tolerances
from tests.models import (
    CONTEXT_LENGTH,
    GELU,
    OPENAI_NAMES,
    REDUCED,
    UNUSUAL,
    VIT,
    VOCABULARY_SIZE,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)
from tests.peers import open_clip


def assert_equal_to_open_clip(backend: Backend, architecture: Architecture) -> None:
    weights = sample_weights(architecture)
    assert_equal(backend, architecture, weights, open_clip(architecture, weights))


def assert_equal(backend: Backend, architecture: Architecture, weights: Weights, theirs: OpenClip) -> None:
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    with torch.no_grad():
        image, text = torch.from_numpy(pixels), torch.from_numpy(tokens)
        expected = {
            "image_embedding": theirs.encode_image(image, normalize=True).numpy(),
            "text_embedding": theirs.encode_text(text, normalize=True).numpy(),
            "logits": theirs.get_logits(image, text)[0].numpy(),
        }
    ours = backend.CLIP(architecture, weights, device="cpu")
    assert tolerances.beyond(stages_of(ours, pixels, tokens), expected) == {}


@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_reduced(backend, name):
    assert_equal_to_open_clip(backend, REDUCED[name])


def test_exact_gelu(backend):
    assert_equal_to_open_clip(backend, GELU)


def test_other_numbers_in_each_tower(backend):
    """But for the end of text, which is the last of the vocabulary in open_clip."""
    assert_equal_to_open_clip(backend, replace(UNUSUAL, text=replace(UNUSUAL.text, end_of_text=VOCABULARY_SIZE - 1)))


def shallow(name: str, share: int, layers: int) -> Architecture:
    """A model of open_clip's with fewer layers, 1 / ``share`` of its widths, and the width of its heads in images."""
    architecture = ARCHITECTURES[name].architecture
    image, text = architecture.image, architecture.text
    return Architecture(
        architecture.embed_dim // share,
        replace(
            image,
            resolution=3 * image.patch,
            width=image.width // share,
            mlp_width=image.mlp_width // share,
            heads=image.heads // share,
            layers=layers,
        ),
        TextTransformer(
            CONTEXT_LENGTH,
            VOCABULARY_SIZE,
            text.width // share,
            layers,
            heads=max(text.heads // share, 1),
            activation=text.activation,
        ),
    )


LARGE = ("ViT-H-14", "ViT-H-14-quickgelu", "ViT-g-14", "ViT-bigG-14", "ViT-bigG-14-quickgelu")


@pytest.mark.parametrize("name", LARGE)
def test_large_models_in_small(backend, name):
    """With heads of 80, 88 and 104, and MLPs that are not four times as wide inside."""
    assert_equal_to_open_clip(backend, shallow(name, share=8, layers=3))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_layers_of_large_models(backend, name):
    assert_equal_to_open_clip(backend, shallow(name, share=1, layers=2))


@pytest.mark.parametrize("patches", [1, 5])
def test_another_resolution(backend, patches):
    """Both interpolate the positions of the same weights, down and up."""
    assert 1 < VIT.image.grid < 5
    weights = sample_weights(VIT)
    architecture, resized = at_resolution(VIT, weights, patches * VIT.image.patch)
    theirs = open_clip(architecture, sample_weights(architecture))
    state = {name: torch.tensor(array) for name, array in weights.items()}
    resize_pos_embed(state, theirs)
    theirs.load_state_dict(state)
    assert_equal(backend, architecture, resized, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_full_size(backend, name):
    assert_equal_to_open_clip(backend, MODELS[name].architecture)


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_multiplications_are_those_that_pytorch_counts(name):
    """With the attention written out, which the counter does not know in its fused forms on a CPU."""
    architecture = REDUCED[name]
    model = open_clip(architecture, sample_weights(architecture))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as image:
        model.encode_image(torch.from_numpy(sample_pixels(architecture, n=1)))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as text:
        model.encode_text(torch.from_numpy(sample_tokens(architecture, n=1)))
    # open_clip computes the attention pool of a ResNet for every token, of which one is used.
    pool = {"ViT-B/32": 0, "RN50": 4 * (256**2 + 2 * 5 * 256 + 256 * 128)}[name]
    assert 2 * (architecture.image.multiplications(architecture.embed_dim) + pool) == image.get_total_flops()
    assert 2 * architecture.text.multiplications(architecture.embed_dim) == text.get_total_flops()
