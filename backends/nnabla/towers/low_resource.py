"""The towers of Low-resource CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import cut_patches, project
from backends.nnabla.layers import LayerNorm, Linear, PatchDropout, Transformer
from backends.nnabla.module import Module, empty
from backends.nnabla.tensors import to_tensor
from backends.nnabla.towers.text_transformer import TextTransformer
from clip_core.backend import Observe, below, ignore
from clip_core.towers import low_resource as core


class LowResourceVisionTransformer(Module):
    """Patches, a class token, a transformer, a head of two linear layers, a projection."""

    def __init__(self, tower: core.LowResourceVisionTransformer, embed_dim: int) -> None:
        self.tower = tower
        self.class_embedding = empty(tower.width)
        self.patch_embedding = empty(3 * tower.patch**2, tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.feature_width, embed_dim)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.head_fc = Linear(tower.width, tower.head_width)
        self.head_proj = Linear(tower.head_width, tower.feature_width)

    def __call__(self, x: nn.Variable, observe: Observe = ignore) -> nn.Variable:
        x = project(cut_patches(x, self.tower.patch), self.patch_embedding)  # [n, grid * grid, d]
        n, _, width = x.shape
        token = F.broadcast(F.reshape(self.class_embedding, (1, 1, width)), (n, 1, width))
        x = F.concatenate(token, x, axis=1)
        x = self.ln_pre(x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape)))
        observe("ln_pre", x)
        x = self.patch_dropout(x)
        first = to_tensor(np.zeros(n, np.int64))
        x = self.transformer(x, first, causal=False, observe=below("transformer.", observe))
        x = self.head_proj(self.head_fc(self.ln_post(x)))
        observe("head_proj", x)
        return project(x, self.proj)


class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower without the biases of queries, keys and values."""

    def __init__(self, tower: core.LowResourceTextTransformer, embed_dim: int) -> None:
        super().__init__(tower, embed_dim, in_proj_bias=False)
