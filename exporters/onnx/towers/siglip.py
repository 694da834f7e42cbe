"""The towers of SigLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import siglip as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import (
    MLP,
    Attention,
    LayerNorm,
    Linear,
    Parameters,
    Transformer,
    in_each_row,
    part,
    patches,
    rows_of,
)


class AttentionPool:
    """A learnt probe attends over all tokens: [n, l, d] -> [n, d]."""

    def __init__(self, weights: Parameters, tower: core.SiglipVisionTransformer) -> None:
        self.probe = weights["probe"]
        self.attn = Attention(part(weights, "attn"), tower.heads)
        self.ln = LayerNorm(part(weights, "ln"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)

    def __call__(self, x: Value) -> Value:
        x = self.attn.forward_queries(in_each_row(self.probe, x), x, None).at(0, axis=1)
        return x + self.mlp(self.ln(x))


class SiglipVisionTransformer:
    """Patches, a transformer, an attention pool."""

    def __init__(self, weights: Parameters, tower: core.SiglipVisionTransformer) -> None:
        self.positional_embedding = weights["positional_embedding"]
        self.conv1, self.conv1_bias = weights["conv1.weight"], weights["conv1.bias"]
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)
        self.attnpool = AttentionPool(part(weights, "attnpool"), tower)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        x = patches(x, self.conv1, self.conv1_bias) + self.positional_embedding  # [n, grid * grid, d]
        observe("conv1", x)
        x = self.transformer(x, None, causal=False, observe=below("transformer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return self.attnpool(x)


class SiglipTextTransformer:
    """Tokens, a transformer without a mask, the state of the last token, a linear layer."""

    def __init__(self, weights: Parameters, tower: core.SiglipTextTransformer) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)
        self.text_projection = Linear(part(weights, "text_projection"))

    def __call__(self, text: Value, observe: Observe = ignore) -> Value:
        x = rows_of(self.token_embedding, text) + self.positional_embedding  # [n, l, d]
        observe("token_embedding", x)
        last = self.tower.context_length - 1
        x = self.transformer(x, last, causal=False, observe=below("transformer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return self.text_projection(x)
