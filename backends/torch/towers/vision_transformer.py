"""The Vision Transformer of OpenAI's CLIP in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import LayerNorm, Observed, PatchDropout, Transformer, embed_patches
from clip_core.towers import vision_transformer as core


class VisionTransformer(Observed):
    """Patches, a class token, a transformer, a projection (section 2.4 of the paper)."""

    def __init__(self, tower: core.VisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = tower.resolution, embed_dim
        self.class_embedding = nn.Parameter(torch.empty(tower.width))
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2 + 1, tower.width))
        self.proj = nn.Parameter(torch.empty(tower.width, embed_dim))
        self.conv1 = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch, bias=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.patch_dropout = PatchDropout(leading=1)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = embed_patches(self.conv1, x)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        self.observe("ln_pre", x)
        x = self.patch_dropout(x, self.training)
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        x = self.transformer.pool(x, first, self.transformer.is_whole(x))
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return x if self.proj is None else x @ self.proj.to(x.dtype)
