"""The two MLP-Mixers of Mixer CLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import LayerNorm, Mixer, Observed, ends_of
from backends.paddle.tensors import empty, size
from clip_core.towers import mixer as core


class VisionMixer(Observed):
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, tower: core.VisionMixer, embed_dim: int) -> None:
        super().__init__()
        self.class_embedding = empty(tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = nn.Conv2D(3, tower.width, tower.patch, stride=tower.patch, bias_attr=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.mixer = Mixer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.conv1(x).flatten(2).transpose([0, 2, 1])  # [n, 3, r, r] -> [n, grid * grid, d]
        x = self.ln_pre(paddle.concat([self.class_embedding.astype(x.dtype).expand([size(x, 0), 1, -1]), x], axis=1))
        self.observe("ln_pre", x)
        first = paddle.zeros([size(x, 0)], dtype="int64")
        x = self.mixer.pool(x, first)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return x @ self.proj.astype(x.dtype)


class TextMixer(Observed):
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, tower: core.TextMixer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.text_projection = empty(tower.width, embed_dim)
        self.token_embedding = nn.Embedding(tower.vocabulary_size, tower.width)
        self.mixer = Mixer(tower)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        end, _ = ends_of(text, self.tower)
        x = self.token_embedding(text).astype(self.mixer.dtype)  # [n, l, d]
        self.observe("token_embedding", x)
        x = self.mixer.pool(x, end)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return x @ self.text_projection.astype(x.dtype)
