"""The text tower of OpenAI's CLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import LayerNorm, Observed, Transformer, ends_of, is_inference, looked_at, pick
from backends.paddle.tensors import empty, size, to_array
from backends.paddle.towers.token_tree import TreeTransformer
from clip_core.batching import tree_of
from clip_core.towers import text_transformer as core


class TextTransformer(Observed):
    """Tokens, a causal transformer, the state at the end of text, a projection.

    Text is computed up to the longest end of text of the batch, since causal attention lets nothing behind it reach the
    feature. That is exact. In inference on a CPU, prefixes that texts have in common are computed once.

    Its parts may be those of a model, which calls ``forward`` on itself then.
    """

    def __init__(self, tower: core.TextTransformer, embed_dim: int, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.text_projection = empty(tower.width, embed_dim)
        self.transformer = Transformer(tower, in_proj_bias, causal=True)
        self.token_embedding = nn.Embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        end, last = ends_of(text, self.tower)
        whole = looked_at(self.transformer, self.token_embedding, self.ln_final)
        if not whole and is_inference(self.transformer, text) and len(text) > 1:
            return TreeTransformer(self, tree_of(to_array(text[:, : last + 1]), to_array(end))).forward()
        length = size(text, 1) if whole else last + 1
        x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]  # [n, l, d]
        x = x.astype(self.transformer.dtype)
        self.observe("token_embedding", x)
        x = self.transformer(x, None if whole else end)
        x = self.ln_final(x)  # [n, l, d] if all are looked at, else [n, d]
        if whole:
            x = pick(x, end)
        self.observe("ln_final", x)
        return x @ self.text_projection.astype(x.dtype)
