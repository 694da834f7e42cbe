"""The towers of SigLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import embed_patches, for_each, reshape, section
from backends.nnabla.layers import (
    MLP,
    Attention,
    Conv2d,
    Embedding,
    LayerNorm,
    Linear,
    Observed,
    PatchDropout,
    Transformer,
    checked,
)
from backends.nnabla.module import Module, empty
from clip_core.towers import siglip as core


class AttentionPool(Module):
    """A learnt probe attends over all tokens: [n, l, d] -> [n, d]."""

    def __init__(self, tower: core.SiglipVisionTransformer) -> None:
        self.probe = empty(tower.width)
        self.attn = Attention(tower.width, tower.heads)
        self.ln = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        n, _, width = x.shape
        x = reshape(self.attn.forward_queries(self._queries(x), x, None), (n, width))
        return x + self.mlp(self.ln(x))

    def attention_maps(self, x: nn.Variable) -> nn.Variable:
        """[n, l, d] -> [n, heads, 1, l]: how much the probe looks at each token."""
        return self.attn.maps(self._queries(x), x)

    def _queries(self, x: nn.Variable) -> nn.Variable:
        return for_each(x, self.probe)  # [n, 1, d]


class SiglipVisionTransformer(Observed):
    """Patches, a transformer, an attention pool."""

    def __init__(self, tower: core.SiglipVisionTransformer, embed_dim: int) -> None:
        self.covered = tower.grid * tower.patch  # pixels along one side that are in whole patches
        self.positional_embedding = empty(tower.grid**2, tower.width)
        self.conv1 = Conv2d(3, tower.width, tower.patch, stride=tower.patch, bias=True)
        self.patch_dropout = PatchDropout(leading=0)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.attnpool = AttentionPool(tower)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        if self.covered < x.shape[2]:
            x = section(section(x, 0, self.covered, axis=2), 0, self.covered, axis=3)
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = x + F.reshape(self.conv1.bias, (1, 1, -1))
        x = x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape))
        self.observe("conv1", x)
        x = self.patch_dropout(x)
        x = self.transformer(x, None, causal=False)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return self.attnpool(x)


class SiglipTextTransformer(Observed):
    """Tokens, a transformer without a mask, the state of the last token, a linear layer."""

    def __init__(self, tower: core.SiglipTextTransformer, embed_dim: int) -> None:
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.transformer = Transformer(tower)
        self.token_embedding = Embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)
        self.text_projection = Linear(tower.width, embed_dim)

    def __call__(self, text: nn.Variable) -> nn.Variable:
        x = self.token_embedding(checked(text, self.tower))
        x = x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape))  # [n, l, d]
        self.observe("token_embedding", x)
        x = self.transformer(x, x.shape[1] - 1, causal=False)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return self.text_projection(x)
