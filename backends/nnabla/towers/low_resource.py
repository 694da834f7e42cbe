"""The towers of Low-resource CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import cut_patches, project, put_in_front
from backends.nnabla.layers import LayerNorm, Linear, Observed, PatchDropout, Transformer
from backends.nnabla.module import empty
from backends.nnabla.towers.text_transformer import TextTransformer
from clip_core.towers import low_resource as core


class LowResourceVisionTransformer(Observed):
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

    def __call__(self, x: nn.Variable) -> nn.Variable:
        x = project(cut_patches(x, self.tower.patch), self.patch_embedding)  # [n, grid * grid, d]
        x = put_in_front(x, self.class_embedding)
        x = self.ln_pre(x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape)))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x)
        x = self.transformer(x, 0, causal=False)
        x = self.head_proj(self.head_fc(self.ln_post(x)))
        self.observe("head_proj", x)
        return project(x, self.proj)


class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower without the biases of queries, keys and values."""

    def __init__(self, tower: core.LowResourceTextTransformer, embed_dim: int) -> None:
        super().__init__(tower, embed_dim, in_proj_bias=False)
