"""The text tower of OpenAI's CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import project, section
from backends.nnabla.layers import Embedding, LayerNorm, Observed, Transformer, ends_of, is_inference
from backends.nnabla.module import empty
from backends.nnabla.tensors import to_array
from backends.nnabla.towers.token_tree import TreeTransformer
from clip_core.batching import tree_of
from clip_core.towers import text_transformer as core


class TextTransformer(Observed):
    """Tokens, a causal transformer, the state at the end of text, a projection.

    Text is computed up to the longest end of text of the batch, since causal attention lets nothing behind it reach the
    feature. That is exact. In inference with ``auto_forward`` on a CPU, prefixes that texts have in common are computed
    once. A static graph computes it in its full length.
    """

    def __init__(self, tower: core.TextTransformer, embed_dim: int, in_proj_bias: bool = True) -> None:
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.text_projection = empty(tower.width, embed_dim)
        self.transformer = Transformer(tower, in_proj_bias)
        self.token_embedding = Embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, text: nn.Variable) -> nn.Variable:
        text, end, last = ends_of(text, self.tower)
        if is_inference(self.transformer) and text.shape[0] > 1:
            return TreeTransformer(self, tree_of(to_array(text)[:, : last + 1], to_array(end).astype(np.int64)))()
        length = last + 1
        x = self.token_embedding(text if length == text.shape[1] else section(text, 0, length, axis=1))
        x = x + F.reshape(self.positional_embedding[:length], (1, length, -1))  # [n, l, d]
        self.observe("token_embedding", x)
        x = self.transformer(x, end, causal=True)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return project(x, self.text_projection)
