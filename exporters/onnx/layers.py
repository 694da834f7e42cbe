"""Layers that towers share in ONNX. Its twins are the files of this name in the backends.

A layer is given its own parameters by their names in it, as values of the graph that it adds its nodes to. The last
block of a transformer can be computed for the pooled token alone, where the other tokens of that block are never looked
at. That is exact.
"""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from clip_core.backend import Observe
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields
from exporters.onnx.graph import Value

Parameters = dict[str, Value]
Pooled = Value | int  # the position of a token in each row, int64 [n], or the same in all


def part(weights: Parameters, name: str) -> Parameters:
    """The parameters of the part ``name``, by their names in it."""
    return {full[len(name) + 1 :]: value for full, value in weights.items() if full.startswith(f"{name}.")}


class LayerNorm:
    """Layer normalisation of the last axis.

    onnxruntime takes the variance as the mean of the squares less the square of the mean, which loses digits where the
    mean is many deviations away from 0: about 1e-4 at 37 deviations.
    """

    def __init__(self, weights: Parameters, epsilon: float) -> None:
        self.weight, self.bias, self.epsilon = weights["weight"], weights["bias"], epsilon

    def __call__(self, x: Value) -> Value:
        return x.graph.node("LayerNormalization", x, self.weight, self.bias, axis=-1, epsilon=self.epsilon)


class BatchNorm2d:
    """Batch normalisation by the running statistics."""

    def __init__(self, weights: Parameters, epsilon: float = 1e-5) -> None:
        self.values = [weights[name] for name in ("weight", "bias", "running_mean", "running_var")]
        self.epsilon = epsilon


class Linear:
    """A linear layer, with a bias where it has one."""

    def __init__(self, weights: Parameters) -> None:
        self.weight, self.bias = weights["weight"], weights.get("bias")

    def __call__(self, x: Value) -> Value:
        x = x @ self.weight.T
        return x if self.bias is None else x + self.bias


def conv_norm(x: Value, kernel: Value, norm: BatchNorm2d, stride: int = 1, groups: int = 1) -> Value:
    """A convolution without bias [n, i, h, w] * [o, i / groups, size, size], then batch normalisation."""
    x = convolve(x, kernel, stride, groups)
    return x.graph.node("BatchNormalization", x, *norm.values, epsilon=norm.epsilon)


def convolve(x: Value, kernel: Value, stride: int = 1, groups: int = 1) -> Value:
    """[n, i, h, w] * [o, i / groups, size, size], padded to keep h and w at stride 1."""
    size = kernel.shape[-1]
    return x.graph.node("Conv", x, kernel, pads=[size // 2] * 4, strides=[stride] * 2, group=groups)


def patches(x: Value, kernel: Value, bias: Value | None = None) -> Value:
    """The patches of [n, 3, r, r], each through [d, 3, patch, patch], as tokens [n, l, d]."""
    width, _, patch, _ = kernel.shape
    x = x.graph.node("Conv", x, kernel, *([] if bias is None else [bias]), strides=[patch] * 2)
    return x.reshape(0, width, -1).transpose(0, 2, 1)  # [n, d, rows, columns] -> [n, d, l] -> [n, l, d]


def in_each_row(token: Value, x: Value) -> Value:
    """One token [d] for each row of [n, l, d]: [n, 1, d]."""
    graph = x.graph
    shape = graph.node("Concat", x.length(0), graph.integers(1, *token.shape), axis=0)
    return graph.node("Expand", token, shape)


def with_token(token: Value, x: Value) -> Value:
    """The tokens [n, l, d] with one more [d] in front of each row: [n, 1 + l, d]."""
    return x.graph.node("Concat", in_each_row(token, x), x, axis=1)


def activate(x: Value, activation: Activation) -> Value:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return x * sigmoid(x * 1.702)
    if activation == "gelu_tanh":
        inner = (x + x * x * x * 0.044715) * sqrt(2 / pi)
        return x * (x.graph.node("Tanh", inner) * 0.5 + 0.5)
    return x * (x.graph.node("Erf", x / sqrt(2)) + 1.0) * 0.5


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    return x.graph.node("Sigmoid", x)


def relu(x: Value) -> Value:
    """The larger of x and 0."""
    return x.graph.node("Relu", x)


def mean_of_map(x: Value) -> Value:
    """The mean of each channel of [n, c, h, w]: [n, c]."""
    return x.graph.node("Flatten", x.graph.node("GlobalAveragePool", x))


def attend(q: Value, k: Value, v: Value, heads: int, width: int, mask: Value | None = None) -> Value:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    each = width // heads
    q, v = (x.reshape(0, -1, heads, each).transpose(0, 2, 1, 3) for x in (q, v))
    k = k.reshape(0, -1, heads, each).transpose(0, 2, 3, 1)  # [n, l, d] -> [n, heads, d / heads, l]
    scores = (q * each**-0.5) @ k  # [n, heads, q, l]
    if mask is not None:
        scores = scores.graph.node("Where", mask, scores, float("-inf"))
    shares = scores.graph.node("Softmax", scores, axis=-1)
    return (shares @ v).transpose(0, 2, 1, 3).reshape(0, -1, width)


def pick(x: Value, positions: Pooled) -> Value:
    """[n, l, d] at ``positions`` -> [n, d]."""
    if isinstance(positions, int):
        return x.at(positions, axis=1)
    return x.graph.node("GatherND", x, positions.expand(1), batch_dims=1)


def ends_of(text: Value, tower: TextTower) -> tuple[Value, Value]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and how many tokens reach to the last of
    these places, [1]."""
    graph = text.graph
    found = graph.node("Equal", text, graph.constant(np.array(tower.required_token, np.int64)))
    end = graph.node("ArgMax", found.astype(np.int32), axis=-1, keepdims=0)
    return end, end.max().reshape(1) + graph.integers(1)


def positions_of(text: Value) -> Value:
    """The numbers of the tokens of rows [n, l]: int64 [l]."""
    graph = text.graph
    first, step = (graph.constant(np.int64(number)) for number in (0, 1))
    return graph.node("Range", first, graph.node("Squeeze", text.length(1)), step)


def rows_of(table: Value, numbers: Value) -> Value:
    """The rows of ``table`` [v, d] of these numbers [...]: [..., d]."""
    return table.graph.node("Gather", table, numbers, axis=0)


class Attention:
    """Attention with packed query, key and value weights: of all tokens, of one of each row, or of other queries."""

    def __init__(self, weights: Parameters, heads: int, in_proj_bias: bool = True) -> None:
        self.heads = heads
        self.in_proj_weight = weights["in_proj_weight"]
        self.in_proj_bias = weights["in_proj_bias"] if in_proj_bias else None
        self.width = self.in_proj_weight.shape[1]
        self.out_proj = Linear(part(weights, "out_proj"))

    def __call__(self, x: Value, mask: Value | None) -> Value:
        x = x @ self.in_proj_weight.T
        x = x if self.in_proj_bias is None else x + self.in_proj_bias
        q, k, v = x.split(*[self.width] * 3, axis=2)
        return self.out_proj(attend(q, k, v, self.heads, self.width, mask))

    def forward_pooled(self, x: Value, pooled: Pooled, mask: Value | None) -> Value:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` ask."""
        return self.forward_queries(pick(x, pooled).expand(1), x, mask).at(0, axis=1)

    def forward_queries(self, queries: Value, x: Value, mask: Value | None) -> Value:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        width = self.width
        of_queries, of_tokens = self.in_proj_weight.split(width, 2 * width, axis=0)
        q, kv = queries @ of_queries.T, x @ of_tokens.T
        if self.in_proj_bias is not None:
            of_queries, of_tokens = self.in_proj_bias.split(width, 2 * width, axis=0)
            q, kv = q + of_queries, kv + of_tokens
        k, v = kv.split(width, width, axis=2)
        return self.out_proj(attend(q, k, v, self.heads, width, mask))


class MLP:
    """Two linear layers with the activation between them."""

    def __init__(self, weights: Parameters, activation: Activation) -> None:
        self.activation = activation
        self.c_fc = Linear(part(weights, "c_fc"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: Value) -> Value:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class MLPHead:
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, weights: Parameters) -> None:
        self.c_fc = Linear(part(weights, "c_fc"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: Value) -> Value:
        return self.c_proj(relu(self.c_fc(x)))


class ResidualAttentionBlock:
    """A pre-norm transformer block."""

    def __init__(self, weights: Parameters, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.attn = Attention(part(weights, "attn"), tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)

    def __call__(self, x: Value, mask: Value | None, pooled: Pooled | None = None) -> Value:
        """[n, l, d] -> [n, l, d]; with ``pooled`` only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = pick(x, pooled) + self.attn.forward_pooled(self.ln_1(x), pooled, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer:
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, weights: Parameters, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.resblocks = [
            ResidualAttentionBlock(part(weights, f"resblocks.{index}"), tower, in_proj_bias)
            for index in range(tower.layers)
        ]

    def __call__(self, x: Value, pooled: Pooled | None, causal: bool, observe: Observe) -> Value:
        """[n, l, d] -> [n, d], the states at the positions ``pooled``; [n, l, d] where that is None."""
        mask = last_mask = None
        if causal:
            positions = positions_of(x)
            mask = x.graph.node("LessOrEqual", positions, positions.expand(1))  # [l, l]
            last_mask = mask
            if isinstance(pooled, Value):
                seen = x.graph.node("LessOrEqual", positions, pooled.expand(1))  # [n, l]
                last_mask = seen.expand(1).expand(1)  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = block(x, mask)
            observe(f"resblocks.{index}", x)
        x = last(x, last_mask, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x


class MixerBlock:
    """A pre-norm block of Mixer: an MLP over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, weights: Parameters, tower: MixerFields) -> None:
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.token_mlp = MLP(part(weights, "token_mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)

    def __call__(self, x: Value, pooled: Pooled | None = None) -> Value:
        """[n, l, d] -> [n, l, d]; with ``pooled`` only the tokens at these positions, [n, d]."""
        channels = self.ln_1(x).transpose(0, 2, 1)  # [n, l, d] -> [n, d, l]
        x = x + self.token_mlp(channels).transpose(0, 2, 1)  # [n, d, l] -> [n, l, d]
        if pooled is not None:
            x = pick(x, pooled)
        return x + self.mlp(self.ln_2(x))


class Mixer:
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, weights: Parameters, tower: MixerFields) -> None:
        self.resblocks = [MixerBlock(part(weights, f"resblocks.{index}"), tower) for index in range(tower.layers)]

    def __call__(self, x: Value, pooled: Pooled, observe: Observe) -> Value:
        """[n, l, d] -> [n, d], the state at the positions ``pooled``."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = block(x)
            observe(f"resblocks.{index}", x)
        x = last(x, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x
