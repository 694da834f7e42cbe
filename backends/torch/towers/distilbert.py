"""DistilBERT with the head of simple-clip in PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from backends.torch.layers import (
    MLP,
    Block,
    LayerNorm,
    MLPHead,
    Observed,
    attend_tokens,
    attention_of,
    embedding,
    recorded,
    run,
)
from backends.torch.tensors import to_array
from clip_core.inputs import check_tokens
from clip_core.towers import distilbert as core


class PostNormBlock(Block):
    """A transformer block that normalises behind each residual sum."""

    def __init__(self, tower: core.DistilBERT) -> None:
        super().__init__()
        self.attn = attention_of(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.ln_1(x + attend_tokens(self.attn, x, mask))
        return self.ln_2(x + self.mlp(x))


class DistilBERT(Observed):
    """Tokens, blocks in which padding is not seen, the mean over the tokens that are none, a head.

    Text is computed up to the longest of the batch. That is exact.
    """

    def __init__(self, tower: core.DistilBERT, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower
        self.positional_embedding = nn.Parameter(torch.empty(tower.context_length, tower.width))
        self.token_embedding = embedding(tower.vocabulary_size, tower.width)
        self.ln_embedding = LayerNorm(tower.width, tower.epsilon)
        self.resblocks = nn.ModuleList(PostNormBlock(tower) for _ in range(tower.layers))
        self.head = MLPHead(tower.width, embed_dim)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        seen, length = words_of(text, self.tower)
        seen = seen[:, :length]
        x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]  # [n, l, d]
        x = self.ln_embedding(x).to(self.head.c_fc.weight.dtype)
        self.observe("ln_embedding", x)
        mask = seen[:, None, None]  # [n, 1, 1, l]
        for index, block in enumerate(self.resblocks):
            x = run(block, x, mask)
            self.observe(f"resblocks.{index}", x)
        shares = seen / seen.sum(dim=1, keepdim=True)
        x = (x * shares.to(x.dtype)[:, :, None]).sum(dim=1)
        self.observe("pooled", x)
        return self.head(x)


def words_of(text: torch.Tensor, tower: core.DistilBERT) -> tuple[torch.Tensor, int]:
    """Which of the tokens [n, l] are no padding, and up to which place there are such.

    Where the tokens have no values to depend on (`recorded`), they are not checked, and that place is the last.

    Raises:
        TextError: an id is outside the vocabulary, or a text is nothing but padding.
    """
    seen = text != tower.padding
    if recorded(text):
        return seen, text.shape[1]
    places = torch.arange(1, text.shape[1] + 1, device=text.device)
    # The only wait for the device.
    low, high, filled, length = torch.stack(
        [text.min(), text.max(), seen.any(dim=1).all(), (seen * places).max()]
    ).tolist()
    if not (filled and low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says why
    return seen, length
