"""DistilBERT with the head of simple-clip in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import check_when_computed, differs, reshape, usable_tokens
from backends.nnabla.layers import MLP, Attention, Block, Embedding, LayerNorm, MLPHead, Observed, run
from backends.nnabla.module import empty
from backends.nnabla.tensors import to_tensor
from clip_core.towers import distilbert as core


class PostNormBlock(Block):
    """A transformer block that normalises behind each residual sum."""

    def __init__(self, tower: core.DistilBERT) -> None:
        self.attn = Attention(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, mask: nn.Variable) -> nn.Variable:
        x = self.ln_1(x + self.attn(x, mask))
        return self.ln_2(x + self.mlp(x))


class DistilBERT(Observed):
    """Tokens, blocks in which padding is not seen, the mean over the tokens that are none, a head.

    Text is computed up to the longest of the batch. That is exact. A static graph computes it in its full length.
    """

    def __init__(self, tower: core.DistilBERT, embed_dim: int) -> None:
        self.tower = tower
        self.positional_embedding = empty(tower.context_length, tower.width)
        self.token_embedding = Embedding(tower.vocabulary_size, tower.width)
        self.ln_embedding = LayerNorm(tower.width, tower.epsilon)
        self.resblocks = [PostNormBlock(tower) for _ in range(tower.layers)]
        self.head = MLPHead(tower.width, embed_dim)

    def __call__(self, text: nn.Variable) -> nn.Variable:
        text = words_of(text, self.tower)
        n, length = text.shape
        x = self.token_embedding(text) + F.reshape(self.positional_embedding[:length], (1, length, -1))  # [n, l, d]
        x = self.ln_embedding(x)
        self.observe("ln_embedding", x)
        seen = differs(text, self.tower.padding, self.tower)  # [n, l]
        mask = reshape(seen, (n, 1, 1, length))
        for index, block in enumerate(self.resblocks):
            x = run(block, x, mask)
            self.observe(f"resblocks.{index}", x)
        shares = seen / F.sum(seen, axis=1, keepdims=True)
        x = F.sum(x * reshape(shares, (n, length, 1)), axis=1)
        self.observe("pooled", x)
        return self.head(x)


def words_of(text: nn.Variable, tower: core.DistilBERT) -> nn.Variable:
    """The tokens [n, l], up to the longest text of the batch; those of a static graph are checked when it is computed.

    Raises:
        TextError: they are no whole numbers, an id is outside the vocabulary, or a text is nothing but padding.
    """
    if not nn.get_auto_forward():
        return check_when_computed(text, tower)
    tokens = usable_tokens(text.data.get_data("r"), tower)
    length = int((tokens != tower.padding).any(axis=0).nonzero()[0].max()) + 1
    return to_tensor(tokens[:, :length])
