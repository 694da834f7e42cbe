"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from backends.torch.inductor import compiled
from backends.torch.layers import apply, attend, linear
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.torch.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower = tower
        self.tokens, self.positions, self.last_nodes, self.groups, self.mask = (
            torch.from_numpy(array) for array in (tree.tokens, tree.positions, tree.last_nodes, tree.groups, tree.mask)
        )

    def forward(self) -> torch.Tensor:
        """Text features [n, embed_dim]."""
        tower = self.tower
        x = tower.token_embedding(self.tokens) + tower.positional_embedding[self.positions]  # [m, d]
        x = x.to(tower.transformer.dtype)
        *blocks, last = tower.transformer.resblocks
        compute = compiled(advance) if tower.transformer.compiled else advance
        for block in blocks:
            x = compute(block, x, self.attend(block.attn, block.ln_1(x)))
        attended = self.attend(last.attn, last.ln_1(x))
        x = tower.ln_final(advance(last, x[self.last_nodes], attended[self.last_nodes]))  # [n, d]
        return x if tower.text_projection is None else x @ tower.text_projection.to(x.dtype)

    def attend(self, attn: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
        """[m, d] -> [m, d], not yet projected: each node over those above it and itself."""
        packed = linear(x, attn.in_proj_weight, attn.in_proj_bias)  # [m, 3 * d]
        q, k, v = F.embedding(self.groups, packed).chunk(3, dim=-1)  # [g, a + k, d]; indexing is slower
        attended = attend(q[:, -self.mask.shape[2] :], k, v, attn.num_heads, self.mask)  # [g, k, d]
        return attended.flatten(0, 1)[: len(x)]


def advance(block: nn.Module, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """[m, d] -> [m, d], what a block gives; ``attended`` [m, d] is not yet projected."""
    x = x + apply(block.attn.out_proj, attended)
    return x + block.mlp(block.ln_2(x))
