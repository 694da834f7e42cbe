"""The towers of Low-resource CLIP in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import LayerNorm, Observed, PatchDropout, Transformer
from backends.torch.towers.text_transformer import TextTransformer
from clip_core.towers import low_resource as core


class LowResourceVisionTransformer(Observed):
    """Patches, a class token, a transformer, a head of two linear layers, a projection."""

    def __init__(self, tower: core.LowResourceVisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.class_embedding = nn.Parameter(torch.empty(tower.width))
        self.patch_embedding = nn.Parameter(torch.empty(3 * tower.patch**2, tower.width))
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2 + 1, tower.width))
        self.proj = nn.Parameter(torch.empty(tower.feature_width, embed_dim))
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.head_fc = nn.Linear(tower.width, tower.head_width)
        self.head_proj = nn.Linear(tower.head_width, tower.feature_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, grid, patch = x.shape[0], self.tower.grid, self.tower.patch
        x = x.reshape(n, 3, grid, patch, grid, patch)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(n, grid * grid, 3 * patch * patch)
        x = x @ self.patch_embedding.to(x.dtype)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(n, 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x, self.training)
        first = torch.zeros(n, dtype=torch.long, device=x.device)
        x = self.transformer.pool(x, first, self.transformer.is_whole(x))
        x = self.head_proj(self.head_fc(self.ln_post(x)))
        self.observe("head_proj", x)
        return x @ self.proj.to(x.dtype)


class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower without the biases of queries, keys and values."""

    def __init__(self, tower: core.LowResourceTextTransformer, embed_dim: int) -> None:
        super().__init__(tower, embed_dim, in_proj_bias=False)
