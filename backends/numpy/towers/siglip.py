"""The towers of SigLIP in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import MLP, Attention, LayerNorm, Linear, Transformer, part
from clip_core.backend import Observe, below, ignore
from clip_core.naming import Weights
from clip_core.towers import siglip as core


class AttentionPool:
    """A learnt probe attends over all tokens: [n, l, d] -> [n, d]."""

    def __init__(self, weights: Weights, tower: core.SiglipVisionTransformer) -> None:
        self.probe = weights["probe"]
        self.attn = Attention(part(weights, "attn"), tower.heads)
        self.ln = LayerNorm(part(weights, "ln"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = self.attn.forward_queries(self._queries(x), x, None)[:, 0]
        return x + self.mlp(self.ln(x))

    def attention_maps(self, x: np.ndarray) -> np.ndarray:
        """[n, l, d] -> [n, heads, 1, l]: how much the probe looks at each token."""
        return self.attn.maps(self._queries(x), x)

    def _queries(self, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.probe, (len(x), 1, len(self.probe)))  # [n, 1, d]


class SiglipVisionTransformer:
    """Patches, a transformer, an attention pool."""

    def __init__(self, weights: Weights, tower: core.SiglipVisionTransformer) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.conv1 = Linear({"weight": weights["conv1.weight"].reshape(tower.width, -1), "bias": weights["conv1.bias"]})
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)
        self.attnpool = AttentionPool(part(weights, "attnpool"), tower)

    def __call__(self, x: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        n, grid, patch = len(x), self.tower.grid, self.tower.patch
        x = x[:, :, : grid * patch, : grid * patch].reshape(n, 3, grid, patch, grid, patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)  # [n, grid * grid, 3 * patch * patch]
        x = self.conv1(x) + self.positional_embedding
        observe("conv1", x)
        x = self.transformer(x, None, causal=False, observe=below("transformer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return self.attnpool(x)


class SiglipTextTransformer:
    """Tokens, a transformer without a mask, the state of the last token, a linear layer."""

    def __init__(self, weights: Weights, tower: core.SiglipTextTransformer) -> None:
        self.positional_embedding = weights["positional_embedding"]
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)
        self.text_projection = Linear(part(weights, "text_projection"))

    def __call__(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        x = self.token_embedding[text] + self.positional_embedding  # [n, l, d]
        observe("token_embedding", x)
        last = np.full(len(x), x.shape[1] - 1)
        x = self.transformer(x, last, causal=False, observe=below("transformer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return self.text_projection(x)
