"""The forward pass of OpenAI's text tower over a tree of tokens, in which common prefixes of texts are computed once.

Causal attention makes that exact, and no padding is computed. Its twins are the files of this name in other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import attend, causal_mask, linear, mask_until, pick, project, reshape
from backends.nnabla.layers import Attention, chunk
from backends.nnabla.tensors import to_tensor
from clip_core.batching import TokenTree

if TYPE_CHECKING:
    from backends.nnabla.towers.text_transformer import TextTransformer


class TreeTransformer:
    """Computes with the parts of ``tower``: [m, d] are the states of the nodes, and [n, l, d] those along the paths."""

    def __init__(self, tower: TextTransformer, tree: TokenTree) -> None:
        self.tower = tower
        self.tokens, self.positions, self.paths, self.ends, self.last_nodes, self.places = (
            to_tensor(array)
            for array in (tree.tokens, tree.positions, tree.paths, tree.ends, tree.last_nodes, tree.places)
        )
        length = self.paths.shape[1]
        self.mask, self.last_mask = causal_mask(length), mask_until(self.ends, length)  # [1, 1, l, l], [n, 1, 1, l]

    def __call__(self) -> nn.Variable:
        """Text features [n, embed_dim]."""
        tower = self.tower
        x = tower.token_embedding(self.tokens) + F.embed(self.positions, tower.positional_embedding)  # [m, d]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = x + self.attend(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = F.embed(self.last_nodes, x) + self.attend_at_ends(last.attn, last.ln_1(x))
        x = tower.ln_final(x + last.mlp(last.ln_2(x)))
        return project(x, tower.text_projection)

    def attend(self, attn: Attention, x: nn.Variable) -> nn.Variable:
        """[m, d] -> [m, d]: each node over those above it and itself."""
        q, k, v = self.along_paths(attn, x)
        x = attend(q, k, v, attn.heads, self.mask)
        return attn.out_proj(F.embed(self.places, reshape(x, (-1, attn.width))))  # [n, l, d] -> [n * l, d] -> [m, d]

    def attend_at_ends(self, attn: Attention, x: nn.Variable) -> nn.Variable:
        """[m, d] -> [n, d]: the last token of each text over the text."""
        q, k, v = self.along_paths(attn, x)
        n, _, width = q.shape
        x = attend(reshape(pick(q, self.ends), (n, 1, width)), k, v, attn.heads, self.last_mask)
        return attn.out_proj(reshape(x, (n, width)))

    def along_paths(self, attn: Attention, x: nn.Variable) -> list[nn.Variable]:
        """[m, d] -> queries, keys and values, each [n, l, d]."""
        return chunk(F.embed(self.paths, linear(x, attn.in_proj_weight, attn.in_proj_bias)), 3)
