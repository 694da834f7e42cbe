"""The Vision Transformer of OpenAI's CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import embed_patches, project, put_in_front
from backends.nnabla.layers import Conv2d, LayerNorm, Observed, PatchDropout, Transformer
from backends.nnabla.module import empty
from clip_core.towers import vision_transformer as core


class VisionTransformer(Observed):
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

    def __call__(self, x: nn.Variable) -> nn.Variable:
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = put_in_front(x, self.class_embedding)
        x = self.ln_pre(x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape)))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x)
        x = self.transformer(x, 0, causal=False)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return project(x, self.proj)
