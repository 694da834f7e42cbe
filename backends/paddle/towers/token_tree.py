"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import paddle
import paddle.nn.functional as F

from backends.paddle.layers import Attention, attend, causal_mask, pick
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.paddle.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes, and [n, l, d] those along the paths."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower = tower
        self.tokens, self.positions, self.paths, self.ends, self.last_nodes, self.places = (
            paddle.to_tensor(array)
            for array in (tree.tokens, tree.positions, tree.paths, tree.ends, tree.last_nodes, tree.places)
        )
        length = self.paths.shape[1]
        self.mask, self.last_mask = causal_mask(length), causal_mask(length, self.ends)  # [l, l], [n, 1, 1, l]

    def forward(self) -> paddle.Tensor:
        """Text features [n, embed_dim]."""
        tower = self.tower
        x = tower.token_embedding(self.tokens) + tower.positional_embedding[self.positions]  # [m, d]
        x = x.astype(tower.transformer.dtype)
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = x + self.attend(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = x[self.last_nodes] + self.attend_at_ends(last.attn, last.ln_1(x))
        x = tower.ln_final(x + last.mlp(last.ln_2(x)))
        return x @ tower.text_projection.astype(x.dtype)

    def attend(self, attn: Attention, x: paddle.Tensor) -> paddle.Tensor:
        """[m, d] -> [m, d]: each node over those above it and itself."""
        q, k, v = self.along_paths(attn, x)
        x = attend(q, k, v, attn.heads, self.mask)
        return attn.out_proj(x.flatten(0, 1)[self.places])  # [n, l, d] -> [n * l, d] -> [m, d]

    def attend_at_ends(self, attn: Attention, x: paddle.Tensor) -> paddle.Tensor:
        """[m, d] -> [n, d]: the last token of each text over the text."""
        q, k, v = self.along_paths(attn, x)
        x = attend(pick(q, self.ends).unsqueeze(1), k, v, attn.heads, self.last_mask)
        return attn.out_proj(x.squeeze(1))

    def along_paths(self, attn: Attention, x: paddle.Tensor) -> list[paddle.Tensor]:
        """[m, d] -> queries, keys and values, each [n, l, d]."""
        return F.linear(x, attn.in_proj_weight, attn.in_proj_bias)[self.paths].chunk(3, axis=-1)
