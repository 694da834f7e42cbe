"""The towers of SigLIP in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import MLP, Attention, LayerNorm, Observed, PatchDropout, Transformer, checked
from backends.paddle.tensors import empty, size
from clip_core.towers import siglip as core


class AttentionPool(nn.Layer):
    """A learnt probe attends over all tokens: [n, l, d] -> [n, d]."""

    def __init__(self, tower: core.SiglipVisionTransformer) -> None:
        super().__init__()
        self.probe = empty(tower.width)
        self.attn = Attention(tower.width, tower.heads)
        self.ln = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.attn.forward_queries(self._queries(x), x, None).squeeze(1)
        return x + self.mlp(self.ln(x))

    def attention_maps(self, x: paddle.Tensor) -> paddle.Tensor:
        """[n, l, d] -> [n, heads, 1, l]: how much the probe looks at each token."""
        return self.attn.maps(self._queries(x), x)

    def _queries(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.probe.astype(x.dtype).expand([size(x, 0), 1, -1])  # [n, 1, d]


class SiglipVisionTransformer(Observed):
    """Patches, a transformer, an attention pool."""

    def __init__(self, tower: core.SiglipVisionTransformer, embed_dim: int) -> None:
        super().__init__()
        self.positional_embedding = empty(tower.grid**2, tower.width)
        self.conv1 = nn.Conv2D(3, tower.width, tower.patch, stride=tower.patch)
        self.patch_dropout = PatchDropout(leading=0)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)
        self.attnpool = AttentionPool(tower)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.conv1(x).flatten(2).transpose([0, 2, 1])  # [n, 3, r, r] -> [n, grid * grid, d]
        x = x + self.positional_embedding.astype(x.dtype)
        self.observe("conv1", x)
        x = self.patch_dropout(x)
        x = self.transformer(x)
        x = self.ln_post(x)
        self.observe("ln_post", x)
        return self.attnpool(x)


class SiglipTextTransformer(Observed):
    """Tokens, a transformer without a mask, the state of the last token, a linear layer."""

    def __init__(self, tower: core.SiglipTextTransformer, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.transformer = Transformer(tower)
        self.token_embedding = nn.Embedding(tower.vocabulary_size, tower.width)
        self.ln_final = LayerNorm(tower.width, tower.epsilon)
        self.text_projection = nn.Linear(tower.width, embed_dim)

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        x = self.token_embedding(checked(text, self.tower)) + self.positional_embedding  # [n, l, d]
        x = x.astype(self.transformer.dtype)
        self.observe("token_embedding", x)
        last = paddle.full([size(x, 0)], x.shape[1] - 1, "int64")
        x = self.transformer.pool(x, last)
        x = self.ln_final(x)
        self.observe("ln_final", x)
        return self.text_projection(x)
