"""The text tower of OpenAI's CLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import text_transformer as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import LayerNorm, Parameters, Transformer, ends_of, part, rows_of


class TextTransformer:
    """Tokens, a causal transformer, the state at the end of text, a projection.

    Text is computed up to the longest end of text of the batch, since causal attention lets nothing behind it reach the
    feature. That is exact.
    """

    def __init__(self, weights: Parameters, tower: core.TextTransformer, in_proj_bias: bool = True) -> None:
        self.tower = tower
        self.positional_embedding = weights["positional_embedding"]
        self.text_projection = weights["text_projection"]
        self.transformer = Transformer(part(weights, "transformer"), tower, in_proj_bias)
        self.token_embedding = weights["token_embedding.weight"]
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)

    def __call__(self, text: Value, observe: Observe = ignore) -> Value:
        end, length = ends_of(text, self.tower)
        x = rows_of(self.token_embedding, text.until(length, axis=1))  # [n, l, d]
        x = x + self.positional_embedding.until(length, axis=0)
        observe("token_embedding", x)
        x = self.transformer(x, end, causal=True, observe=below("transformer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return x @ self.text_projection
