"""The text tower of OpenAI's CLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import LayerNorm, Transformer, ends_of
from backends.paddle.tensors import empty
from clip_core.backend import Observe, below, ignore
from clip_core.towers import text_transformer as core


class TextTransformer(nn.Layer):
    """Tokens, a causal transformer, the state at the end of text, a projection.

    Text is computed up to the longest end of text of the batch, since causal attention lets nothing behind it reach the
    feature. That is exact.
    """

    def __init__(self, tower: core.TextTransformer, embed_dim: int, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.text_projection = empty(tower.width, embed_dim)
        self.transformer = Transformer(tower, in_proj_bias)
        self.token_embedding = nn.Embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def forward(self, text: paddle.Tensor, observe: Observe = ignore) -> paddle.Tensor:
        end, last = ends_of(text, self.tower)
        x = self.token_embedding(text[:, : last + 1]) + self.positional_embedding[: last + 1]  # [n, l, d]
        x = x.astype(self.transformer.dtype)
        observe("token_embedding", x)
        x = self.transformer(x, end, causal=True, observe=below("transformer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return x @ self.text_projection.astype(x.dtype)
