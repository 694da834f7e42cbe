"""The two MLP-Mixers of Mixer CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn

from backends.nnabla.functions import embed_patches, project, put_in_front
from backends.nnabla.layers import Conv2d, Embedding, LayerNorm, Mixer, Observed, ends_of
from backends.nnabla.module import empty
from clip_core.towers import mixer as core


class VisionMixer(Observed):
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, tower: core.VisionMixer, embed_dim: int) -> None:
        self.class_embedding = empty(tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = Conv2d(3, tower.width, tower.patch, stride=tower.patch)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.mixer = Mixer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = self.ln_pre(put_in_front(x, self.class_embedding))
        self.observe("ln_pre", x)
        x = self.mixer(x, 0)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return project(x, self.proj)


class TextMixer(Observed):
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, tower: core.TextMixer, embed_dim: int) -> None:
        self.tower = tower
        self.text_projection = empty(tower.width, embed_dim)
        self.token_embedding = Embedding(tower.vocabulary_size, tower.width)
        self.mixer = Mixer(tower)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, text: nn.Variable) -> nn.Variable:
        text, end, _ = ends_of(text, self.tower)
        x = self.token_embedding(text)  # [n, l, d]
        self.observe("token_embedding", x)
        x = self.mixer(x, end)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return project(x, self.text_projection)
