"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.numpy.layers import Attention, attend, matmul, pick
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.numpy.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes, and [n, l, d] those along the paths."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower, self.tree = tower, tree
        positions = np.arange(tree.paths.shape[1])
        self.mask = positions <= positions[:, None]  # [l, l]
        self.last_mask = self.mask[tree.ends][:, None, None]  # [n, 1, 1, l]

    def __call__(self) -> np.ndarray:
        """Text features [n, embed_dim]."""
        tower, tree = self.tower, self.tree
        x = tower.token_embedding[tree.tokens] + tower.positional_embedding[tree.positions]  # [m, d]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = x + self.attend(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = x[tree.last_nodes] + self.attend_at_ends(last.attn, last.ln_1(x))
        x = tower.ln_final(x + last.mlp(last.ln_2(x)))
        return x @ tower.text_projection

    def attend(self, attn: Attention, x: np.ndarray) -> np.ndarray:
        """[m, d] -> [m, d]: each node over those above it and itself."""
        q, k, v = self.along_paths(attn, x)
        x = attend(q, k, v, attn.heads, self.mask)
        return attn.out_proj(x.reshape(-1, x.shape[-1])[self.tree.places])  # [n, l, d] -> [n * l, d] -> [m, d]

    def attend_at_ends(self, attn: Attention, x: np.ndarray) -> np.ndarray:
        """[m, d] -> [n, d]: the last token of each text over the text."""
        q, k, v = self.along_paths(attn, x)
        x = attend(pick(q, self.tree.ends)[:, None], k, v, attn.heads, self.last_mask)
        return attn.out_proj(x[:, 0])

    def along_paths(self, attn: Attention, x: np.ndarray) -> list[np.ndarray]:
        """[m, d] -> queries, keys and values, each [n, l, d]."""
        return np.split((matmul(x, attn.in_proj_weight.T) + attn.in_proj_bias)[self.tree.paths], 3, axis=-1)
