"""Layers that towers share in PyTorch. Its twins are the files of this name in the other backends.

The last block of a transformer can be computed for the pooled token alone, where the other tokens of that block are
never looked at. That is exact.
"""

from __future__ import annotations

from itertools import count

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from backends.torch.tensors import to_array
from clip_core.backend import Observe
from clip_core.inputs import check_tokens
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields
from clip_core.training.noise import Noise


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation in float32, whatever the precision of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


def normalize(x: torch.Tensor) -> torch.Tensor:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / x.norm(dim=-1, keepdim=True)


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [n, l, d] -> [n, heads, l, d/heads]
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return x.transpose(1, 2).flatten(2)  # [n, heads, q, d/heads] -> [n, q, d]


def pick(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n, l, d] at ``positions`` [n] -> [n, d]."""
    return x[torch.arange(len(x), device=x.device), positions]


def ends_of(text: torch.Tensor, tower: TextTower) -> tuple[torch.Tensor, int]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and the last of these places.

    Raises:
        TextError: an id is outside the vocabulary, or a text is without its end-of-text token.
    """
    is_end = text == tower.required_token
    end = is_end.int().argmax(dim=-1)
    # The only wait for the device.
    low, high, ended, last = torch.stack([text.min(), text.max(), is_end.any(dim=-1).all(), end.max()]).tolist()
    if not (ended and low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says why
    return end, last


def checked(text: torch.Tensor, tower: TextTower) -> torch.Tensor:
    """The tokens themselves, of a tower that looks for no end of text.

    Raises:
        TextError: an id is outside the vocabulary.
    """
    low, high = torch.stack([text.min(), text.max()]).tolist()
    if not (low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says which one
    return text


class Block(nn.Module):
    """What is recomputed, compiled and sharded in one piece."""

    recomputed = False  # whether backward passes compute it again, in place of keeping what it computed
    noise: Noise | None = None  # of the step under way

    def drop(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """What a part of the block, the first (0) or the second (1), adds [n, ..., d], with the noise of training."""
        if self.noise is None or not self.training:
            return x
        return x * torch.from_numpy(self.noise.factors(part, x.shape)).to(x)


def run(block: Block, *inputs: torch.Tensor | None) -> torch.Tensor:
    """``block(*inputs)``, which keeps its inputs only if it is recomputed."""
    if not block.recomputed:
        return block(*inputs)
    passes = count()

    def compute(*inputs: torch.Tensor | None) -> torch.Tensor:
        # The first pass alone moves running statistics.
        statistics = {name: buffer.clone() for name, buffer in block.named_buffers()} if next(passes) else {}
        return functional_call(block, statistics, inputs)

    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)


class Attention(nn.Module):
    """Attention with packed query, key and value weights: of all tokens, of one of each row, or of other queries."""

    def __init__(self, width: int, heads: int, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width)) if in_proj_bias else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: torch.Tensor, pooled: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        return self.forward_queries(pick(x, pooled).unsqueeze(1), x, mask).squeeze(1)

    def forward_queries(self, queries: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        sizes = [self.width, 2 * self.width]
        weights = self.in_proj_weight.split(sizes)
        biases = (None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q = F.linear(queries, weights[0], biases[0])
        k, v = F.linear(x, weights[1], biases[1]).chunk(2, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))


class MLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, inner_width)
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class MLPHead(nn.Module):
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, width, bias=False)
        self.c_proj = nn.Linear(width, embed_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)))


class ResidualAttentionBlock(Block):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.attn = Attention(tower.width, tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, pooled: torch.Tensor | None = None) -> torch.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.drop(self.attn(self.ln_1(x), mask), 0)
        else:
            x = pick(x, pooled) + self.drop(self.attn.forward_pooled(self.ln_1(x), pooled, mask), 0)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)


class Transformer(nn.Module):
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(tower, in_proj_bias) for _ in range(tower.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of its matrices."""
        return self.resblocks[0].attn.in_proj_weight.dtype

    def forward(self, x: torch.Tensor, pooled: torch.Tensor | None, causal: bool, observe: Observe) -> torch.Tensor:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n]; [n, l, d] where that is None."""
        mask = last_mask = None
        if causal:
            positions = torch.arange(x.shape[1], device=x.device)
            mask = positions <= positions[:, None]  # [l, l]
            last_mask = mask if pooled is None else (positions <= pooled[:, None])[:, None, None]  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x, mask)
            observe(f"resblocks.{index}", x)
        x = run(last, x, last_mask, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x


class MixerBlock(Block):
    """A pre-norm block of Mixer: an MLP over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, tower: MixerFields) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.token_mlp = MLP(tower.tokens, tower.token_mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)

    def forward(self, x: torch.Tensor, pooled: torch.Tensor | None = None) -> torch.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        channels = self.ln_1(x).transpose(1, 2)  # [n, l, d] -> [n, d, l]
        mixed = self.token_mlp(channels).transpose(1, 2)  # [n, d, l] -> [n, l, d]
        x = x + self.drop(mixed, 0)
        if pooled is not None:
            x = pick(x, pooled)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)


class Mixer(nn.Module):
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, tower: MixerFields) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(MixerBlock(tower) for _ in range(tower.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of its matrices."""
        return self.resblocks[0].mlp.c_fc.weight.dtype

    def forward(self, x: torch.Tensor, pooled: torch.Tensor, observe: Observe) -> torch.Tensor:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            observe(f"resblocks.{index}", x)
        x = run(last, x, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x
