"""The two MLP-Mixers of Mixer CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import embed_patches, project
from backends.nnabla.layers import Conv2d, Embedding, LayerNorm, Mixer, ends_of
from backends.nnabla.module import Module, empty
from backends.nnabla.tensors import to_tensor
from clip_core.backend import Observe, below, ignore
from clip_core.towers import mixer as core


class VisionMixer(Module):
    """Patches, a class token, Mixer blocks, a projection."""

    def __init__(self, tower: core.VisionMixer, embed_dim: int) -> None:
        self.class_embedding = empty(tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = Conv2d(3, tower.width, tower.patch, stride=tower.patch)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.mixer = Mixer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, observe: Observe = ignore) -> nn.Variable:
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        n, _, width = x.shape
        token = F.broadcast(F.reshape(self.class_embedding, (1, 1, width)), (n, 1, width))
        x = self.ln_pre(F.concatenate(token, x, axis=1))
        observe("ln_pre", x)
        first = to_tensor(np.zeros(n, np.int64))
        x = self.mixer(x, first, observe=below("mixer.", observe))
        x = self.ln_post(x)
        observe("ln_post", x)
        return project(x, self.proj)


class TextMixer(Module):
    """Tokens, Mixer blocks, the state at the end of text, a projection.

    Every token is mixed into every other, so text is computed in its full length.
    """

    def __init__(self, tower: core.TextMixer, embed_dim: int) -> None:
        self.tower = tower
        self.text_projection = empty(tower.width, embed_dim)
        self.token_embedding = Embedding(tower.vocabulary_size, tower.width)
        self.mixer = Mixer(tower)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, text: nn.Variable, observe: Observe = ignore) -> nn.Variable:
        text, end, _ = ends_of(text, self.tower)
        x = self.token_embedding(text)  # [n, l, d]
        observe("token_embedding", x)
        x = self.mixer(x, end, observe=below("mixer.", observe))
        x = self.ln_final(x)
        observe("ln_final", x)
        return project(x, self.text_projection)
