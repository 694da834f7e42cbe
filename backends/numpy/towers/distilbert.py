"""DistilBERT with the head of simple-clip in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import MLP, Attention, LayerNorm, MLPHead, part
from clip_core.backend import Observe, ignore
from clip_core.naming import Weights
from clip_core.towers import distilbert as core


class PostNormBlock:
    """A transformer block that normalises behind each residual sum."""

    def __init__(self, weights: Weights, tower: core.DistilBERT) -> None:
        self.attn = Attention(part(weights, "attn"), tower.heads)
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)

    def __call__(self, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        x = self.ln_1(x + self.attn(x, mask))
        return self.ln_2(x + self.mlp(x))


class DistilBERT:
    """Tokens, blocks in which padding is not seen, the mean over the tokens that are none, a head.

    Text is computed up to the longest of the batch. That is exact.
    """

    def __init__(self, weights: Weights, tower: core.DistilBERT) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_embedding = LayerNorm(part(weights, "ln_embedding"), tower.epsilon)
        self.resblocks = [PostNormBlock(part(weights, f"resblocks.{index}"), tower) for index in range(tower.layers)]
        self.head = MLPHead(part(weights, "head"))

    def __call__(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        seen = text != self.tower.padding
        length = int(seen.any(axis=0).nonzero()[0].max()) + 1
        seen = seen[:, :length]
        x = self.token_embedding[text[:, :length]] + self.positional_embedding[:length]  # [n, l, d]
        x = self.ln_embedding(x)
        observe("ln_embedding", x)
        mask = seen[:, None, None]  # [n, 1, 1, l]
        for index, block in enumerate(self.resblocks):
            x = block(x, mask)
            observe(f"resblocks.{index}", x)
        shares = seen / seen.sum(axis=1, keepdims=True)
        x = (x * shares.astype(x.dtype)[:, :, None]).sum(axis=1)
        observe("pooled", x)
        return self.head(x)
