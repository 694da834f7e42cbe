"""The two MLP-Mixers of Mixer CLIP in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import LayerNorm, Mixer, ends_of, matmul, part
from clip_core.backend import Observe, below, ignore
from clip_core.naming import Weights
from clip_core.towers import mixer as core


class VisionMixer:
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, weights: Weights, tower: core.VisionMixer) -> None:
        self.tower = tower
        self.class_embedding = weights["class_embedding"]
        self.proj = weights["proj"]
        self.conv1 = weights["conv1.weight"]
        self.ln_pre = LayerNorm(part(weights, "ln_pre"), tower.epsilon)
        self.mixer = Mixer(part(weights, "mixer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)

    def __call__(self, x: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        n, grid, patch, width = len(x), self.tower.grid, self.tower.patch, self.tower.width
        x = x.reshape(n, 3, grid, patch, grid, patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)  # [n, grid * grid, 3 * patch * patch]
        x = matmul(x, self.conv1.reshape(width, -1).T)
        x = self.ln_pre(np.concatenate([np.broadcast_to(self.class_embedding, (n, 1, width)), x], axis=1))
        observe("ln_pre", x)
        x = self.mixer(x, np.zeros(n, np.intp), observe=below("mixer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return x @ self.proj


class TextMixer:
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, weights: Weights, tower: core.TextMixer) -> None:
        self.tower = tower
        self.text_projection = weights["text_projection"]
        self.token_embedding = weights["token_embedding.weight"]
        self.mixer = Mixer(part(weights, "mixer"), tower)
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)

    def __call__(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        end, _ = ends_of(text, self.tower)
        x = self.token_embedding[text]  # [n, l, d]
        observe("token_embedding", x)
        x = self.mixer(x, end, observe=below("mixer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return x @ self.text_projection
