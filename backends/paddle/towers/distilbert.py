"""DistilBERT with the head of simple-clip in Paddle."""

from __future__ import annotations

import paddle
from paddle import nn

from backends.paddle.layers import MLP, Attention, Block, LayerNorm, MLPHead, Observed, looked_at, recorded, run
from backends.paddle.tensors import empty, size, to_array
from clip_core.inputs import check_tokens
from clip_core.towers import distilbert as core


class PostNormBlock(Block):
    """A transformer block that normalises behind each residual sum."""

    def __init__(self, tower: core.DistilBERT) -> None:
        super().__init__()
        self.attn = Attention(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        x = self.ln_1(x + self.attn(x, mask))
        return self.ln_2(x + self.mlp(x))


class DistilBERT(Observed):
    """Tokens, blocks in which padding is not seen, the mean over the tokens that are none, a head.

    Text is computed up to the longest of the batch, unless the parts are looked at. That is exact.
    """

    def __init__(self, tower: core.DistilBERT, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.token_embedding = nn.Embedding(tower.vocabulary_size, tower.width)
        self.ln_embedding = LayerNorm(tower.width, tower.epsilon)
        self.resblocks = nn.LayerList([PostNormBlock(tower) for _ in range(tower.layers)])
        self.head = MLPHead(tower.width, embed_dim)

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        seen, length = words_of(text, self.tower)
        if looked_at(self.token_embedding, self.ln_embedding, self.resblocks):
            length = size(text, 1)
        seen = seen[:, :length]
        x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]  # [n, l, d]
        x = self.ln_embedding(x).astype(self.head.c_fc.weight.dtype)
        self.observe("ln_embedding", x)
        mask = seen.unsqueeze([1, 2])  # [n, 1, 1, l]
        for index, block in enumerate(self.resblocks):
            x = run(block, x, mask)
            self.observe(f"resblocks.{index}", x)
        shares = seen.astype("float32") / seen.sum(axis=1, keepdim=True).astype("float32")
        x = (x * shares.astype(x.dtype).unsqueeze(2)).sum(axis=1)
        self.observe("pooled", x)
        return self.head(x)


def words_of(text: paddle.Tensor, tower: core.DistilBERT) -> tuple[paddle.Tensor, int | paddle.Tensor]:
    """Which of the tokens [n, l] are no padding, and up to which place there are such.

    In a graph that is recorded, tokens are not checked, and that place is a tensor.

    Raises:
        TextError: an id is outside the vocabulary, or a text is nothing but padding.
    """
    seen = text != tower.padding
    length = (seen.astype("int64") * paddle.arange(1, size(text, 1) + 1)).max()
    if recorded():
        return seen, length
    # The only wait for the device.
    found = [text.min(), text.max(), seen.any(axis=1).all(), length]
    low, high, filled, last = paddle.stack([value.astype("int64") for value in found]).tolist()
    if not (filled and low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says why
    return seen, last
