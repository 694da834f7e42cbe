"""Layers that towers share in NumPy. Its twins are the files of this name in the other backends.

A layer is given its own weights by their names in it. The last block of a transformer can be computed for the pooled
token alone, where the other tokens of that block are never looked at. That is exact.
"""

from __future__ import annotations

from math import erf, pi, sqrt

import numpy as np

from clip_core.backend import Observe
from clip_core.chunks import in_chunks
from clip_core.naming import Weights
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields


def part(weights: Weights, name: str) -> Weights:
    """The weights of the part ``name``, by their names in it."""
    return {full[len(name) + 1 :]: array for full, array in weights.items() if full.startswith(f"{name}.")}


class LayerNorm:
    """Layer normalisation of the last axis."""

    def __init__(self, weights: Weights, epsilon: float) -> None:
        self.weight, self.bias, self.epsilon = weights["weight"], weights["bias"], epsilon

    def __call__(self, x: np.ndarray) -> np.ndarray:
        def normalize(x: np.ndarray, result: np.ndarray) -> None:
            np.subtract(x, x.mean(axis=-1, keepdims=True), out=result)
            variance = np.einsum("nd,nd->n", result, result)[:, None] / x.shape[-1]
            result /= np.sqrt(variance + self.epsilon)
            result *= self.weight
            result += self.bias

        result = np.empty(x.shape, x.dtype)
        in_chunks(normalize, x.reshape(-1, x.shape[-1]), result.reshape(-1, x.shape[-1]))
        return result


class BatchNorm2d:
    """Batch normalisation by the running statistics, as the gain and the offset of a convolution before it."""

    def __init__(self, weights: Weights, epsilon: float = 1e-5) -> None:
        self.gain = weights["weight"] / np.sqrt(weights["running_var"] + epsilon)
        self.offset = weights["bias"] - weights["running_mean"] * self.gain


class Linear:
    """A linear layer, with a bias where it has one."""

    def __init__(self, weights: Weights) -> None:
        self.weight, self.bias = weights["weight"], weights.get("bias")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return matmul(x, self.weight.T, self.bias)


def matmul(x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """[..., i] @ [i, o] + [o] as one matrix product, which BLAS runs faster than a stack of small ones."""
    result = x.reshape(-1, x.shape[-1]) @ matrix
    if bias is not None:
        in_chunks(lambda rows: np.add(rows, bias, out=rows), result)
    return result.reshape(*x.shape[:-1], matrix.shape[-1])


def conv_norm(x: np.ndarray, kernel: np.ndarray, norm: BatchNorm2d, stride: int = 1) -> np.ndarray:
    """A convolution without bias [n, i, h, w] * [o, i, size, size], then batch normalisation."""
    x = convolve(x, kernel * norm.gain[:, None, None, None], stride)
    x += norm.offset[:, None, None]
    return x


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """[n, i, h, w] * [o, i, size, size], padded to keep h and w at stride 1, as one matrix product per kernel cell.

    A kernel [i, 1, size, size] is depthwise: each channel has its own.
    """
    n, inputs, height, width = x.shape
    outputs, depth, size, _ = kernel.shape
    product = np.matmul if depth == inputs else np.multiply
    pad = size // 2
    if pad:
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    cells_first = np.ascontiguousarray(kernel.transpose(2, 3, 0, 1))  # BLAS refuses matrices with gaps
    result = np.zeros((n, outputs, height * width), x.dtype)
    for row in range(size):
        for column in range(size):
            cells = x[:, :, row : row + stride * height : stride, column : column + stride * width : stride]
            result += product(cells_first[row, column], cells.reshape(n, inputs, -1))
    return result.reshape(n, outputs, height, width)


def activate(x: np.ndarray, activation: Activation) -> np.ndarray:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        result = np.empty(x.shape, x.dtype)
        in_chunks(_quick_gelu, x.reshape(-1, x.shape[-1]), result.reshape(-1, x.shape[-1]))
        return result
    if activation == "gelu_tanh":
        return x * (0.5 + 0.5 * np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return x * (0.5 + 0.5 * _erf(x / sqrt(2)).astype(x.dtype))


def _quick_gelu(x: np.ndarray, result: np.ndarray) -> None:
    np.multiply(x, -1.702, out=result)
    # exp of a large number is infinity, and dividing by it gives the right 0.
    with np.errstate(over="ignore"):
        np.exp(result, out=result)
    result += 1
    np.divide(x, result, out=result)


_erf = np.frompyfunc(erf, 1, 1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    result = np.empty(q.shape, q.dtype)
    shape = len(q), heads, q.shape[1], k.shape[1]
    in_chunks(_attend, q, k, v, np.broadcast_to(True if mask is None else mask, shape), result)
    return result


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, result: np.ndarray) -> None:
    n, heads = mask.shape[:2]
    # Views [n, heads, l, d / heads] of [n, l, d].
    q, k, v, result = (x.reshape(n, x.shape[1], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v, result))
    np.matmul(_attention_maps(q, k, mask), v, out=result)


def _attention_maps(q: np.ndarray, k: np.ndarray, mask: np.ndarray) -> np.ndarray:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(0, 1, 3, 2)  # [n, heads, q, l]
    np.copyto(scores, -np.inf, where=~mask)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def attention_maps(q: np.ndarray, k: np.ndarray, heads: int) -> np.ndarray:
    """How much each of the queries [n, q, d] looks at each of the keys [n, l, d]: [n, heads, q, l]."""
    q, k = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k))  # [n, heads, l, d / heads]
    return _attention_maps(q, k, np.array(True))


def pick(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[n, l, d] at ``positions`` [n] -> [n, d]."""
    return x[np.arange(len(x)), positions]


def ends_of(text: np.ndarray, tower: TextTower) -> tuple[np.ndarray, int]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and the last of these places."""
    end = (text == tower.required_token).argmax(axis=-1)
    return end, int(end.max())


class Attention:
    """Attention with packed query, key and value weights: of all tokens, of one of each row, or of other queries."""

    def __init__(self, weights: Weights, heads: int, in_proj_bias: bool = True) -> None:
        self.heads = heads
        self.in_proj_weight = weights["in_proj_weight"]
        self.in_proj_bias = weights["in_proj_bias"] if in_proj_bias else np.zeros_like(self.in_proj_weight[:, 0])
        self.out_proj = Linear(part(weights, "out_proj"))

    def __call__(self, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        q, k, v = np.split(matmul(x, self.in_proj_weight.T, self.in_proj_bias), 3, axis=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: np.ndarray, pooled: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        return self.forward_queries(pick(x, pooled)[:, None], x, mask)[:, 0]

    def forward_queries(self, queries: np.ndarray, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        q, k, v = self._projected(queries, x)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def maps(self, queries: np.ndarray, x: np.ndarray) -> np.ndarray:
        """[n, q, d], [n, l, d] -> [n, heads, q, l]: how much each query looks at each token."""
        q, k, _ = self._projected(queries, x)
        return attention_maps(q, k, self.heads)

    def _projected(self, queries: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, x.shape[-1]
        q = matmul(queries, weight[:width].T, bias[:width])
        k, v = np.split(matmul(x, weight[width:].T, bias[width:]), 2, axis=-1)
        return q, k, v


class MLP:
    """Two linear layers with the activation between them."""

    def __init__(self, weights: Weights, activation: Activation) -> None:
        self.activation = activation
        self.c_fc = Linear(part(weights, "c_fc"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class MLPHead:
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, weights: Weights) -> None:
        self.c_fc = Linear(part(weights, "c_fc"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.c_proj(np.maximum(self.c_fc(x), 0))


class ResidualAttentionBlock:
    """A pre-norm transformer block."""

    def __init__(self, weights: Weights, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.attn = Attention(part(weights, "attn"), tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)

    def __call__(self, x: np.ndarray, mask: np.ndarray | None = None, pooled: np.ndarray | None = None) -> np.ndarray:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = pick(x, pooled) + self.attn.forward_pooled(self.ln_1(x), pooled, mask)
        return x + self.mlp(self.ln_2(x))

    def attention_maps(self, x: np.ndarray) -> np.ndarray:
        """What the block takes, [n, l, d], without a mask -> [n, heads, l, l]."""
        x = self.ln_1(x)
        return self.attn.maps(x, x)


class Transformer:
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, weights: Weights, tower: TransformerFields, in_proj_bias: bool = True) -> None:
        self.resblocks = [
            ResidualAttentionBlock(part(weights, f"resblocks.{index}"), tower, in_proj_bias)
            for index in range(tower.layers)
        ]

    def __call__(self, x: np.ndarray, pooled: np.ndarray | None, causal: bool, observe: Observe) -> np.ndarray:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n]; [n, l, d] where that is None."""
        mask = last_mask = None
        if causal:
            positions = np.arange(x.shape[1])
            mask = positions <= positions[:, None]  # [l, l]
            last_mask = mask if pooled is None else (positions <= pooled[:, None])[:, None, None]  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = block(x, mask)
            observe(f"resblocks.{index}", x)
        x = last(x, last_mask, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x


class MixerBlock:
    """A pre-norm block of Mixer: an MLP over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, weights: Weights, tower: MixerFields) -> None:
        self.ln_1 = LayerNorm(part(weights, "ln_1"), tower.epsilon)
        self.token_mlp = MLP(part(weights, "token_mlp"), tower.activation)
        self.ln_2 = LayerNorm(part(weights, "ln_2"), tower.epsilon)
        self.mlp = MLP(part(weights, "mlp"), tower.activation)

    def __call__(self, x: np.ndarray, pooled: np.ndarray | None = None) -> np.ndarray:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        channels = self.ln_1(x).transpose(0, 2, 1)  # [n, l, d] -> [n, d, l]
        x = x + self.token_mlp(channels).transpose(0, 2, 1)  # [n, d, l] -> [n, l, d]
        if pooled is not None:
            x = pick(x, pooled)
        return x + self.mlp(self.ln_2(x))


class Mixer:
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, weights: Weights, tower: MixerFields) -> None:
        self.resblocks = [MixerBlock(part(weights, f"resblocks.{index}"), tower) for index in range(tower.layers)]

    def __call__(self, x: np.ndarray, pooled: np.ndarray, observe: Observe) -> np.ndarray:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = block(x)
            observe(f"resblocks.{index}", x)
        x = last(x, pooled)
        observe(f"resblocks.{len(blocks)}", x)
        return x
