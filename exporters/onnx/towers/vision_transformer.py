"""The Vision Transformer of OpenAI's CLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import vision_transformer as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import LayerNorm, Parameters, Transformer, part, patches, with_token


class VisionTransformer:
    """Patches, a class token, a transformer, a projection (section 2.4 of the paper)."""

    def __init__(self, weights: Parameters, tower: core.VisionTransformer) -> None:
        self.class_embedding = weights["class_embedding"]
        self.positional_embedding = weights["positional_embedding"]
        self.proj = weights["proj"]
        self.conv1 = weights["conv1.weight"]
        self.ln_pre = LayerNorm(part(weights, "ln_pre"), tower.epsilon)
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        x = patches(x, self.conv1)  # [n, grid * grid, d]
        x = self.ln_pre(with_token(self.class_embedding, x) + self.positional_embedding)
        observe("ln_pre", x)
        x = self.transformer(x, 0, causal=False, observe=below("transformer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return x @ self.proj
