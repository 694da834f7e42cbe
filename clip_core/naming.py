"""Architecture -> the ordered table of its parameters: the one list of names that every framework and file is held to.

The names are those of OpenAI's state dictionary, in its axis order: linear weights are (out, in), and the two
projections are used as ``x @ P``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log, prod
from typing import Any, Literal

import numpy as np

from clip_core.architecture import Architecture, ModifiedResNet, Shape, Transformer, VisionTransformer, infer, name_of
from clip_core.errors import CheckpointError

Kind = Literal["linear", "conv", "embedding", "norm", "projection", "vector", "scalar", "statistic", "counter"]
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parameter:
    """One named tensor of a model.

    ``kind`` is what transposes, weight-decay groups and initial values go by:

    * ``linear``: a matrix (out, in) used as ``x @ W.T``
    * ``conv``: a convolution kernel (out, in, height, width)
    * ``embedding``: rows that are looked up or added (tokens, positions)
    * ``norm``: gain or offset of a layer or batch normalisation
    * ``projection``: a matrix used as ``x @ P``
    * ``vector``: a bias, or the class token
    * ``scalar``: the logarithm of the logit scale, or the logit bias
    * ``statistic``: running mean or variance of a batch normalisation, without gradient
    * ``counter``: int64 number of batches a batch normalisation has seen, without gradient or effect
    """

    name: str
    shape: Shape
    kind: Kind

    @property
    def trainable(self) -> bool:
        return self.kind not in ("statistic", "counter")


@lru_cache(maxsize=64)
def parameters(architecture: Architecture) -> tuple[Parameter, ...]:
    """Every parameter of ``architecture``, in the order of OpenAI's state dictionary."""
    return tuple(_parameters(architecture))


def _parameters(architecture: Architecture) -> Iterator[Parameter]:
    text, image = architecture.text, architecture.image
    yield Parameter("positional_embedding", (text.context_length, text.width), "embedding")
    yield Parameter("text_projection", (text.width, architecture.embed_dim), "projection")
    yield Parameter("logit_scale", (), "scalar")
    if architecture.logit_bias:
        yield Parameter("logit_bias", (), "scalar")
    if isinstance(image, VisionTransformer):
        yield from _vision_transformer(image, architecture.embed_dim)
    else:
        yield from _modified_resnet(image, architecture.embed_dim)
    yield from _transformer("transformer", text)
    yield Parameter("token_embedding.weight", (text.vocabulary_size, text.width), "embedding")
    yield from _norm("ln_final", text.width)


def _vision_transformer(image: VisionTransformer, embed_dim: int) -> Iterator[Parameter]:
    yield Parameter("visual.class_embedding", (image.width,), "vector")
    yield Parameter("visual.positional_embedding", (image.grid**2 + 1, image.width), "embedding")
    yield Parameter("visual.proj", (image.width, embed_dim), "projection")
    yield Parameter("visual.conv1.weight", (image.width, 3, image.patch, image.patch), "conv")
    yield from _norm("visual.ln_pre", image.width)
    yield from _transformer("visual.transformer", image)
    yield from _norm("visual.ln_post", image.width)


def _modified_resnet(image: ModifiedResNet, embed_dim: int) -> Iterator[Parameter]:
    stem = (3, image.width // 2, image.width // 2, image.width)
    for index in (1, 2, 3):
        yield from _conv_norm("visual", f"conv{index}", f"bn{index}", stem[index], stem[index - 1], size=3)
    inputs = image.width
    for stage, blocks in enumerate(image.blocks):
        inner = image.width * 2**stage
        for block in range(blocks):
            prefix = f"visual.layer{stage + 1}.{block}"
            yield from _conv_norm(prefix, "conv1", "bn1", inner, inputs, size=1)
            yield from _conv_norm(prefix, "conv2", "bn2", inner, inner, size=3)
            yield from _conv_norm(prefix, "conv3", "bn3", inner * 4, inner, size=1)
            if block == 0:
                yield from _conv_norm(prefix, "downsample.0", "downsample.1", inner * 4, inputs, size=1)
            inputs = inner * 4
    width = image.feature_width
    yield Parameter("visual.attnpool.positional_embedding", (image.grid**2 + 1, width), "embedding")
    for name, outputs in (("k_proj", width), ("q_proj", width), ("v_proj", width), ("c_proj", embed_dim)):
        yield from _linear(f"visual.attnpool.{name}", outputs, width)


def _transformer(prefix: str, tower: Transformer) -> Iterator[Parameter]:
    width = tower.width
    for layer in range(tower.layers):
        block = f"{prefix}.resblocks.{layer}"
        yield Parameter(f"{block}.attn.in_proj_weight", (3 * width, width), "linear")
        yield Parameter(f"{block}.attn.in_proj_bias", (3 * width,), "vector")
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_1", width)
        yield from _linear(f"{block}.mlp.c_fc", tower.mlp_width, width)
        yield from _linear(f"{block}.mlp.c_proj", width, tower.mlp_width)
        yield from _norm(f"{block}.ln_2", width)


def _linear(prefix: str, outputs: int, inputs: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (outputs, inputs), "linear")
    yield Parameter(f"{prefix}.bias", (outputs,), "vector")


def _norm(prefix: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (width,), "norm")
    yield Parameter(f"{prefix}.bias", (width,), "norm")


def _conv_norm(prefix: str, conv: str, norm: str, outputs: int, inputs: int, size: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.{conv}.weight", (outputs, inputs, size, size), "conv")
    yield from _norm(f"{prefix}.{norm}", outputs)
    yield Parameter(f"{prefix}.{norm}.running_mean", (outputs,), "statistic")
    yield Parameter(f"{prefix}.{norm}.running_var", (outputs,), "statistic")
    yield Parameter(f"{prefix}.{norm}.num_batches_tracked", (), "counter")


def count(architecture: Architecture) -> int:
    """The number of trained scalars."""
    return sum(prod(parameter.shape) for parameter in parameters(architecture) if parameter.trainable)


def faults(architecture: Architecture, weights: Mapping[str, Any]) -> list[str]:
    """Everything in which ``weights`` differ from the table of ``architecture``, each as a short phrase, sorted.

    Missing, extra and misshapen tensors, values that are no arrays, dtypes that are not float32, float16 or float64
    (int64 for a counter), and values, or a logit scale, that are not finite numbers in float32 are all found at once.
    An empty list means that the weights fit.
    """
    expected = {parameter.name: parameter for parameter in parameters(architecture)}
    largest = float(np.finfo(np.float32).max)
    found: list[str] = []
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    found += [f"{name} is missing" for name in missing]
    found += [f"{name} is not a parameter of this model" for name in extra]
    for name in sorted(expected.keys() & weights.keys()):
        parameter, array = expected[name], weights[name]
        if not isinstance(array, (np.ndarray, np.generic)):
            found.append(f"{name} is an object of the type {type(array).__name__}, expected a NumPy array")
        elif array.shape != parameter.shape:
            found.append(f"{name} has shape {array.shape}, expected {parameter.shape}")
        elif parameter.kind == "counter":
            if array.dtype != np.int64:
                found.append(f"{name} has dtype {array.dtype}, expected int64")
        elif array.dtype not in (np.float32, np.float16, np.float64):
            found.append(f"{name} has dtype {array.dtype}, expected float32, float16 or float64")
        elif not (-largest <= float(array.min()) and float(array.max()) <= largest):  # false for NaN, too
            found.append(f"{name} holds NaN or infinity in float32")
        elif name == "logit_scale" and not array.item() <= log(largest):
            found.append(f"logit_scale is {array.item():g}, the logarithm of what is infinite in float32")
    return found


def check(architecture: Architecture, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Refuse weights that do not fit ``architecture`` exactly, reporting every fault at once.

    Args:
        source: the file or thing the weights came from, for the message.

    Raises:
        CheckpointError: listing every fault that `faults` finds and, when they fit another named model, its name.
    """
    found = faults(architecture, weights)
    if not found:
        return
    hint = ""
    try:
        actual = infer({name: getattr(array, "shape", ()) for name, array in weights.items()})
    except CheckpointError:
        pass
    else:
        name = name_of(actual)
        if name is not None and actual != architecture:
            hint = f" The weights look like {name}."
    expected = name_of(architecture) or "the model"
    raise CheckpointError(f"{source} does not fit {expected}: {'; '.join(found)}.{hint}")
