"""The towers of Low-resource CLIP (github.com/cs582/CLIP_implementation): small ViTs with a head, and a text tower.

Numbers, parameters and initial values are that project's. Its text attention is not: there a query is a product of sums
rather than a projection, the softmax goes over the queries, and a token does not see itself. Here it is that of a
causal transformer, so weights that were trained there give other text features than there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar

from clip_core.errors import CheckpointError
from clip_core.parameters import ZERO, Initial, Normal, Parameter, Uniform, linear, norm, transformer
from clip_core.pixels import Pixels
from clip_core.towers.parts import (
    HEAD_WIDTH,
    PATCH_NOISES,
    Activation,
    ImageTower,
    Shapes,
    check_heads,
    check_resolution,
    doubts_of_transformer,
    transformer_multiplications,
)
from clip_core.towers.text_transformer import TextTransformer

FEWEST_HEADS = 8  # of its towers; those wider than 512 have heads of 64
# Its training took pictures from 0 to 255, and its evaluation took them from 0 to 1.
PIXELS = Pixels(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0), interpolation="bilinear")


@dataclass(frozen=True)
class LowResourceVisionTransformer(ImageTower):
    """A Vision Transformer that ends in a head of two linear layers without an activation between them.

    A patch is a row of its pixels, each as red, green and blue, and is embedded by a matrix.
    """

    kind: ClassVar[str] = "low_resource"
    title: ClassVar[str] = "low-resource ViT"
    mark: ClassVar[str] = "patch_embedding"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon", "pixels")
    noises: ClassVar[tuple[str, ...]] = PATCH_NOISES

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    heads: int
    mlp_width: int  # of the MLP inside
    head_width: int  # between the two layers of the head
    feature_width: int = 768  # of the head
    activation: Activation = "gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    pixels: Pixels = PIXELS

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.resolution // self.patch

    def check(self, place: str) -> None:
        super().check(place)
        check_resolution(self.resolution, self.patch, "its patch")
        check_heads(place, self, self.heads)

    def doubts(self, place: str, assumed: Collection[str]) -> Iterator[str]:
        yield from super().doubts(place, assumed)
        yield from doubts_of_transformer(self, place, assumed)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width, standard = self.width, Normal(1.0)
        yield Parameter("class_embedding", (width,), "vector", standard)
        yield Parameter("patch_embedding", (3 * self.patch**2, width), "projection", standard)
        yield Parameter("positional_embedding", (self.grid**2 + 1, width), "embedding", standard)
        yield Parameter("proj", (self.feature_width, embed_dim), "projection", _spread(self.feature_width))
        yield from norm("ln_pre", width)
        blocks = transformer("transformer.resblocks", width, self.layers, self.mlp_width)
        inputs, inside = _spread(width), _spread(self.mlp_width)
        initial = {"attn.in_proj_weight": _xavier(3 * width, width), "attn.out_proj.weight": inputs}
        initial |= {"mlp.c_fc.weight": inputs, "mlp.c_fc.bias": inputs}
        initial |= {"mlp.c_proj.weight": inside, "mlp.c_proj.bias": inside}
        yield from _starting(blocks, initial)
        yield from norm("ln_post", width)
        yield from linear("head_fc", self.head_width, width, inputs, inputs)
        yield from linear("head_proj", self.feature_width, self.head_width, *[_spread(self.head_width)] * 2)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"positional_embedding": (self.grid, 1)}

    def multiplications(self, embed_dim: int) -> int:
        patches = self.grid**2
        embedding = patches * 3 * self.patch**2 * self.width
        head = (self.width + self.feature_width) * self.head_width + self.feature_width * embed_dim
        return embedding + transformer_multiplications(self, patches + 1) + head

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "patch_embedding" in shapes and "head_proj.weight" in shapes

    @classmethod
    def infer(cls, shapes: Shapes) -> LowResourceVisionTransformer:
        rows, width = shapes.shape("patch_embedding", 2)
        patch = isqrt(rows // 3)
        if 3 * patch**2 != rows:
            raise CheckpointError(
                f"The weights do not look like a CLIP: {shapes.prefix}patch_embedding has {rows} rows, expected 3 for "
                "each pixel of a square."
            )
        feature_width, head_width = shapes.shape("head_proj.weight", 2)
        return cls(
            resolution=shapes.grid("positional_embedding") * patch,
            patch=patch,
            **_blocks(shapes, width),
            head_width=head_width,
            feature_width=feature_width,
        )

    def summary(self) -> str:
        return (
            f"low-resource ViT of {self.layers} layers, {self.width} wide, {self.heads} heads, patches of {self.patch}"
        )


@dataclass(frozen=True)
class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower, but for the biases of queries, keys and values, which it does not have."""

    kind: ClassVar[str] = "low_resource"
    title: ClassVar[str] = "low-resource Transformer"
    at_root: ClassVar[bool] = False

    activation: Activation = "gelu"
    end_of_text: int = 1

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width, inside = self.width, self.mlp_width
        initial: dict[str, Initial] = {
            "positional_embedding": _xavier(1, self.context_length, width),
            "text_projection": _spread(width),
            "token_embedding.weight": Normal(1.0),
            # A matrix for each head.
            "attn.in_proj_weight": _xavier(1, width, width // self.heads),
            "attn.out_proj.weight": _xavier(width, width),
            "attn.out_proj.bias": _spread(width),
            "mlp.c_fc.weight": _xavier(inside, width),
            "mlp.c_fc.bias": _spread(width),
            "mlp.c_proj.weight": _xavier(width, inside),
            "mlp.c_proj.bias": _spread(inside),
        }
        parameters = (one for one in super().parameters(embed_dim) if not one.name.endswith("in_proj_bias"))
        yield from _starting(parameters, initial)

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return super().recognises(shapes) and not any(name.endswith("in_proj_bias") for name in shapes)

    @classmethod
    def infer(cls, shapes: Shapes) -> LowResourceTextTransformer:
        vocabulary_size, width = shapes.shape("token_embedding.weight", 2)
        context_length = shapes.shape("positional_embedding", 2)[0]
        return cls(context_length, vocabulary_size, **_blocks(shapes, width))


def _blocks(shapes: Shapes, width: int) -> dict[str, Any]:
    """The fields of the blocks."""
    fields = shapes.transformer("transformer.resblocks.", width)
    heads = max(width // HEAD_WIDTH, FEWEST_HEADS)
    return fields | {"heads": heads if width % heads == 0 else 1}


def _starting(parameters: Iterable[Parameter], initial: Mapping[str, Initial]) -> Iterator[Parameter]:
    """``parameters`` with other initial values, by names in which blocks are left out; biases start at 0."""
    for parameter in parameters:
        name = re.sub(r"^transformer\.resblocks\.\d+\.", "", parameter.name)
        otherwise = ZERO if parameter.kind == "vector" else parameter.initial
        yield replace(parameter, initial=initial.get(name, otherwise))


def _spread(inputs: int) -> Uniform:
    """PyTorch's default for a linear layer of so many inputs."""
    return Uniform(inputs**-0.5)


def _xavier(outputs: int, inputs: int, field: int = 1) -> Uniform:
    """Xavier's initialisation (Glorot and Bengio, 2010) of a tensor [outputs, inputs, field], as PyTorch counts it."""
    return Uniform((6 / ((outputs + inputs) * field)) ** 0.5)
