"""The towers of Low-resource CLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import low_resource as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import LayerNorm, Linear, Parameters, Transformer, part, with_token
from exporters.onnx.towers.text_transformer import TextTransformer


class LowResourceVisionTransformer:
    """Patches, a class token, a transformer, a head of two linear layers, a projection."""

    def __init__(self, weights: Parameters, tower: core.LowResourceVisionTransformer) -> None:
        self.tower = tower
        self.class_embedding = weights["class_embedding"]
        self.patch_embedding = weights["patch_embedding"]
        self.positional_embedding = weights["positional_embedding"]
        self.proj = weights["proj"]
        self.ln_pre = LayerNorm(part(weights, "ln_pre"), tower.epsilon)
        self.transformer = Transformer(part(weights, "transformer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)
        self.head_fc = Linear(part(weights, "head_fc"))
        self.head_proj = Linear(part(weights, "head_proj"))

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        grid, patch = self.tower.grid, self.tower.patch
        x = x.reshape(0, 3, grid, patch, grid, patch)
        x = x.transpose(0, 2, 4, 3, 5, 1).reshape(0, grid * grid, -1)  # [n, grid * grid, patch * patch * 3]
        x = with_token(self.class_embedding, x @ self.patch_embedding)
        x = self.ln_pre(x + self.positional_embedding)
        observe("ln_pre", x)
        x = self.transformer(x, 0, causal=False, observe=below("transformer.", observe))
        x = self.head_proj(self.head_fc(self.ln_post(x)))
        observe("head_proj", x)
        return x @ self.proj


class LowResourceTextTransformer(TextTransformer):
    """OpenAI's text tower without the biases of queries, keys and values."""

    def __init__(self, weights: Parameters, tower: core.LowResourceTextTransformer) -> None:
        super().__init__(weights, tower, in_proj_bias=False)
