"""The Vision Transformer of OpenAI's CLIP in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import LayerNorm, Transformer, matmul, part
from clip_core.backend import Observe, below, ignore
from clip_core.naming import Weights
from clip_core.towers import vision_transformer as core


class VisionTransformer:
    """Patches, a class token, a transformer, a projection (section 2.4 of the paper)."""

    def __init__(self, weights: Weights, tower: core.VisionTransformer) -> None:
        self.tower = tower
        self.class_embedding = weights["class_embedding"]
        self.positional_embedding = weights["positional_embedding"]
        self.proj = weights["proj"]
        self.conv1 = weights["conv1.weight"]
        self.ln_pre = LayerNorm(part(weights, "ln_pre"), tower.epsilon)
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)

    def __call__(self, x: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        n, grid, patch, width = len(x), self.tower.grid, self.tower.patch, self.tower.width
        x = x.reshape(n, 3, grid, patch, grid, patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)  # [n, grid * grid, 3 * patch * patch]
        x = matmul(x, self.conv1.reshape(width, -1).T)
        token = np.broadcast_to(self.class_embedding, (n, 1, width))
        x = self.ln_pre(np.concatenate([token, x], axis=1) + self.positional_embedding)
        observe("ln_pre", x)
        x = self.transformer(x, np.zeros(n, np.intp), causal=False, observe=below("transformer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return x @ self.proj
