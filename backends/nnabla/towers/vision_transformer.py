"""The Vision Transformer of OpenAI's CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import embed_patches, project
from backends.nnabla.layers import Conv2d, LayerNorm, PatchDropout, Transformer
from backends.nnabla.module import Module, empty
from backends.nnabla.tensors import to_tensor
from clip_core.backend import Observe, below, ignore
from clip_core.towers import vision_transformer as core


class VisionTransformer(Module):
    """Patches, a class token, a transformer, a projection (section 2.4 of the paper)."""

    def __init__(self, tower: core.VisionTransformer, embed_dim: int) -> None:
        self.class_embedding = empty(tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = Conv2d(3, tower.width, tower.patch, stride=tower.patch)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, observe: Observe = ignore) -> nn.Variable:
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        n, _, width = x.shape
        token = F.broadcast(F.reshape(self.class_embedding, (1, 1, width)), (n, 1, width))
        x = F.concatenate(token, x, axis=1)
        x = self.ln_pre(x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape)))
        observe("ln_pre", x)
        x = self.patch_dropout(x)
        first = to_tensor(np.zeros(n, np.int64))
        x = self.transformer(x, first, causal=False, observe=below("transformer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return project(x, self.proj)
