"""The Vision Transformer of OpenAI's CLIP, and of all models that share its shape (ViT-B, L, H, g, bigG)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.parameters import Normal, Parameter, Waves, conv, norm, transformer
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.towers.parts import (
    MLP_RATIO,
    PATCH_NOISES,
    Activation,
    ImageTower,
    Shapes,
    check_heads,
    check_resolution,
    doubts_of_transformer,
    fill,
    transformer_multiplications,
)


@dataclass(frozen=True)
class VisionTransformer(ImageTower):
    """An image tower that cuts the picture into ``patch`` x ``patch`` pixels and attends over them (ViT).

    Its feature is the state of a class token. The forward pass is section 3.1 of arXiv 2010.11929, with a layer
    normalisation before the blocks (section 2.4 of the CLIP paper).
    """

    kind: ClassVar[str] = "vit"
    title: ClassVar[str] = "ViT"
    mark: ClassVar[str] = "conv1.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon", "pixels")
    noises: ClassVar[tuple[str, ...]] = PATCH_NOISES

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    heads: int
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    pixels: Pixels = OPENAI_PIXELS

    def __post_init__(self) -> None:
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

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
        width = self.width
        yield Parameter("class_embedding", (width,), "vector", Normal(width**-0.5))
        yield Parameter("positional_embedding", (self.grid**2 + 1, width), "embedding", Waves(self.grid, leading=1))
        yield Parameter("proj", (width, embed_dim), "projection", Normal(width**-0.5))
        yield conv("conv1", width, 3, self.patch)
        yield from norm("ln_pre", width)
        yield from transformer("transformer.resblocks", width, self.layers, self.mlp_width)
        yield from norm("ln_post", width)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"positional_embedding": (self.grid, 1)}

    def multiplications(self, embed_dim: int) -> int:
        patches = self.grid**2
        embedding = patches * 3 * self.patch**2 * self.width
        return embedding + transformer_multiplications(self, patches + 1) + self.width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return all(name in shapes for name in ("conv1.weight", "class_embedding", "positional_embedding"))

    @classmethod
    def infer(cls, shapes: Shapes) -> VisionTransformer:
        width, _, patch, _ = shapes.shape("conv1.weight", 4)
        resolution = shapes.grid("positional_embedding") * patch
        return cls(resolution, patch, **shapes.transformer("transformer.resblocks.", width))

    def summary(self) -> str:
        return f"ViT of {self.layers} layers, {self.width} wide, {self.heads} heads, patches of {self.patch}"
