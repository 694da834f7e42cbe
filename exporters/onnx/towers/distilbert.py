"""DistilBERT with the head of simple-clip in ONNX."""

from __future__ import annotations

import numpy as np

from clip_core.backend import Observe, ignore
from clip_core.towers import distilbert as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import MLP, Attention, LayerNorm, MLPHead, Parameters, part, positions_of, rows_of


class PostNormBlock:
    """A transformer block that normalises behind each residual sum."""

    def __init__(self, weights: Parameters, tower: core.DistilBERT) -> None:
        self.attn = Attention(part(weights, "attn"), tower.heads)
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)

    def __call__(self, x: Value, mask: Value) -> Value:
        x = self.ln_1(x + self.attn(x, mask))
        return self.ln_2(x + self.mlp(x))


class DistilBERT:
    """Tokens, blocks in which padding is not seen, the mean over the tokens that are none, a head.

    Text is computed up to the longest of the batch. That is exact.
    """

    def __init__(self, weights: Parameters, tower: core.DistilBERT) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_embedding = LayerNorm(part(weights, "ln_embedding"), tower.epsilon)
        self.resblocks = [PostNormBlock(part(weights, f"resblocks.{index}"), tower) for index in range(tower.layers)]
        self.head = MLPHead(part(weights, "head"))

    def __call__(self, text: Value, observe: Observe = ignore) -> Value:
        graph = text.graph
        one = graph.integers(1)
        seen = graph.node("Not", graph.node("Equal", text, graph.constant(np.int64(self.tower.padding))))
        length = (seen.astype(np.int64) * (positions_of(text) + one)).max().reshape(1)
        seen = seen.until(length, axis=1)
        x = rows_of(self.token_embedding, text.until(length, axis=1))  # [n, l, d]
        x = self.ln_embedding(x + self.positional_embedding.until(length, axis=0))
        observe("ln_embedding", x)
        mask = seen.expand(1).expand(1)  # [n, 1, 1, l]
        for index, block in enumerate(self.resblocks):
            x = block(x, mask)
            observe(f"resblocks.{index}", x)
        shares = seen.astype(graph.dtype)
        shares = shares / shares.sum(axis=1, keepdims=True)
        x = (x * shares.expand(2)).sum(axis=1)
        observe("pooled", x)
        return self.head(x)
