"""Layers that towers share in NNabla. Its twins are the files of this name in the other backends.

The last block of a transformer can be computed for the pooled token alone, where the other tokens of that block are
never looked at. That is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import parameter

from backends.nnabla.functions import (
    Pooled,
    Recomputed,
    add,
    attend,
    attend_packed,
    attention_maps,
    batch_norm,
    by_numpy,
    causal_mask,
    check_when_computed,
    chunk,
    end_of_text,
    gelu,
    is_for_a_file,
    layer_norm,
    linear,
    mask_until,
    pick,
    quick_gelu,
    reshape,
    swap_axes,
    take,
    usable_tokens,
)
from backends.nnabla.module import Module, buffer, empty
from backends.nnabla.tensors import to_tensor
from clip_core.backend import Observe, ignore
from clip_core.noise import Noise, PatchNoise
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields


class LayerNorm(Module):
    """Layer normalisation of the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        self.epsilon = epsilon
        self.weight = empty(width)
        self.bias = empty(width)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return layer_norm(x, self.weight, self.bias, self.epsilon)


class BatchNorm2d(Module):
    """Batch normalisation under the names that PyTorch gives its parameters."""

    def __init__(self, channels: int, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        self.epsilon, self.momentum = epsilon, momentum
        self.weight = empty(channels)
        self.bias = empty(channels)
        self.running_mean = buffer(np.zeros(channels, np.float32))
        self.running_var = buffer(np.ones(channels, np.float32))
        self.num_batches_tracked = buffer(np.zeros((), np.int64))

    def __call__(self, x: nn.Variable) -> nn.Variable:
        if self.training:  # a static graph counts once, when it is built
            self.num_batches_tracked.data.get_data("rw")[...] += 1
        statistics = self.running_mean, self.running_var
        return batch_norm(x, self.weight, self.bias, *statistics, self.momentum, self.epsilon, self.training)


class Linear(Module):
    """A linear layer, with a bias unless told otherwise."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.weight = empty(outputs, inputs)
        self.bias = empty(outputs) if bias else None

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return linear(x, self.weight, self.bias)


class Conv2d(Module):
    """A convolution, without bias unless told otherwise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        self.stride, self.padding, self.groups = stride, padding, groups
        self.weight = empty(outputs, inputs // groups, size, size)
        self.bias = empty(outputs) if bias else None

    def __call__(self, x: nn.Variable) -> nn.Variable:
        pad, stride = (self.padding,) * 2, (self.stride,) * 2
        return F.convolution(x, self.weight, self.bias, pad=pad, stride=stride, group=self.groups)


class Sequential(Module):
    """Parts that are named by their numbers and compute one after the other."""

    def __init__(self, *parts: Module) -> None:
        for index, part in enumerate(parts):
            setattr(self, str(index), part)

    def __iter__(self) -> Iterator[Any]:
        return iter([part for part in vars(self).values() if isinstance(part, Module)])

    def __call__(self, x: nn.Variable) -> nn.Variable:
        for part in self:
            x = part(x)
        return x


class Embedding(Module):
    """Rows that are looked up by number."""

    def __init__(self, rows: int, width: int) -> None:
        self.weight = empty(rows, width)

    def __call__(self, indices: nn.Variable) -> nn.Variable:
        return F.embed(indices, self.weight)


def normalize(x: nn.Variable) -> nn.Variable:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / F.sum(x**2, axis=1, keepdims=True) ** 0.5


def activate(x: nn.Variable, activation: Activation) -> nn.Variable:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return quick_gelu(x)
    return F.gelu(x) if activation == "gelu_tanh" else gelu(x)  # NNabla's own is the approximation


def ends_of(text: nn.Variable, tower: TextTower) -> tuple[nn.Variable, nn.Variable, int]:
    """Tokens [n, l] that can be used, where each row first has its end-of-text token [n], and the last of these places.

    A static graph is built before its tokens are known: there they are checked when it is computed, and the last place
    is the last there is.

    Raises:
        TextError: they are no whole numbers, an id is outside the vocabulary, or a text is without its end-of-text
            token.
    """
    text, last = checked(text, tower), text.shape[1] - 1
    if nn.get_auto_forward():
        last = int((text.data.get_data("r") == tower.required_token).argmax(axis=-1).max())
    return text, end_of_text(text, tower), last


def checked(text: nn.Variable, tower: TextTower) -> nn.Variable:
    """Tokens [n, l] that can be used; those of a static graph are checked when it is computed.

    Raises:
        TextError: they are no whole numbers, an id is outside the vocabulary, or a text is without its end-of-text
            token.
    """
    if nn.get_auto_forward():
        return to_tensor(usable_tokens(text.data.get_data("r"), tower))
    return check_when_computed(text, tower)


class Observed(Module):
    """What tells of the stages of its computation. `CLIP.layers` gives copies of a model's parts an observer."""

    observe: Observe = staticmethod(ignore)


class Block(Module):
    """What is recomputed in one piece."""

    recomputed = False  # whether backward passes compute it again, in place of keeping what it computed
    noise: Noise | None = None  # of the step under way

    __call__: Callable[..., nn.Variable]

    def drop(self, x: nn.Variable, part: int) -> nn.Variable:
        """What a part of the block, the first (0) or the second (1), adds [n, ..., d], with the noise of training."""
        if self.noise is None or not self.training:
            return x
        return x * to_tensor(self.noise.factors(part, x.shape))


def run(block: Block, *inputs: Any) -> nn.Variable:
    """``block(*inputs)``, which keeps its inputs only if it is recomputed."""
    if not block.recomputed or not nn.get_auto_forward():
        return block(*inputs)
    statistics = [variable for _, variable in block.named_parameters() if not variable.need_grad]

    def compute(*inputs: Any) -> nn.Variable:
        # The first pass alone moves running statistics.
        before = [np.array(variable.data.get_data("r")) for variable in statistics]
        result = block(*inputs)
        for variable, value in zip(statistics, before):
            variable.data.get_data("w", value.dtype)[...] = value
        return result

    with nn.no_grad():
        result = block(*inputs)
    return Recomputed(compute, inputs[1:], result)(inputs[0])


class PatchDropout(Module):
    """Leaves patches out while it is trained; ``leading`` tokens in front of them stay."""

    noise: PatchNoise | None = None  # of the step under way

    def __init__(self, leading: int) -> None:
        self.leading = leading

    def __call__(self, x: nn.Variable) -> nn.Variable:
        """[n, leading + patches, d] -> [n, leading + kept, d]."""
        if self.noise is None or not self.training:
            return x
        n, length, _ = x.shape
        kept = self.noise.kept(n, length - self.leading) + self.leading
        front = np.broadcast_to(np.arange(self.leading), (n, self.leading))
        return take(x, to_tensor(np.concatenate([front, kept], axis=1)))


class Attention(Module):
    """Attention with packed query, key and value weights: of all tokens, of one of each row, or of other queries."""

    def __init__(self, width: int, heads: int, in_proj_bias: bool = True) -> None:
        self.width, self.heads = width, heads
        self.in_proj_weight = empty(3 * width, width)
        self.in_proj_bias = empty(3 * width) if in_proj_bias else None
        self.out_proj = Linear(width, width)

    def __call__(self, x: nn.Variable, mask: nn.Variable | None) -> nn.Variable:
        packed = linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend_packed(packed, self.heads, mask))

    def forward_pooled(self, x: nn.Variable, pooled: Pooled, mask: nn.Variable | None) -> nn.Variable:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` ask."""
        n, _, width = x.shape
        x = self.forward_queries(reshape(pick(x, pooled), (n, 1, width)), x, mask)
        return reshape(x, (n, width))

    def forward_queries(self, queries: nn.Variable, x: nn.Variable, mask: nn.Variable | None) -> nn.Variable:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        q, k, v = self._projected(queries, x)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def maps(self, queries: nn.Variable, x: nn.Variable) -> nn.Variable:
        """[n, q, d], [n, l, d] -> [n, heads, q, l]: how much each query looks at each token."""
        q, k, _ = self._projected(queries, x)
        return attention_maps(q, k, self.heads)

    def _projected(self, queries: nn.Variable, x: nn.Variable) -> tuple[nn.Variable, ...]:
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.width
        if is_for_a_file():  # the whole matrix, which is a parameter of the file, and not parts that are cut each time
            q = chunk(linear(queries, weight, bias), 3)[0]
            _, k, v = chunk(linear(x, weight, bias), 3)
            return q, k, v
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        q = linear(queries, weight[:width], biases[0])
        k, v = chunk(linear(x, weight[width:], biases[1]), 2)
        return q, k, v


class MLP(Module):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        self.activation = activation
        self.c_fc = Linear(width, inner_width)
        self.c_proj = Linear(inner_width, width)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class MLPHead(Module):
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, width: int, embed_dim: int) -> None:
        self.c_fc = Linear(width, width, bias=False)
        self.c_proj = Linear(width, embed_dim, bias=False)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return self.c_proj(F.relu(self.c_fc(x)))


class ResidualAttentionBlock(Block):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.attn = Attention(tower.width, tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, mask: nn.Variable | None = None, pooled: Pooled | None = None) -> nn.Variable:
        """[n, l, d] -> [n, l, d]; with ``pooled`` only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = add(x, self.drop(self.attn(self.ln_1(x), mask), 0))
        else:
            x = add(pick(x, pooled), self.drop(self.attn.forward_pooled(self.ln_1(x), pooled, mask), 0))
        return add(x, self.drop(self.mlp(self.ln_2(x)), 1))

    def attention_maps(self, x: nn.Variable) -> nn.Variable:
        """What the block takes, [n, l, d], without a mask -> [n, heads, l, l]."""
        x = self.ln_1(x)
        return self.attn.maps(x, x)


class Transformer(Observed):
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.resblocks = [ResidualAttentionBlock(tower, in_proj_bias) for _ in range(tower.layers)]

    def __call__(self, x: nn.Variable, pooled: Pooled | None, causal: bool) -> nn.Variable:
        """[n, l, d] -> [n, d], the states at the positions ``pooled``; [n, l, d] where that is None.

        In a causal one, ``pooled`` is a position for each row.
        """
        mask = last_mask = None
        if causal:
            mask = last_mask = causal_mask(x.shape[1])  # [1, 1, l, l]
            if pooled is not None:
                last_mask = mask_until(pooled, x.shape[1])  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x, mask)
            self.observe(f"resblocks.{index}", x)
        x = run(last, x, last_mask, pooled)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x


def is_inference(part: Observed) -> bool:
    """Whether a CPU computes ``part`` at once, in evaluation mode, and no gradients or stages are wanted of it."""
    if part.training:
        return False
    return nn.get_auto_forward() and parameter.current_no_grad and by_numpy() and part.observe is ignore


class MixerBlock(Block):
    """A pre-norm block of Mixer: an MLP over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, tower: MixerFields) -> None:
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.token_mlp = MLP(tower.tokens, tower.token_mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)

    def __call__(self, x: nn.Variable, pooled: Pooled | None = None) -> nn.Variable:
        """[n, l, d] -> [n, l, d]; with ``pooled`` only the tokens at these positions, [n, d]."""
        channels = swap_axes(self.ln_1(x))  # [n, l, d] -> [n, d, l]
        mixed = swap_axes(self.token_mlp(channels))  # [n, d, l] -> [n, l, d]
        x = x + self.drop(mixed, 0)
        if pooled is not None:
            x = pick(x, pooled)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)


class Mixer(Observed):
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, tower: MixerFields) -> None:
        self.resblocks = [MixerBlock(tower) for _ in range(tower.layers)]

    def __call__(self, x: nn.Variable, pooled: Pooled) -> nn.Variable:
        """[n, l, d] -> [n, d], the state at the positions ``pooled``."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            self.observe(f"resblocks.{index}", x)
        x = run(last, x, pooled)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x
