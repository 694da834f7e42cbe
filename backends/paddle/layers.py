"""Layers that towers share in Paddle. Its twins are the files of this name in the other backends.

The last block of a transformer can be computed for the pooled token alone, where the other tokens of that block are
never looked at. That is exact. Code that hooks or replaces parts of a model looks at them (`looked_at`): then they
compute all tokens.

Everything here can be recorded as a graph by ``paddle.jit``, whose axes need not have lengths then.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer, PyLayerContext
from paddle.distributed.fleet.utils import recompute

from backends.paddle.tensors import empty, size, to_array
from clip_core.backend import Observe, ignore, is_plain
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
    v = v.reshape([size(v, 0), size(v, 1), heads, v.shape[-1] // heads])
    return paddle.einsum("nhql,nlhd->nqhd", attention_maps(q, k, heads, mask), v).flatten(2)  # [n, q, d]


def attention_maps(q: paddle.Tensor, k: paddle.Tensor, heads: int, mask: paddle.Tensor | None = None) -> paddle.Tensor:
    """How much each of the queries [n, q, d] looks at each of the keys [n, l, d]: [n, heads, q, l]."""
    width = q.shape[-1]
    q, k = (x.reshape([size(x, 0), size(x, 1), heads, width // heads]) for x in (q, k))
    # Sums rather than products of transposed tensors: these are views in Paddle, which the CPU takes long to copy.
    scores = paddle.einsum("nqhd,nlhd->nhql", q * (width // heads) ** -0.5, k)
    if mask is not None:
        # Infinity where seen, else minus infinity. Paddle Inference would put a sum into the product, a thousand times
        # as slow.
        scores = paddle.minimum(scores, (mask.astype(scores.dtype) - 0.5) * float("inf"))
    return F.softmax(scores, axis=-1)


def pick(x: paddle.Tensor, positions: paddle.Tensor) -> paddle.Tensor:
    """[n, l, d] at ``positions`` [n] -> [n, d]."""
    return paddle.gather_nd(x, paddle.stack([paddle.arange(size(x, 0)), positions], axis=1))


def causal_mask(length: int | paddle.Tensor, pooled: paddle.Tensor | None = None) -> paddle.Tensor:
    """[l, l], true where a token sees another: itself, and those in front of it; of the tokens at ``pooled`` [n] alone
    [n, 1, 1, l].
    """
    positions = paddle.arange(length)
    return positions <= (positions[:, None] if pooled is None else pooled[:, None, None, None])


def ends_of(text: paddle.Tensor, tower: TextTower) -> tuple[paddle.Tensor, int | paddle.Tensor]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and the last of these places.

    In a graph that is recorded, tokens are not checked, and that place is a tensor.

    Raises:
        TextError: an id is outside the vocabulary, or a text is without its end-of-text token.
    """
    is_end = text == tower.required_token
    end = is_end.astype("int32").argmax(axis=-1)
    if recorded():
        return end, end.max()
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
    if recorded():
        return text
    low, high = paddle.stack([text.min(), text.max()]).tolist()
    if not (low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says which one
    return text


def dtype_of(layer: nn.Layer) -> paddle.dtype:
    """Of the first matrix in ``layer``; some other parameters stay in float32."""
    return next(part.weight.dtype for part in layer.sublayers() if isinstance(part, nn.Linear))


def recorded() -> bool:
    """Whether a graph is being recorded (traced, exported): what is computed must not depend on values then."""
    return not paddle.in_dynamic_mode()


def looked_at(*layers: nn.Layer) -> bool:
    """Whether other code sees how ``layers`` compute, or has changed it: they, or any of their parts, have hooks or
    forward passes from elsewhere, or it is wanted as if other code saw it.
    """
    return is_plain() or not all(map(_is_original, layers))


def _is_original(layer: nn.Layer) -> bool:
    # Few steps for each part: all of a transformer's are looked through each time that it computes.
    parts = [layer]
    for part in parts:
        forward, own = type(part).forward, part.__dict__
        if forward not in FORWARDS and not forward.__module__.startswith(PACKAGE):
            return False
        if "forward" in own or own["_forward_pre_hooks"] or own["_forward_post_hooks"]:
            return False
        parts += own["_sub_layers"].values()
    return True


def linear(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """`F.linear`; where gradients are computed on a CPU, that of the bias by a matrix product.

    Paddle's own sum over rows takes as long there as the gradients of ``x`` and ``weight`` together.
    """
    plain = is_plain() or recorded() or not paddle.is_grad_enabled() or not x.place.is_cpu_place()
    if plain or bias is None or bias.stop_gradient or (x.stop_gradient and weight.stop_gradient):
        return F.linear(x, weight, bias)
    product = F.linear(x, weight)
    return product.add_(RepeatedBias.apply(bias, product.shape))


class RepeatedBias(PyLayer):
    """A bias [d] for each row of [..., d].

    It takes nothing else: `paddle.grad` fails where it asks for the gradients of some inputs of a layer such as this.
    """

    @staticmethod
    def forward(ctx: PyLayerContext, bias: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
        return bias.expand(shape)

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: paddle.Tensor) -> paddle.Tensor:
        rows = gradient.reshape([-1, gradient.shape[-1]])  # [..., d] -> [n, d]
        return (paddle.ones([1, len(rows)], rows.dtype) @ rows).squeeze(0)


def apply(layer: nn.Layer, x: paddle.Tensor) -> paddle.Tensor:
    """``layer(x)``; that of a linear layer which nobody looks at is `linear`."""
    if isinstance(layer, nn.Linear) and not looked_at(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


class Observed(nn.Layer):
    """What tells of the stages of its computation. `CLIP.layers` gives copies of a model's parts an observer."""

    observe: Observe = staticmethod(ignore)


class Block(nn.Layer):
    """What is recomputed in one piece."""

    recomputed = False  # whether backward passes compute it again, in place of keeping what it computed
    noise: Noise | None = None  # of the step under way

    def drop(self, x: paddle.Tensor, part: int) -> paddle.Tensor:
        """What a part of the block, the first (0) or the second (1), adds [n, ..., d], with the noise of training."""
        if self.noise is None or not self.training:
            return x
        return x * paddle.to_tensor(self.noise.factors(part, x.shape)).astype(x.dtype)


def run(block: nn.Layer, *inputs: Any) -> paddle.Tensor:
    """``block(*inputs)``, which keeps its inputs only if it is a block that is recomputed."""
    if not (isinstance(block, Block) and block.recomputed):
        return block(*inputs)
    passes = count()

    def compute(*inputs: Any) -> paddle.Tensor:
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
        q, k, v = linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, axis=-1)
        return apply(self.out_proj, attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: paddle.Tensor, pooled: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        return self.forward_queries(pick(x, pooled).unsqueeze(1), x, mask).squeeze(1)

    def forward_queries(self, queries: paddle.Tensor, x: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
        q, k, v = self._projected(queries, x)
        return apply(self.out_proj, attend(q, k, v, self.heads, mask))

    def maps(self, queries: paddle.Tensor, x: paddle.Tensor) -> paddle.Tensor:
        """[n, q, d], [n, l, d] -> [n, heads, q, l]: how much each query looks at each token."""
        q, k, _ = self._projected(queries, x)
        return attention_maps(q, k, self.heads)

    def _projected(self, queries: paddle.Tensor, x: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        if recorded():
            # oneDNN in Paddle Inference keeps the address of a bias. That of a part of a parameter goes to other data.
            packed = (F.linear(each, self.in_proj_weight, self.in_proj_bias) for each in (queries, x))
            (q, _, _), (_, k, v) = (each.chunk(3, axis=-1) for each in packed)
        else:
            sizes = [self.width, 2 * self.width]
            weights = self.in_proj_weight.split(sizes, axis=1)
            biases = (None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
            q = linear(queries, weights[0], biases[0])
            k, v = linear(x, weights[1], biases[1]).chunk(2, axis=-1)
        return q, k, v


class MLP(nn.Layer):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, inner_width)
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return apply(self.c_proj, activate(apply(self.c_fc, x), self.activation))


class MLPHead(nn.Layer):
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, width, bias_attr=False)
        self.c_proj = nn.Linear(width, embed_dim, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)))


class ResidualAttentionBlock(Block):
    """A pre-norm transformer block.

    Args:
        causal: whether a token sees itself and those in front of it alone.
    """

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.attn = Attention(tower.width, tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor | None = None) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        mask = causal_mask(size(x, 1), pooled) if self.causal else None
        if pooled is None:
            x = x + self.drop(self.attn(self.ln_1(x), mask), 0)
        else:
            x = pick(x, pooled) + self.drop(self.attn.forward_pooled(self.ln_1(x), pooled, mask), 0)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)

    def attention_maps(self, x: paddle.Tensor) -> paddle.Tensor:
        """What the block takes, [n, l, d], without a mask -> [n, heads, l, l]."""
        x = self.ln_1(x)
        return self.attn.maps(x, x)


class Transformer(Observed):
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        blocks = (ResidualAttentionBlock(tower, in_proj_bias, causal) for _ in range(tower.layers))
        self.resblocks = nn.LayerList(list(blocks))

    @property
    def dtype(self) -> paddle.dtype:
        """Of its matrices."""
        return dtype_of(self)

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor | None = None) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the states at these positions, [n, d]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            self.observe(f"resblocks.{index}", x)
        x = run(last, x) if pooled is None else run(last, x, pooled)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x

    def pool(self, x: paddle.Tensor, pooled: paddle.Tensor) -> paddle.Tensor:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n]."""
        return pick(self(x), pooled) if looked_at(self) else self(x, pooled)


def is_inference(part: Observed, x: paddle.Tensor) -> bool:
    """Whether ``x`` is on a CPU, ``part`` is in evaluation mode, and neither gradients nor stages are wanted of it."""
    if is_plain() or recorded() or paddle.is_grad_enabled() or part.training:
        return False
    return x.place.is_cpu_place() and part.observe is ignore


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


class Mixer(Observed):
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, tower: MixerFields) -> None:
        super().__init__()
        self.resblocks = nn.LayerList([MixerBlock(tower) for _ in range(tower.layers)])

    @property
    def dtype(self) -> paddle.dtype:
        """Of its matrices."""
        return dtype_of(self)

    def forward(self, x: paddle.Tensor, pooled: paddle.Tensor | None = None) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the states at these positions, [n, d]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            self.observe(f"resblocks.{index}", x)
        x = run(last, x) if pooled is None else run(last, x, pooled)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x

    def pool(self, x: paddle.Tensor, pooled: paddle.Tensor) -> paddle.Tensor:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n]."""
        return pick(self(x), pooled) if looked_at(self) else self(x, pooled)


# Whose forward passes are those that a transformer is made of: this package's, and these of Paddle as they are now.
PACKAGE = __name__.rpartition(".")[0]
FORWARDS = {nn.Embedding.forward, nn.LayerList.forward, nn.Linear.forward}
