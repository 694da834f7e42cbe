"""Small models with OpenAI's nine shapes, seeded weights in which every number matters, and inputs for them."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np

from clip_core.architecture import HEAD_WIDTH, MODELS, Architecture, ModifiedResNet, TextTransformer, VisionTransformer
from clip_core.initialize import initialize
from clip_core.naming import Weights, parameters

VOCABULARY_SIZE = 300
END_OF_TEXT = VOCABULARY_SIZE - 1
CONTEXT_LENGTH = 16


def reduced(architecture: Architecture) -> Architecture:
    """The same kinds of towers with fewer and narrower layers, smaller pictures and a smaller vocabulary."""
    image, text = architecture.image, architecture.text
    if isinstance(image, VisionTransformer):
        heads = max(image.heads // 5, 1)
        grid = max(image.grid // 3, 2)
        small = VisionTransformer(grid * image.patch, image.patch, heads * HEAD_WIDTH, max(image.layers // 6, 2), heads)
    else:
        one, two, three, four = (-(-blocks // 3) for blocks in image.blocks)
        small = ModifiedResNet(image.grid // 3 * 32, image.width // 8, (one, two, three, four), heads=image.width // 16)
    heads = max(text.heads // 4, 1)
    return Architecture(
        embed_dim=architecture.embed_dim // 8,
        image=small,
        text=TextTransformer(CONTEXT_LENGTH, VOCABULARY_SIZE, heads * HEAD_WIDTH, layers=3, heads=heads),
        activation=architecture.activation,
    )


REDUCED = {name: reduced(model.architecture) for name, model in MODELS.items()}
VIT = REDUCED["ViT-B/32"]
RESNET = REDUCED["RN50"]
GELU = replace(VIT, activation="gelu")
OPENAI_NAMES = tuple(name for name in MODELS if name != "shapes")


def sample_weights(architecture: Architecture, seed: int = 0) -> Weights:
    """Initial values moved away from 0 and 1, so that no bias, gain or statistic can be left out unnoticed.

    The logit scale is 100, where trained models end.
    """
    generator = np.random.default_rng(seed)
    weights = initialize(architecture, seed)
    for parameter in parameters(architecture):
        if parameter.kind in ("norm", "vector", "statistic"):
            weights[parameter.name] += generator.uniform(0, 0.1, parameter.shape).astype(np.float32)
        elif parameter.kind == "counter":
            weights[parameter.name] += 7
    weights["logit_scale"] = np.array(log(100), np.float32)
    return weights


def sample_pixels(architecture: Architecture, n: int = 3, seed: int = 0) -> np.ndarray:
    """Float32 [n, 3, r, r], distributed as normalised pictures are."""
    side = architecture.image.resolution
    return np.random.default_rng(seed).standard_normal((n, 3, side, side)).astype(np.float32)


def sample_tokens(architecture: Architecture, n: int = 4, seed: int = 0) -> np.ndarray:
    """Int64 [n, context]: texts of different lengths, the last one as long as the context, padded with zeros."""
    generator = np.random.default_rng(seed)
    text = architecture.text
    tokens = np.zeros((n, text.context_length), np.int64)
    for row, length in zip(tokens, np.linspace(3, text.context_length, n).astype(int)):
        row[: length - 1] = generator.integers(1, text.vocabulary_size - 2, length - 1)
        row[length - 1] = text.vocabulary_size - 1
    return tokens
