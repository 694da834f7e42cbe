"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import add, attend, chunk, linear, project, reshape, section
from backends.nnabla.layers import Attention
from backends.nnabla.tensors import to_tensor
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.nnabla.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower = tower
        self.tokens, self.positions, self.last_nodes, self.groups, self.mask = (
            to_tensor(array)
            for array in (tree.tokens, tree.positions, tree.last_nodes, tree.groups, tree.mask.astype(np.float32))
        )

    def __call__(self) -> nn.Variable:
        """Text features [n, embed_dim]."""
        tower = self.tower
        x = add(tower.token_embedding(self.tokens), F.embed(self.positions, tower.positional_embedding))  # [m, d]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = add(x, block.attn.out_proj(self.attend(block.attn, block.ln_1(x))))
            x = add(x, block.mlp(block.ln_2(x)))
        attended = F.embed(self.last_nodes, self.attend(last.attn, last.ln_1(x)))  # [n, d]
        x = add(F.embed(self.last_nodes, x), last.attn.out_proj(attended))
        x = tower.ln_final(add(x, last.mlp(last.ln_2(x))))
        return project(x, tower.text_projection)

    def attend(self, attn: Attention, x: nn.Variable) -> nn.Variable:
        """[m, d] -> [m, d], not yet projected: each node over those above it and itself."""
        q, k, v = chunk(F.embed(self.groups, linear(x, attn.in_proj_weight, attn.in_proj_bias)), 3)  # [g, a + k, d]
        length = self.groups.shape[1]
        q = section(q, length - self.mask.shape[2], length, axis=1)
        attended = reshape(attend(q, k, v, attn.heads, self.mask), (-1, attn.width))  # [g, k, d] -> [g * k, d]
        return section(attended, 0, x.shape[0], axis=0)
