"""Layers that towers share in Paddle. Its twins are the files of this name in the other backends.

The last block of a transformer can be computed for the pooled token alone, where the other tokens of that block are
never looked at. That is exact.
"""

from __future__ import annotations

from itertools import count

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from backends.paddle.tensors import empty, to_array
from clip_core.backend import Observe
from clip_core.inputs import check_tokens
from clip_core.noise import Noise, PatchNoise
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision of the input."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x.astype("float32")).astype(x.dtype)


class BatchNorm2d(nn.Layer):
    """Batch normalisation in float32 under the names that PyTorch gives its parameters."""

    def __init__(self, channels: int, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.weight = empty(channels)
        self.bias = empty(channels)
        self.register_buffer("running_mean", paddle.zeros([channels]))
        self.register_buffer("running_var", paddle.ones([channels]))
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        kept = (1 - self.momentum) * self.running_var
        y = F.batch_norm(
            x.astype("float32"),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum=1 - self.momentum,
            epsilon=self.epsilon,
        )
        if self.training:
            self.num_batches_tracked += 1
            # Paddle adds the mean square deviation of n values; PyTorch and NNabla add n / (n - 1) times that.
            n = x.shape[0] * x.shape[2] * x.shape[3]
            self.running_var += (self.running_var - kept) / max(n - 1, 1)
        return y.astype(x.dtype)


def normalize(x: paddle.Tensor) -> paddle.Tensor:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / x.norm(axis=-1, keepdim=True)


def activate(x: paddle.Tensor, activation: Activation) -> paddle.Tensor:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return x * F.sigmoid(1.702 * x)
    return F.gelu(x, approximate=activation == "gelu_tanh")


def attend(
    q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, heads: int, mask: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    n, length, width = q.shape
    q, k, v = (x.reshape([n, -1, heads, width // heads]).transpose([0, 2, 1, 3]) for x in (q, k, v))
    scores = paddle.matmul(q * (width // heads) ** -0.5, k, transpose_y=True)  # [n, heads, q, l]
    if mask is not None:
        scores = paddle.where(mask, scores, paddle.full([], float("-inf"), scores.dtype))
    x = paddle.matmul(F.softmax(scores, axis=-1), v)
    return x.transpose([0, 2, 1, 3]).reshape([n, length, width])  # [n, heads, q, d/heads] -> [n, q, d]


def pick(x: paddle.Tensor, positions: paddle.Tensor) -> paddle.Tensor:
    """[n, l, d] at ``positions`` [n] -> [n, d]."""
    return x[paddle.arange(len(x)), positions]


def ends_of(text: paddle.Tensor, tower: TextTower) -> tuple[paddle.Tensor, int]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and the last of these places.

    Raises:
        TextError: an id is outside the vocabulary, or a text is without its end-of-text token.
    """
    is_end = text == tower.required_token
    end = is_end.astype("int32").argmax(axis=-1)
    # The only wait for the device.
    found = [text.min(), text.max(), is_end.any(axis=-1).all(), end.max()]
    low, high, ended, last = paddle.stack([value.astype("int64") for value in found]).tolist()
    if not (ended and low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says why
    return end, last


def checked(text: paddle.Tensor, tower: TextTower) -> paddle.Tensor:
    """The tokens themselves, of a tower that looks for no end of text.

    Raises:
        TextError: an id is outside the vocabulary.
    """
    low, high = paddle.stack([text.min(), text.max()]).tolist()
    if not (low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says which one
    return text


class Block(nn.Layer):
    """What is recomputed in one piece."""

    recomputed = False  # whether backward passes compute it again, in place of keeping what it computed
    noise: Noise | None = None  # of the step under way

    def drop(self, x: paddle.Tensor, part: int) -> paddle.Tensor:
        """What a part of the block, the first (0) or the second (1), adds [n, ..., d], with the noise of training."""
        if self.noise is None or not self.training:
            return x
        return x * paddle.to_tensor(self.noise.factors(part, x.shape)).astype(x.dtype)


def run(block: Block, *inputs: paddle.Tensor | None) -> paddle.Tensor:
    """``block(*inputs)``, which keeps its inputs only if it is recomputed."""
    if not block.recomputed:
        return block(*inputs)
    passes = count()

    def compute(*inputs: paddle.Tensor | None) -> paddle.Tensor:
        # The first pass alone moves running statistics.
        statistics = [buffer.clone() for buffer in block.buffers()] if next(passes) else []
        result = block(*inputs)
        for buffer, value in zip(block.buffers(), statistics):
            buffer.set_value(value)
        return result

    return recompute(compute, *inputs, preserve_rng_state=False)


class PatchDropout(nn.Layer):
    """Leaves patches out while it is trained; ``leading`` tokens in front of them stay."""

    noise: PatchNoise | None = None  # of the step under way

    def __init__(self, leading: int) -> None:
        super().__init__()
        self.leading = leading

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[n, leading + patches, d] -> [n, leading + kept, d]."""
        if self.noise is None or not self.training:
            return x
        kept = paddle.to_tensor(self.noise.kept(len(x), x.shape[1] - self.leading)) + self.leading
        rows = paddle.arange(len(x))[:, None]
        return paddle.concat([x[:, : self.leading], x[rows, kept]], axis=1)


class Attention(nn.Layer):
    """Attention with packed query, key and value weights: of all tokens, of one of each row, or of other queries."""

    def __init__(self, width: int, heads: int, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = empty(width, 3 * width)
        self.in_proj_bias = empty(3 * width) if in_proj_bias else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, axis=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: paddle.Tensor, pooled: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        return self.forward_queries(pick(x, pooled).unsqueeze(1), x, mask).squeeze(1)

    def forward_queries(self, queries: paddle.Tensor, x: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        sizes = [self.width, 2 * self.width]
        weights = self.in_proj_weight.split(sizes, axis=1)
        biases = (None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q = F.linear(queries, weights[0], biases[0])
        k, v = F.linear(x, weights[1], biases[1]).chunk(2, axis=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))


class MLP(nn.Layer):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, inner_width)
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class MLPHead(nn.Layer):
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, width, bias_attr=False)
        self.c_proj = nn.Linear(width, embed_dim, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)))


class ResidualAttentionBlock(Block):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.attn = Attention(tower.width, tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(
        self, x: paddle.Tensor, mask: paddle.Tensor | None, pooled: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.drop(self.attn(self.ln_1(x), mask), 0)
        else:
            x = pick(x, pooled) + self.drop(self.attn.forward_pooled(self.ln_1(x), pooled, mask), 0)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)


class Transformer(nn.Layer):
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        super().__init__()
        self.resblocks = nn.LayerList([ResidualAttentionBlock(tower, in_proj_bias) for _ in range(tower.layers)])

    @property
    def dtype(self) -> paddle.dtype:
        """Of its matrices."""
        return self.resblocks[0].attn.in_proj_weight.dtype

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor | None, causal: bool, observe: Observe) -> paddle.Tensor:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n]; [n, l, d] where that is None."""
        mask = last_mask = None
        if causal:
            positions = paddle.arange(x.shape[1])
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

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor | None = None) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        channels = self.ln_1(x).transpose([0, 2, 1])  # [n, l, d] -> [n, d, l]
        mixed = self.token_mlp(channels).transpose([0, 2, 1])  # [n, d, l] -> [n, l, d]
        x = x + self.drop(mixed, 0)
        if pooled is not None:
            x = pick(x, pooled)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)


class Mixer(nn.Layer):
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, tower: MixerFields) -> None:
        super().__init__()
        self.resblocks = nn.LayerList([MixerBlock(tower) for _ in range(tower.layers)])

    @property
    def dtype(self) -> paddle.dtype:
        """Of its matrices."""
        return self.resblocks[0].mlp.c_fc.weight.dtype

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor, observe: Observe) -> paddle.Tensor:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            observe(f"resblocks.{index}", x)
        x = run(last, x, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x
