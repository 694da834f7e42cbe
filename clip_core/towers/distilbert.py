"""DistilBERT with the head that simple-clip puts on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.parameters import Normal, Parameter, linear, mlp_head, norm
from clip_core.towers.parts import (
    MLP_RATIO,
    Activation,
    Shapes,
    TextTower,
    check_heads,
    check_token,
    fill,
    transformer_multiplications,
)

_DRAWN = Normal(0.02)  # as transformers' DistilBertConfig.initializer_range has it


@dataclass(frozen=True)
class DistilBERT(TextTower):
    """A text tower whose blocks normalise behind each residual sum; every token sees all that is no padding.

    Its feature is the mean of the states of all tokens that are no padding, through two matrices with a ReLU between
    them. The blocks are those of BERT (arXiv 1810.04805, 1910.01108).
    """

    kind: ClassVar[str] = "distilbert"
    title: ClassVar[str] = "DistilBERT"
    mark: ClassVar[str] = "ln_embedding.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "heads", "epsilon", "padding")

    context_length: int = 512
    vocabulary_size: int = 30522
    width: int = 768
    layers: int = 6
    heads: int = 12
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "gelu"
    epsilon: float = 1e-12  # of every layer normalisation
    padding: int = 0  # a token

    def __post_init__(self) -> None:
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

    @property
    def padding_token(self) -> int:
        return self.padding

    def check(self, place: str) -> None:
        super().check(place)
        check_token(f"{place}.padding", self.padding, self.vocabulary_size)
        check_heads(place, self, self.heads)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        width = self.width
        yield Parameter("positional_embedding", (self.context_length, width), "embedding", _DRAWN)
        yield Parameter("token_embedding.weight", (self.vocabulary_size, width), "embedding", _DRAWN)
        yield from norm("ln_embedding", width)
        for layer in range(self.layers):
            block = f"resblocks.{layer}"
            yield Parameter(f"{block}.attn.in_proj_weight", (3 * width, width), "linear", _DRAWN)
            yield Parameter(f"{block}.attn.in_proj_bias", (3 * width,), "vector")
            yield from linear(f"{block}.attn.out_proj", width, width, _DRAWN)
            yield from norm(f"{block}.ln_1", width)
            yield from linear(f"{block}.mlp.c_fc", self.mlp_width, width, _DRAWN)
            yield from linear(f"{block}.mlp.c_proj", width, self.mlp_width, _DRAWN)
            yield from norm(f"{block}.ln_2", width)
        yield from mlp_head(width, embed_dim)

    def multiplications(self, embed_dim: int) -> int:
        head = self.width * (self.width + embed_dim)
        return transformer_multiplications(self, self.context_length) + head

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "ln_embedding.weight" in shapes

    @classmethod
    def infer_embed_dim(cls, shapes: Shapes) -> int:
        return shapes.shape("head.c_proj.weight", 2)[0]

    @classmethod
    def infer(cls, shapes: Shapes) -> DistilBERT:
        vocabulary_size, width = shapes.shape("token_embedding.weight", 2)
        context_length = shapes.shape("positional_embedding", 2)[0]
        fields = shapes.transformer("resblocks.", width)
        if width % cls.heads == 0:  # BERT's small models have as many heads as the large ones
            fields["heads"] = cls.heads
        return cls(context_length, vocabulary_size, **fields)

    def summary(self) -> str:
        return f"DistilBERT of {self.layers} layers, {self.width} wide, {self.heads} heads"
