"""Small models with OpenAI's nine shapes, seeded weights in which every number matters, and inputs for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

import backends
from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.initialize import random_weights
from clip_core.models import MODELS
from clip_core.naming import Weights
from clip_core.similarity import normalize
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import HEAD_WIDTH
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

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
    )


REDUCED = {name: reduced(model.architecture) for name, model in MODELS.items()}
VIT = REDUCED["ViT-B/32"]
RESNET = REDUCED["RN50"]
GELU = VIT.with_activation("gelu")
# Numbers that differ from OpenAI's and from tower to tower, so that none can be left out or taken from the other tower.
UNUSUAL = replace(
    VIT,
    image=replace(VIT.image, activation="gelu", epsilon=1e-3, mlp_width=96, heads=4),
    text=replace(
        VIT.text, activation="gelu_tanh", epsilon=5e-4, mlp_width=160, heads=1, end_of_text=VOCABULARY_SIZE - 2
    ),
)
OPENAI_NAMES = tuple(name for name in MODELS if name != "shapes")


def sample_weights(architecture: Architecture, seed: int = 0) -> Weights:
    """`clip_core.initialize.random_weights`; the arrays are read-only, the dictionary is the caller's."""
    return dict(_sample_weights(architecture, seed))


@cache
def _sample_weights(architecture: Architecture, seed: int) -> Weights:
    weights = random_weights(architecture, seed)
    if "visual.bn3.weight" in weights:  # larger differences between pictures than the blocks behind the stem make
        weights["visual.bn3.weight"] += np.float32(0.5)
    for array in weights.values():
        array.flags.writeable = False
    return weights


def sample_pixels(architecture: Architecture, n: int = 3, seed: int = 0) -> np.ndarray:
    """Float32 [n, 3, r, r], distributed as normalised pictures are."""
    side = architecture.image.resolution
    return np.random.default_rng(seed).standard_normal((n, 3, side, side)).astype(np.float32)


def sample_tokens(architecture: Architecture, n: int = 4, seed: int = 0) -> np.ndarray:
    """Int64 [n, context]: texts of different lengths, the last one as long as the context, ended and padded."""
    generator = np.random.default_rng(seed)
    text = architecture.text
    tokens = np.full((n, text.context_length), text.padding_token or 0, np.int64)
    for row, length in zip(tokens, np.linspace(3, text.context_length, n).astype(int)):
        words = generator.integers(1, text.vocabulary_size - 2, length)
        row[:length] = words + np.isin(words, [text.required_token, text.padding_token])
        if text.required_token is not None:
            row[length - 1] = text.required_token
    return tokens


def logits_of(model: Any, pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What calling the model gives, as arrays: logits per image [n, m] and per text [m, n], before any softmax."""
    framework = backends.get(model.backend)
    if model.backend == "nnabla":
        import nnabla as nn

        with nn.auto_forward():
            per_image, per_text = model(pixels, tokens)
    else:
        per_image, per_text = model(pixels, tokens)
    return framework.to_array(per_image), framework.to_array(per_text)


def stages_of(model: Any, pixels: np.ndarray, tokens: np.ndarray) -> Weights:
    """What the numeric contract speaks of: both embeddings at length 1, and the logits."""
    return {
        "image_embedding": normalize(model.embed_image(pixels)),
        "text_embedding": normalize(model.embed_text(tokens)),
        "logits": logits_of(model, pixels, tokens)[0],
    }


@cache
def reference_stages(architecture: Architecture, seed: int = 0) -> Weights:
    """`stages_of` the NumPy reference in float64, for the sample weights, pixels and tokens."""
    judge = Reference(architecture, sample_weights(architecture, seed), precision="fp64")
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    image, text = normalize(judge.encode_image(pixels)), normalize(judge.encode_text(tokens))
    return {"image_embedding": image, "text_embedding": text, "logits": judge(pixels, tokens)[0]}


@cache
def reference_layers(architecture: Architecture) -> Weights:
    """What each block of the NumPy reference computes in float64, for the sample weights, pixels and tokens."""
    judge = Reference(architecture, sample_weights(architecture), precision="fp64")
    return judge.layers(sample_pixels(architecture), sample_tokens(architecture))
