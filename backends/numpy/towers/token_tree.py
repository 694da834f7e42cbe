"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.numpy.layers import Attention, attend, matmul
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.numpy.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower, self.tree = tower, tree

    def __call__(self) -> np.ndarray:
        """Text features [n, embed_dim]."""
        tower, tree = self.tower, self.tree
        x = tower.token_embedding[tree.tokens] + tower.positional_embedding[tree.positions]  # [m, d]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = x + block.attn.out_proj(self.attend(block.attn, block.ln_1(x)))
            x = x + block.mlp(block.ln_2(x))
        attended = self.attend(last.attn, last.ln_1(x))[tree.last_nodes]  # [n, d]
        x = x[tree.last_nodes] + last.attn.out_proj(attended)
        x = tower.ln_final(x + last.mlp(last.ln_2(x)))
        return x @ tower.text_projection

    def attend(self, attn: Attention, x: np.ndarray) -> np.ndarray:
        """[m, d] -> [m, d], not yet projected: each node over those above it and itself."""
        packed = matmul(x, attn.in_proj_weight.T, attn.in_proj_bias)
        q, k, v = np.split(packed[self.tree.groups], 3, axis=-1)  # [g, a + k, d]
        attended = attend(q[:, -self.tree.mask.shape[2] :], k, v, attn.heads, self.tree.mask)  # [g, k, d]
        return attended.reshape(-1, x.shape[1])[: len(x)]
