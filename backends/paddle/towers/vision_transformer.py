"""The Vision Transformer of OpenAI's CLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import LayerNorm, Observed, PatchDropout, Transformer
from backends.paddle.tensors import empty, size
from clip_core.towers import vision_transformer as core


class VisionTransformer(Observed):
    """Patches, a class token, a transformer, a projection (section 2.4 of the paper)."""

    def __init__(self, tower: core.VisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.class_embedding = empty(tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = nn.Conv2D(3, tower.width, tower.patch, stride=tower.patch, bias_attr=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.conv1(x).flatten(2).transpose([0, 2, 1])  # [n, 3, r, r] -> [n, grid * grid, d]
        x = paddle.concat([self.class_embedding.astype(x.dtype).expand([size(x, 0), 1, -1]), x], axis=1)
        x = self.ln_pre(x + self.positional_embedding.astype(x.dtype))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x)
        first = paddle.zeros([size(x, 0)], dtype="int64")
        x = self.transformer.pool(x, first)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return x @ self.proj.astype(x.dtype)
