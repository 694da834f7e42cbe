"""The towers of SigLIP in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import (
    MLP,
    LayerNorm,
    Observed,
    PatchDropout,
    Transformer,
    attend_queries,
    attention_of,
    checked,
    embed_patches,
    embedding,
    maps_of,
)
from clip_core.towers import siglip as core


class AttentionPool(nn.Module):
    """A learnt probe attends over all tokens: [n, l, d] -> [n, d]."""

    def __init__(self, tower: core.SiglipVisionTransformer) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(tower.width))
        self.attn = attention_of(tower.width, tower.heads)
        self.ln = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = attend_queries(self.attn, self._queries(x), x, None).squeeze(1)
        return x + self.mlp(self.ln(x))

    def attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        """[n, l, d] -> [n, heads, 1, l]: how much the probe looks at each token."""
        return maps_of(self.attn, self._queries(x), x)

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        return self.probe.to(x.dtype).expand(x.shape[0], 1, -1)  # [n, 1, d]


class SiglipVisionTransformer(Observed):
    """Patches, a transformer, an attention pool."""

    def __init__(self, tower: core.SiglipVisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2, tower.width))
        self.conv1 = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch)
        self.patch_dropout = PatchDropout(leading=0)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.attnpool = AttentionPool(tower)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = embed_patches(self.conv1, x)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = x + self.positional_embedding.to(x.dtype)
        self.observe("conv1", x)
        x = self.patch_dropout(x, self.training)
        x = self.transformer.pool(x, None, self.transformer.is_whole(x))
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return self.attnpool(x)


class SiglipTextTransformer(Observed):
    """Tokens, a transformer without a mask, the state of the last token, a linear layer."""

    def __init__(self, tower: core.SiglipTextTransformer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = nn.Parameter(torch.empty(tower.context_length, tower.width))
        self.transformer = Transformer(tower)
        self.token_embedding = embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)
        self.text_projection = nn.Linear(tower.width, embed_dim)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(checked(text, self.tower)) + self.positional_embedding  # [n, l, d]
        x = x.to(self.transformer.dtype)
        self.observe("token_embedding", x)
        last = torch.full((x.shape[0],), x.shape[1] - 1, device=x.device)
        x = self.transformer.pool(x, last, self.transformer.is_whole(x))
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return self.text_projection(x)
