"""The text tower of OpenAI's CLIP. Its parts are the model's own, so that names stay those of OpenAI's package."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.parameters import Normal, Parameter, norm, transformer
from clip_core.towers.parts import (
    BLOCK_NOISES,
    MLP_RATIO,
    Activation,
    Shapes,
    TextTower,
    check_heads,
    check_token,
    doubts_of_transformer,
    fill,
    transformer_multiplications,
)


@dataclass(frozen=True)
class TextTransformer(TextTower):
    """The causal text tower; its feature is the state at the first end-of-text token."""

    kind: ClassVar[str] = "transformer"
    title: ClassVar[str] = "Transformer"
    mark: ClassVar[str] = "token_embedding.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon", "end_of_text")
    noises: ClassVar[tuple[str, ...]] = BLOCK_NOISES
    at_root: ClassVar[bool] = True

    context_length: int
    vocabulary_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    end_of_text: int = None  # type: ignore[assignment]  # a token; None stands for the last of the vocabulary

    def __post_init__(self) -> None:
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)
        fill(self, "end_of_text", lambda: self.vocabulary_size - 1)

    @property
    def required_token(self) -> int:
        return self.end_of_text

    def check(self, place: str) -> None:
        super().check(place)
        check_token(f"{place}.end_of_text", self.end_of_text, self.vocabulary_size)
        check_heads(place, self, self.heads)

    def doubts(self, place: str, assumed: Collection[str]) -> Iterator[str]:
        yield from super().doubts(place, assumed)
        yield from doubts_of_transformer(self, place, assumed)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width = self.width
        yield Parameter("positional_embedding", (self.context_length, width), "embedding", Normal(0.01))
        yield Parameter("text_projection", (width, embed_dim), "projection", Normal(width**-0.5))
        yield from transformer("transformer.resblocks", width, self.layers, self.mlp_width)
        yield Parameter("token_embedding.weight", (self.vocabulary_size, width), "embedding", Normal(0.02))
        yield from norm("ln_final", width)

    def multiplications(self, embed_dim: int) -> int:
        return transformer_multiplications(self, self.context_length) + self.width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return all(name in shapes for name in ("token_embedding.weight", "positional_embedding", "text_projection"))

    @classmethod
    def infer_embed_dim(cls, shapes: Shapes) -> int:
        return shapes.shape("text_projection", 2)[1]

    @classmethod
    def infer(cls, shapes: Shapes) -> TextTransformer:
        vocabulary_size, width = shapes.shape("token_embedding.weight", 2)
        context_length = shapes.shape("positional_embedding", 2)[0]
        return cls(context_length, vocabulary_size, **shapes.transformer("transformer.resblocks.", width))

    def summary(self) -> str:
        return f"transformer of {self.layers} layers, {self.width} wide, {self.heads} heads"
