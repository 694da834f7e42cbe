"""The text tower of OpenAI's CLIP in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import LayerNorm, Observed, Transformer, embedding, ends_of, is_inference, pick
from backends.torch.tensors import to_array
from backends.torch.towers.token_tree import TreeTransformer
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
        self.positional_embedding = nn.Parameter(torch.empty(tower.context_length, tower.width))
        self.text_projection = nn.Parameter(torch.empty(tower.width, embed_dim))
        self.transformer = Transformer(tower, in_proj_bias, tower.context_length)
        self.token_embedding = embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        end, last = ends_of(text, self.tower)
        whole = self.transformer.is_whole(text, self.token_embedding, self.ln_final)
        if not whole and is_inference(self.transformer, text) and len(text) > 1:
            return TreeTransformer(self, tree_of(to_array(text[:, : last + 1]), to_array(end))).forward()
        length = text.shape[1] if whole else last + 1
        x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]  # [n, l, d]
        x = x.to(self.transformer.dtype)
        self.observe("token_embedding", x)
        x = self.transformer.pool(x, None if whole else end, whole)
        x = self.ln_final(x)  # [n, l, d] if all are looked at, else [n, d]
        if whole:
            x = pick(x, end)
        self.observe("ln_final", x)
        return x if self.text_projection is None else x @ self.text_projection.to(x.dtype)
