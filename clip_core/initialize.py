"""Seeded initial values in NumPy, so that every framework can start from exactly the same numbers.

Each parameter says what it starts as. For OpenAI's towers the scheme is that of OpenAI's package
(github.com/openai/CLIP, ``CLIP.initialize_parameters``), with PyTorch's defaults written out for convolutions and for
the biases of the attention pool. Where that code leaves the image transformer and the biases of both transformers at
PyTorch's defaults, this one treats both transformers alike and starts their biases at zero. The positions of an image
transformer start as sines and cosines.
"""

from __future__ import annotations

from math import log

import numpy as np

from clip_core.architecture import Architecture
from clip_core.naming import Weights, parameters
from clip_core.parameters import ZERO, Uniform


def initialize(architecture: Architecture, seed: int) -> Weights:
    """Initial weights of ``architecture``, float32 (counters int64); equal seeds give equal numbers everywhere.

    Each tensor draws from a generator of its own, keyed by the seed and its name, so that a change in one tower leaves
    the other's numbers alone.
    """
    weights: Weights = {}
    for parameter in parameters(architecture):
        key = np.frombuffer(parameter.name.encode(), np.uint8).tolist()
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))
        dtype = np.int64 if parameter.kind == "counter" else np.float32
        weights[parameter.name] = parameter.initial.draw(generator, parameter.shape).astype(dtype)
    return weights


def random_weights(architecture: Architecture, seed: int) -> Weights:
    """Initial values moved away from 0 and 1, so that no bias, gain or statistic can be left out of a computation
    unnoticed.

    Convolutions keep the size of what they are given, so that different pictures end in different features. The logit
    scale is 100, where trained models end.
    """
    generator = np.random.default_rng(seed)
    weights = initialize(architecture, seed)
    for parameter in parameters(architecture):
        if parameter.kind in ("norm", "vector", "statistic"):
            weights[parameter.name] += generator.uniform(0, 0.1, parameter.shape).astype(np.float32)
            if parameter.initial == ZERO and parameter.name.endswith(".weight"):  # a gain
                weights[parameter.name] += np.float32(0.5)
        elif parameter.kind == "conv":
            outputs, inputs = parameter.shape[:2]
            # torchvision's initial values keep the size of gradients. A little less than that of pictures is kept here,
            # so that sums of many blocks stay small and squeeze-and-excitation stays smooth.
            even = isinstance(parameter.initial, Uniform)
            weights[parameter.name] *= np.float32((6 if even else 0.64 * outputs / inputs) ** 0.5)
        elif parameter.kind == "counter":
            weights[parameter.name] += 7
    weights["logit_scale"] = np.array(log(100), np.float32)
    return weights
