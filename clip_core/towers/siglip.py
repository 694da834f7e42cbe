"""The towers of SigLIP and SigLIP 2 at a fixed resolution (arXiv 2303.15343 and 2502.14786).

Initial values are those of their code (github.com/google-research/big_vision, ``models/vit.py`` and
``models/proj/image_text/text_transformer.py``), from normal distributions where it cuts these off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from clip_core.errors import CheckpointError, ClipError
from clip_core.parameters import ZERO, Normal, Parameter, Uniform, linear, norm, transformer
from clip_core.pixels import Pixels
from clip_core.towers.parts import (
    BLOCK_NOISES,
    MLP_RATIO,
    PATCH_NOISES,
    Activation,
    ImageTower,
    Shapes,
    TextTower,
    check_heads,
    fill,
    transformer_multiplications,
)

SIGLIP_PIXELS = Pixels((0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
# The published models with heads of another width than 64, by their own width.
_HEADS = {1152: 16, 1536: 16}


@dataclass(frozen=True)
class SiglipVisionTransformer(ImageTower):
    """A Vision Transformer without a class token; a learnt probe attends over its patches.

    It ends in its own width, without a projection. Pixels to the right and below that are no whole patch are passed
    over, as of 384 pixels in patches of 14.
    """

    kind: ClassVar[str] = "siglip"
    title: ClassVar[str] = "SigLIP ViT"
    mark: ClassVar[str] = "conv1.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon", "resolution", "pixels")
    noises: ClassVar[tuple[str, ...]] = PATCH_NOISES

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    heads: int  # of the blocks and of the attention pool
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "gelu_tanh"
    epsilon: float = 1e-6  # of every layer normalisation
    pixels: Pixels = SIGLIP_PIXELS

    def __post_init__(self) -> None:
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.resolution // self.patch

    @property
    def output_width(self) -> int:
        return self.width

    def check(self, place: str) -> None:
        super().check(place)
        if self.grid < 1:
            raise ClipError(f"The image resolution {self.resolution} is smaller than its patch ({self.patch}).")
        check_heads(place, self, self.heads)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width = self.width
        yield Parameter("positional_embedding", (self.grid**2, width), "embedding", Normal(width**-0.5))
        kernel = (width, 3, self.patch, self.patch)
        yield Parameter("conv1.weight", kernel, "conv", Normal((3 * self.patch**2) ** -0.5))
        yield Parameter("conv1.bias", (width,), "vector")
        yield from _started(transformer("transformer.resblocks", width, self.layers, self.mlp_width))
        yield from norm("ln_post", width)
        yield Parameter("attnpool.probe", (width,), "vector", Uniform((6 / (1 + width)) ** 0.5))
        yield from _started(self._attention_pool())

    def _attention_pool(self) -> Iterator[Parameter]:
        width = self.width
        yield Parameter("attnpool.attn.in_proj_weight", (3 * width, width), "linear")
        yield Parameter("attnpool.attn.in_proj_bias", (3 * width,), "vector")
        yield from linear("attnpool.attn.out_proj", width, width, ZERO)
        yield from norm("attnpool.ln", width)
        yield from linear("attnpool.mlp.c_fc", self.mlp_width, width, ZERO)
        yield from linear("attnpool.mlp.c_proj", width, self.mlp_width, ZERO)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"positional_embedding": (self.grid, 0)}

    def multiplications(self, embed_dim: int) -> int:
        patches, width = self.grid**2, self.width
        embedding = patches * 3 * self.patch**2 * width
        pool = 2 * patches * (width**2 + width) + 2 * width**2 + 2 * width * self.mlp_width
        return embedding + transformer_multiplications(self, patches) + pool

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "attnpool.probe" in shapes

    @classmethod
    def infer(cls, shapes: Shapes) -> SiglipVisionTransformer:
        if len(shapes.found.get("conv1.weight", ())) == 2:
            raise CheckpointError(
                "The weights are those of a NaFlex model of SigLIP 2, whose pictures have different shapes, and here "
                "all have one; take the SigLIP 2 model for one resolution."
            )
        width, _, patch, _ = shapes.shape("conv1.weight", 4)
        resolution = shapes.grid("positional_embedding", leading=0) * patch
        return cls(resolution, patch, **_blocks(shapes, width))

    def summary(self) -> str:
        return (
            f"ViT of {self.layers} layers, {self.width} wide, {self.heads} heads, patches of {self.patch}, "
            "attention pool"
        )


@dataclass(frozen=True)
class SiglipTextTransformer(TextTower):
    """A text tower whose tokens all see each other, padding included; its feature is the state of the last one."""

    kind: ClassVar[str] = "siglip"
    title: ClassVar[str] = "SigLIP Transformer"
    mark: ClassVar[str] = "token_embedding.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon")
    noises: ClassVar[tuple[str, ...]] = BLOCK_NOISES

    context_length: int
    vocabulary_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "gelu_tanh"
    epsilon: float = 1e-6  # of every layer normalisation

    def __post_init__(self) -> None:
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

    @property
    def shortest_length(self) -> int:
        return self.context_length

    def check(self, place: str) -> None:
        super().check(place)
        check_heads(place, self, self.heads)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width, spread = self.width, Normal(self.width**-0.5)
        yield Parameter("positional_embedding", (self.context_length, width), "embedding", spread)
        yield from _started(transformer("transformer.resblocks", width, self.layers, self.mlp_width))
        yield Parameter("token_embedding.weight", (self.vocabulary_size, width), "embedding", spread)
        yield from norm("ln_final", width)
        yield from linear("text_projection", embed_dim, width, spread)

    def multiplications(self, embed_dim: int) -> int:
        return transformer_multiplications(self, self.context_length) + self.width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "token_embedding.weight" in shapes and "text_projection.bias" in shapes

    @classmethod
    def infer_embed_dim(cls, shapes: Shapes) -> int:
        return shapes.shape("text_projection.weight", 2)[0]

    @classmethod
    def infer(cls, shapes: Shapes) -> SiglipTextTransformer:
        vocabulary_size, width = shapes.shape("token_embedding.weight", 2)
        context_length = shapes.shape("positional_embedding", 2)[0]
        return cls(context_length, vocabulary_size, **_blocks(shapes, width))

    def summary(self) -> str:
        return f"transformer of {self.layers} layers, {self.width} wide, {self.heads} heads, without a mask"


def _blocks(shapes: Shapes, width: int) -> dict[str, Any]:
    """The fields of the blocks, with the heads of the published models."""
    found = shapes.transformer("transformer.resblocks.", width)
    return found | {"heads": _HEADS.get(width, found["heads"])}


def _started(parameters: Iterator[Parameter]) -> Iterator[Parameter]:
    """Matrices with Glorot's initial values, each of the three in a packed one by itself, and biases of MLPs near 0."""
    for parameter in parameters:
        if parameter.kind == "linear":
            outputs, inputs = parameter.shape
            outputs //= 3 if parameter.name.endswith("in_proj_weight") else 1
            yield replace(parameter, initial=Uniform((6 / (outputs + inputs)) ** 0.5))
        elif ".mlp." in parameter.name:
            yield replace(parameter, initial=Normal(1e-6))
        else:
            yield parameter
