"""The two MLP-Mixers of Mixer CLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import mixer as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import LayerNorm, Mixer, Parameters, ends_of, part, patches, rows_of, with_token


class VisionMixer:
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, weights: Parameters, tower: core.VisionMixer) -> None:
        self.class_embedding = weights["class_embedding"]
        self.proj = weights["proj"]
        self.conv1 = weights["conv1.weight"]
        self.ln_pre = LayerNorm(part(weights, "ln_pre"), tower.epsilon)
        self.mixer = Mixer(part(weights, "mixer"), tower)
        self.ln_post = LayerNorm(part(weights, "ln_post"), tower.epsilon)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        x = self.ln_pre(with_token(self.class_embedding, patches(x, self.conv1)))
        observe("ln_pre", x)
        x = self.mixer(x, 0, observe=below("mixer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return x @ self.proj


class TextMixer:
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, weights: Parameters, tower: core.TextMixer) -> None:
        self.tower = tower
        self.text_projection = weights["text_projection"]
        self.token_embedding = weights["token_embedding.weight"]
        self.mixer = Mixer(part(weights, "mixer"), tower)
        self.ln_final = LayerNorm(part(weights, "ln_final"), tower.epsilon)

    def __call__(self, text: Value, observe: Observe = ignore) -> Value:
        end, _ = ends_of(text, self.tower)
        x = rows_of(self.token_embedding, text)  # [n, l, d]
        observe("token_embedding", x)
        x = self.mixer(x, end, observe=below("mixer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return x @ self.text_projection
