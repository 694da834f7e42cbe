"""Seeded initial values in NumPy, so that every framework can start from exactly the same numbers.

The scheme is that of OpenAI's package (github.com/openai/CLIP, ``CLIP.initialize_parameters``), with PyTorch's defaults
written out for convolutions and for the biases of the attention pool. Where that code leaves the image transformer and
the biases of both transformers at PyTorch's defaults, this one treats both transformers alike and starts their biases
at zero. The positions of an image transformer start as sines and cosines (arXiv 2205.01580), from which a small model
learns shapes many times sooner than from small random numbers.
"""

from __future__ import annotations

from math import log, prod, sqrt

import numpy as np

from clip_core.architecture import Architecture, ModifiedResNet, VisionTransformer
from clip_core.naming import Parameter, Weights, parameters

INITIAL_LOGIT_SCALE = log(1 / 0.07)  # section 2.5 of the paper
INITIAL_LOGIT_BIAS = -10.0  # section 3.2 of "Sigmoid loss for language image pre-training"


def initialize(architecture: Architecture, seed: int) -> Weights:
    """Initial weights of ``architecture``, float32 (counters int64); equal seeds give equal numbers everywhere.

    Each tensor draws from a generator of its own, keyed by the seed and its place in the table, so that a change in one
    tower leaves the other's numbers alone.
    """
    weights: Weights = {}
    for parameter in parameters(architecture):
        key = np.frombuffer(parameter.name.encode(), np.uint8).tolist()
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))
        weights[parameter.name] = _initial(parameter, architecture, generator)
    return weights


def _initial(parameter: Parameter, architecture: Architecture, generator: np.random.Generator) -> np.ndarray:
    name, shape = parameter.name, parameter.shape

    def normal(deviation: float) -> np.ndarray:
        return (generator.standard_normal(shape) * deviation).astype(np.float32)

    def uniform(bound: float) -> np.ndarray:
        return generator.uniform(-bound, bound, shape).astype(np.float32)

    leaf = name.rsplit(".", 1)[-1]
    if parameter.kind == "counter":
        return np.zeros(shape, np.int64)
    if parameter.kind == "scalar":
        return np.full(shape, INITIAL_LOGIT_BIAS if name == "logit_bias" else INITIAL_LOGIT_SCALE, np.float32)
    if parameter.kind == "statistic":
        return np.full(shape, 1.0 if leaf == "running_var" else 0.0, np.float32)
    if parameter.kind == "norm":
        # A bottleneck's last normalisation starts at zero, so that each block starts as the identity.
        last_of_bottleneck = name.startswith("visual.layer") and ".bn3." in name
        return np.full(shape, 1.0 if leaf == "weight" and not last_of_bottleneck else 0.0, np.float32)
    if parameter.kind == "conv":
        return uniform(1 / sqrt(prod(shape[1:])))
    if parameter.kind == "projection":
        return normal(shape[0] ** -0.5)
    if name == "visual.class_embedding":
        return normal(shape[0] ** -0.5)
    if name.startswith("visual.attnpool."):
        return _attention_pool(parameter, architecture, normal, uniform)
    if parameter.kind == "embedding":
        if isinstance(architecture.image, VisionTransformer) and name.startswith("visual."):
            return _waves(architecture.image)
        return normal(0.02 if name == "token_embedding.weight" else 0.01)
    if parameter.kind == "vector":
        return np.zeros(shape, np.float32)
    tower = architecture.image if name.startswith("visual.") else architecture.text
    width, layers = tower.width, tower.layers  # type: ignore[union-attr]
    if name.endswith(".mlp.c_fc.weight"):
        return normal((2 * width) ** -0.5)
    if name.endswith(".attn.in_proj_weight"):
        return normal(width**-0.5)
    return normal(width**-0.5 * (2 * layers) ** -0.5)  # the two layers that write to the residual stream


def _waves(image: VisionTransformer) -> np.ndarray:
    """Sines and cosines of a patch's column and row, [grid * grid + 1, width]; zeros for the class token.

    The amplitude makes positions about half as strong as the patches beside them.
    """
    frequencies = 100.0 ** -np.linspace(0, 1, image.width // 4, endpoint=False)  # radians per patch
    rows, columns = np.mgrid[: image.grid, : image.grid].reshape(2, -1, 1) * frequencies
    positions = np.zeros((image.grid**2 + 1, image.width), np.float32)
    waves = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    positions[1:, : waves.shape[1]] = 0.7 * waves
    return positions


def _attention_pool(parameter: Parameter, architecture: Architecture, normal, uniform) -> np.ndarray:
    assert isinstance(architecture.image, ModifiedResNet)
    width = architecture.image.feature_width
    if parameter.kind == "embedding":
        return normal(width**-0.5)
    if parameter.kind == "vector":
        return uniform(width**-0.5)
    return normal(width**-0.5)
