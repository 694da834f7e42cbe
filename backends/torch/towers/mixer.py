"""The two MLP-Mixers of Mixer CLIP in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import LayerNorm, Mixer, Observed, embed_patches, embedding, ends_of
from clip_core.towers import mixer as core


class VisionMixer(Observed):
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, tower: core.VisionMixer, embed_dim: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(tower.width))
        self.proj = nn.Parameter(torch.empty(tower.width, embed_dim))
        self.conv1 = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch, bias=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.mixer = Mixer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = embed_patches(self.conv1, x)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = self.ln_pre(torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1))
        self.observe("ln_pre", x)
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        x = self.mixer(x, first)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return x @ self.proj.to(x.dtype)


class TextMixer(Observed):
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, tower: core.TextMixer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.text_projection = nn.Parameter(torch.empty(tower.width, embed_dim))
        self.token_embedding = embedding(tower.vocabulary_size, tower.width)
        self.mixer = Mixer(tower)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        end, _ = ends_of(text, self.tower)
        x = self.token_embedding(text).to(self.mixer.dtype)  # [n, l, d]
        self.observe("token_embedding", x)
        x = self.mixer(x, end)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return x @ self.text_projection.to(x.dtype)
