"""The towers of Low-resource CLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import LayerNorm, Observed, PatchDropout, Transformer
from backends.paddle.tensors import empty, size
from backends.paddle.towers.text_transformer import TextTransformer
from clip_core.towers import low_resource as core


class LowResourceVisionTransformer(Observed):
    """Patches, a class token, a transformer, a head of two linear layers, a projection."""

    def __init__(self, tower: core.LowResourceVisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.class_embedding = empty(tower.width)
        self.patch_embedding = empty(3 * tower.patch**2, tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.feature_width, embed_dim)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.head_fc = nn.Linear(tower.width, tower.head_width)
        self.head_proj = nn.Linear(tower.head_width, tower.feature_width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        n, grid, patch = size(x, 0), self.tower.grid, self.tower.patch
        x = x.reshape([n, 3, grid, patch, grid, patch])
        x = x.transpose([0, 2, 4, 3, 5, 1]).reshape([n, grid * grid, 3 * patch * patch])
        x = x @ self.patch_embedding.astype(x.dtype)
        x = paddle.concat([self.class_embedding.astype(x.dtype).expand([n, 1, -1]), x], axis=1)
        x = self.ln_pre(x + self.positional_embedding.astype(x.dtype))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x)
        first = paddle.zeros([n], dtype="int64")
        x = self.transformer.pool(x, first)
        x = self.head_proj(self.head_fc(self.ln_post(x)))
        self.observe("head_proj", x)
        return x @ self.proj.astype(x.dtype)


class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower without the biases of queries, keys and values."""

    def __init__(self, tower: core.LowResourceTextTransformer, embed_dim: int) -> None:
        super().__init__(tower, embed_dim, in_proj_bias=False)
