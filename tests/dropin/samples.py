"""A small model as OpenAI's package would give it, the paper's forward pass with its weights, and inputs for both."""

from __future__ import annotations

import torch

from backends.torch import CLIP
from clip_core.architecture import Architecture
from tests.dropin.paper import Paper
from tests.models import RESNET, VIT, sample_pixels, sample_tokens, sample_weights

PIXELS = torch.tensor(sample_pixels(VIT))
TOKENS = torch.tensor(sample_tokens(VIT)[:3])  # the longest is shorter than the context
ROUNDING = 1e-4  # of float32 numbers up to 10


def model(architecture: Architecture = VIT, precision: str = "fp32") -> CLIP:
    return CLIP(architecture, sample_weights(architecture), "cpu", precision)


def resnet() -> CLIP:
    return model(RESNET)


def paper() -> Paper:
    return Paper(VIT, {name: torch.tensor(array) for name, array in sample_weights(VIT).items()})


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = ROUNDING) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() < bound)
