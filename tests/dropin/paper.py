"""CLIP's forward pass written out from the paper, in PyTorch's functions: what the drop-in tests compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

Weights = Mapping[str, torch.Tensor]
Seen = dict[str, torch.Tensor]  # what each part gives, by its name


class Paper:
    """One model.

    Args:
        architecture: of a Vision Transformer and OpenAI's text tower.
        weights: parameter name -> tensor.

    Attributes:
        seen: what each part gave when it was last computed: blocks [l, n, d].
    """

    def __init__(self, architecture: Any, weights: Weights) -> None:
        self.architecture, self.weights = architecture, weights
        self.seen: Seen = {}

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        self.seen[name] = F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
        return self.seen[name]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        self.seen[name] = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return self.seen[name]

    def attention(self, name: str, x: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
        """[l, n, d] -> [l, n, d], head by head."""
        width = x.shape[-1] // heads
        weights, biases = self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"]
        q, k, v = (x @ weights.T + biases).chunk(3, dim=-1)
        results = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("qnd,knd->nqk", q[..., part], k[..., part]) / width**0.5
            scores = scores if mask is None else scores + mask
            results.append(torch.einsum("nqk,knd->qnd", scores.softmax(dim=-1), v[..., part]))
        out = f"{name}.out_proj"
        self.seen[name] = torch.cat(results, dim=-1) @ self.weights[f"{out}.weight"].T + self.weights[f"{out}.bias"]
        return self.seen[name]

    def block(self, name: str, x: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attention(f"{name}.attn", self.norm(f"{name}.ln_1", x), heads, mask)
        hidden = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", x))
        self.seen[f"{name}.mlp.gelu"] = hidden * torch.sigmoid(1.702 * hidden)
        added = self.linear(f"{name}.mlp.c_proj", self.seen[f"{name}.mlp.gelu"])
        self.seen[f"{name}.mlp"] = added
        self.seen[name] = x + added
        return self.seen[name]

    def transformer(
        self, name: str, x: torch.Tensor, tower: Any, mask: torch.Tensor | None = None, until: int | None = None
    ) -> torch.Tensor:
        """[l, n, d] -> [l, n, d], by the blocks before ``until``."""
        for index in range(tower.layers)[:until]:
            x = self.block(f"{name}.resblocks.{index}", x, tower.heads, mask)
        self.seen[f"{name}.resblocks"] = self.seen[name] = x
        return x

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, r, r] -> [l, n, d], what the blocks are given."""
        weights, tower = self.weights, self.architecture.image
        patches = F.unfold(pixels, tower.patch, stride=tower.patch).transpose(1, 2)  # [n, l, 3 * patch * patch]
        x = patches @ weights["visual.conv1.weight"].flatten(1).T
        start = weights["visual.class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([start, x], dim=1) + weights["visual.positional_embedding"]
        return self.norm("visual.ln_pre", x).transpose(0, 1)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.transformer("visual.transformer", self.image_tokens(pixels), self.architecture.image)
        self.seen["visual"] = self.norm("visual.ln_post", x[0]) @ self.weights["visual.proj"]
        return self.seen["visual"]

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        self.seen["token_embedding"] = self.weights["token_embedding.weight"][text]
        return self.encode_embedded(self.seen["token_embedding"], text)

    def encode_embedded(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Embedded tokens [n, l, d] in the places of ``text`` [n, l] -> features."""
        x = (x + self.weights["positional_embedding"][: x.shape[1]]).transpose(0, 1)
        mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
        x = self.transformer("transformer", x, self.architecture.text, mask).transpose(0, 1)
        x = self.norm("ln_final", x)
        return x[torch.arange(len(x)), text.argmax(dim=-1)] @ self.weights["text_projection"]

    def __call__(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The logits per image [n, m]."""
        image, text = (F.normalize(x, dim=-1) for x in (self.encode_image(pixels), self.encode_text(text)))
        return self.weights["logit_scale"].exp() * image @ text.T


def gradient(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """That of the sum of what is computed, with respect to ``x``."""
    x = x.clone().requires_grad_()
    compute(x).sum().backward()
    assert x.grad is not None
    return x.grad
