"""Parameters of towers: their kinds and initial values, and those of the layers that several towers have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

HEAD = "head."  # of a tower whose network was made for something else: the parameters that lead into the joint space
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """An initial value without chance."""

    value: float

    def draw(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal:
    """Initial values from a normal distribution around 0."""

    deviation: float

    def draw(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        return generator.standard_normal(shape) * self.deviation


@dataclass(frozen=True)
class Uniform:
    """Initial values spread evenly from ``-bound`` to ``bound``."""

    bound: float

    def draw(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        return generator.uniform(-self.bound, self.bound, shape)


@dataclass(frozen=True)
class Waves:
    """Sines and cosines of a patch's column and row, after ``leading`` rows of zeros (arXiv 2205.01580).

    A small model learns shapes many times sooner from them than from small random numbers. The amplitude makes
    positions about half as strong as the patches beside them.
    """

    grid: int  # patches along one side
    leading: int  # tokens in front of the patches

    def draw(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        frequencies = 100.0 ** -np.linspace(0, 1, shape[1] // 4, endpoint=False)  # radians per patch
        rows, columns = np.mgrid[: self.grid, : self.grid].reshape(2, -1, 1) * frequencies
        positions = np.zeros(shape, np.float32)
        waves = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
        positions[self.leading :, : waves.shape[1]] = 0.7 * waves
        return positions


Initial = Constant | Normal | Uniform | Waves
ZERO, ONE = Constant(0.0), Constant(1.0)
Kind = Literal["linear", "conv", "embedding", "norm", "projection", "vector", "scalar", "statistic", "counter"]
Place = Literal["image", "text", "joint"]


@dataclass(frozen=True)
class Parameter:
    """One named tensor of a model.

    ``kind`` is what transposes and weight-decay groups go by:

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
    initial: Initial = ZERO
    tower: Place = "joint"  # the tower that it is of, or the space of both

    @property
    def trainable(self) -> bool:
        return self.kind not in ("statistic", "counter")


def transformer(prefix: str, width: int, layers: int, mlp_width: int) -> Iterator[Parameter]:
    """The parameters of pre-norm blocks, with initial values by OpenAI's scheme."""
    residual = Normal(width**-0.5 * (2 * layers) ** -0.5)  # of the two layers that write to the residual stream
    for layer in range(layers):
        block = f"{prefix}.{layer}"
        yield Parameter(f"{block}.attn.in_proj_weight", (3 * width, width), "linear", Normal(width**-0.5))
        yield Parameter(f"{block}.attn.in_proj_bias", (3 * width,), "vector")
        yield from linear(f"{block}.attn.out_proj", width, width, residual)
        yield from norm(f"{block}.ln_1", width)
        yield from linear(f"{block}.mlp.c_fc", mlp_width, width, Normal((2 * width) ** -0.5))
        yield from linear(f"{block}.mlp.c_proj", width, mlp_width, residual)
        yield from norm(f"{block}.ln_2", width)


def linear(prefix: str, outputs: int, inputs: int, initial: Initial, bias: Initial = ZERO) -> Iterator[Parameter]:
    """A matrix and its bias."""
    yield Parameter(f"{prefix}.weight", (outputs, inputs), "linear", initial)
    yield Parameter(f"{prefix}.bias", (outputs,), "vector", bias)


def norm(prefix: str, width: int, gain: Initial = ONE) -> Iterator[Parameter]:
    """Gain and offset of a normalisation."""
    yield Parameter(f"{prefix}.weight", (width,), "norm", gain)
    yield Parameter(f"{prefix}.bias", (width,), "norm")


def conv(name: str, outputs: int, inputs: int, size: int, initial: Initial | None = None) -> Parameter:
    """A kernel without bias, with PyTorch's initial values unless there are others."""
    shape = (outputs, inputs, size, size)
    return Parameter(f"{name}.weight", shape, "conv", initial or Uniform(prod(shape[1:]) ** -0.5))


def torchvision_conv(name: str, outputs: int, inputs: int, size: int) -> Parameter:
    """A kernel without bias, with the initial values of torchvision's networks (arXiv 1502.01852, section 2.2)."""
    return conv(name, outputs, inputs, size, Normal((2 / (outputs * size**2)) ** 0.5))


def batch_norm(prefix: str, channels: int, gain: Initial = ONE) -> Iterator[Parameter]:
    """Gain, offset, running statistics and counter of a batch normalisation."""
    yield from norm(prefix, channels, gain)
    yield Parameter(f"{prefix}.running_mean", (channels,), "statistic")
    yield Parameter(f"{prefix}.running_var", (channels,), "statistic", ONE)
    yield Parameter(f"{prefix}.num_batches_tracked", (), "counter")


def mlp_head(width: int, embed_dim: int) -> Iterator[Parameter]:
    """Two matrices without bias, with PyTorch's initial values, as simple-clip ends both of its towers."""
    yield Parameter(f"{HEAD}c_fc.weight", (width, width), "linear", Uniform(width**-0.5))
    yield Parameter(f"{HEAD}c_proj.weight", (embed_dim, width), "linear", Uniform(width**-0.5))
