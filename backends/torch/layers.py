"""Layers that towers share in PyTorch. Its twins are the files of this name in the other backends.

The last block of a transformer can be computed for the pooled token alone, where the other tokens of that block are
never looked at. That is exact. Code that hooks, replaces or records parts of a model looks at them (`looked_at`): then
they compute all tokens as [l, n, d], like the modules of the same names in OpenAI's package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain, count
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._C import _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils.checkpoint import checkpoint

from backends.torch import packs
from backends.torch.inductor import advance, compiled
from backends.torch.sharding import is_sharded
from backends.torch.tensors import to_array
from clip_core.backend import Observe, ignore, is_plain
from clip_core.inputs import check_tokens
from clip_core.noise import Noise, PatchNoise
from clip_core.towers.parts import Activation, TextTower
from clip_core.towers.parts import Mixer as MixerFields
from clip_core.towers.parts import Transformer as TransformerFields


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the precision of its own parameters, which is float32 in a loaded model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gradients = torch.is_grad_enabled()
        if recorded(x) or (gradients and x.dtype != torch.float32):
            return x * torch.sigmoid(1.702 * x)
        # The same in less memory, and in float32, whose roundings do not matter, in fewer operations.
        scaled = 1.702 * x
        if x.dtype == torch.float32:
            return F.silu(scaled, inplace=not gradients).div_(1.702)
        return scaled.sigmoid_().mul_(x)


def embedding(count: int, width: int) -> nn.Embedding:
    """A table of vectors without the initial values of `nn.Embedding`. On the meta device PyTorch would import
    torch._dynamo for them, which takes longer than all else of loading a small model."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def normalize(x: torch.Tensor) -> torch.Tensor:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / x.norm(dim=-1, keepdim=True)


def activation_of(activation: Activation) -> nn.Module:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if activation == "gelu_tanh" else "none")


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [n, l, d] -> [n, heads, l, d/heads]
    if torch.is_grad_enabled() and q.device == packs.CPU and q.dtype == torch.bfloat16 and not recorded(q):
        # PyTorch's backward pass in bf16 takes three times as long as that in float32.
        with torch.autocast("cpu", enabled=False):
            x = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
    else:
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return x.transpose(1, 2).flatten(2)  # [n, heads, q, d/heads] -> [n, q, d]


def attention_maps(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """How much each of the queries [n, q, d] looks at each of the keys [n, l, d]: [n, heads, q, l]."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))  # [n, l, d] -> [n, heads, l, d/heads]
    return (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1)


def attention_of(width: int, heads: int, in_proj_bias: bool = True) -> nn.MultiheadAttention:
    """PyTorch's own attention, which takes [l, n, d]; `attend_tokens` and `attend_queries` compute with its weights."""
    attention = nn.MultiheadAttention(width, heads)
    if not in_proj_bias:
        attention.register_parameter("in_proj_bias", None)
    return attention


def attend_tokens(attention: nn.MultiheadAttention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[n, l, d] -> [n, l, d]; ``mask`` as for `attend`."""
    q, k, v = linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    return apply(attention.out_proj, attend(q, k, v, attention.num_heads, mask))


def attend_queries(
    attention: nn.MultiheadAttention, queries: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """[n, q, d], [n, l, d] -> [n, q, d]: the ``queries`` ask, and the tokens answer."""
    q, k, v = _projected(attention, queries, x)
    return apply(attention.out_proj, attend(q, k, v, attention.num_heads, mask))


def maps_of(attention: nn.MultiheadAttention, queries: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[n, q, d], [n, l, d] -> [n, heads, q, l]: how much each query looks at each token."""
    q, k, _ = _projected(attention, queries, x)
    return attention_maps(q, k, attention.num_heads)


def _projected(
    attention: nn.MultiheadAttention, queries: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = [attention.embed_dim, 2 * attention.embed_dim]
    weights = attention.in_proj_weight.split(sizes)
    biases = (None, None) if attention.in_proj_bias is None else attention.in_proj_bias.split(sizes)
    q = linear(queries, weights[0], biases[0])
    k, v = linear(x, weights[1], biases[1]).chunk(2, dim=-1)
    return q, k, v


def pick(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n, l, d] at ``positions`` [n] -> [n, d]."""
    return x[torch.arange(x.shape[0], device=x.device), positions]


def causal_mask(length: int, device: torch.device | None = None) -> torch.Tensor:
    """[l, l], true where a token sees another: itself, and those in front of it."""
    positions = torch.arange(length, device=device)
    return positions <= positions[:, None]


@cache
def _added_causal_mask(length: int) -> torch.Tensor:
    """That of `is_causal`, which nobody else gets to see."""
    return added_mask(causal_mask(length, torch.device("cpu")), torch.float32)


def is_causal(mask: torch.Tensor | None) -> bool:
    """Whether a mask is one that transformers are made with: added by causal attention, float32 on the CPU."""
    if mask is None or mask.ndim != 2 or mask.dtype != torch.float32 or mask.device.type != "cpu":
        return False
    return torch.equal(mask, _added_causal_mask(len(mask)))


def added_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores of attention, as in OpenAI's package: nothing where seen, else minus infinity."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf)


def ends_of(text: torch.Tensor, tower: TextTower) -> tuple[torch.Tensor, int]:
    """Where each row of tokens [n, l] first has its end-of-text token [n], and the last of these places.

    Where the tokens have no values to depend on (`recorded`), they are not checked, and that place may be the last. A
    text without its end-of-text token is then taken to end at its largest id, as in OpenAI's package.

    Raises:
        TextError: an id is outside the vocabulary, or a text is without its end-of-text token.
    """
    is_end = text == tower.required_token
    end = is_end.int().argmax(dim=-1)
    if recorded(text):
        return torch.where(is_end.any(dim=-1), end, text.argmax(dim=-1)), text.shape[1] - 1
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
    if recorded(text):
        return text
    low, high = torch.stack([text.min(), text.max()]).tolist()
    if not (low >= 0 and high < tower.vocabulary_size):
        check_tokens(to_array(text), tower)  # says which one
    return text


def dtype_of(*modules: nn.Module) -> torch.dtype:
    """Of the first matrix in ``modules``; some other parameters stay in float32."""
    parts = chain.from_iterable(module.modules() for module in modules)
    return next(part.weight.dtype for part in parts if isinstance(part, nn.Linear | nn.Conv2d))


def recorded(x: torch.Tensor) -> bool:
    """Whether what is done with ``x`` is recorded (compiled, exported, traced, vectorised) or has no values at all.

    What is computed must not depend on values then.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in (torch.Tensor, nn.Parameter)  # such as a fake tensor
        or x.is_meta
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def looked_at(x: torch.Tensor, *modules: nn.Module) -> bool:
    """Whether other code sees how ``modules`` compute with ``x``, or has changed it: they, or any of their parts, have
    hooks or belong to other classes, or the computation is recorded, or it is wanted as if other code saw it.
    """
    if is_plain() or recorded(x) or _has_any_global_hook() or _methods() != METHODS or _has_mode():
        return True
    return not all(map(_is_original, modules))


def _is_original(module: nn.Module) -> bool:
    # Few steps for each part: all of a transformer's are looked through each time that it computes.
    parts = [module]
    for part in parts:
        if type(part) not in KINDS and not _is_sharded(part):
            return False
        own = part.__dict__
        hooks = (
            own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
        )
        if "forward" in own or "attention" in own or (hooks and not _is_sharded(part)):
            return False
        if isinstance(part, nn.MultiheadAttention) and not _is_plain(part):
            return False
        parts += own["_modules"].values()
    return True


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether other code has set none of the options that only PyTorch's own forward pass has."""
    return not (attention.dropout or attention.add_zero_attn or attention.batch_first) and attention.bias_k is None


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 alone has derived the class of a module and hooked it: it gathers weights, and sees no token."""
    kinds = type(module).__mro__
    kind = next((kind for kind in kinds if kind in KINDS), nn.MultiheadAttention)
    if kind is nn.MultiheadAttention:  # or a class from elsewhere; attention is not always called as a module
        return False
    hooks = [hook for name in HOOKS for hook in module.__dict__[name].values()]
    added = (*kinds[: kinds.index(kind)], *hooks)
    return all(getattr(each, "__module__", "").startswith("torch.distributed") for each in added)


def _methods() -> list[Callable[..., Any]]:
    """The forward passes as of now, and what they call: other code may have set others."""
    forward = (kind.forward for kind in KINDS)
    return [*forward, ResidualAttentionBlock.attention, *(getattr(F, name) for name in FUNCTIONS)]


def _has_mode() -> bool:
    """Whether a mode of PyTorch sees each function or operator that is called."""
    modes = (type(mode) for mode in _get_current_function_mode_stack())
    return _len_torch_dispatch_stack() > 0 or any(mode is not DeviceContext for mode in modes)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear`, on a CPU by oneDNN: in float32, and in inference also in bf16 (`packs.linear`).

    In float32 PyTorch itself takes MKL, which has half of that speed on AMD's processors. Where tensors are of other
    kinds, or other code watches what is called, it is `F.linear`.
    """
    gradients = torch.is_grad_enabled()
    if gradients:
        packs.forget(id(weight))
    if (
        packs.takes(x, weight, bias)
        and not (gradients and x.dtype == torch.bfloat16)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and type(weight) in (torch.Tensor, nn.Parameter)
        and x.numel() > 0
        and weight.numel() > 0
        and forward_ad._current_level < 0
        and not looked_at(x)
    ):
        return OneDNNLinear.apply(x, weight, bias) if gradients else packs.linear(x, weight, bias)
    return F.linear(x, weight, bias)


class OneDNNLinear(torch.autograd.Function):
    """A linear layer by oneDNN, whose gradients are linear layers, too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return packs.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # [..., out] -> [n, out]
        return (
            linear(gradient, weight.t(), None) if of_x else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def embed_patches(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """``layer`` over pictures [n, c, h, w] -> [n, patches, d].

    In inference on a CPU, patches that tile the picture are the rows of a matrix, which oneDNN multiplies faster.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or looked_at(x, layer) or not _tiles(layer, x):
        return layer(x).flatten(2).transpose(1, 2)  # [n, d, rows, columns] -> [n, patches, d]
    height, width = layer.kernel_size
    x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [n, c, rows, height, columns, width]
    x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [n, patches, c * height * width]
    return linear(x, layer.weight.flatten(1), layer.bias)


def _tiles(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether ``layer`` is a convolution that looks at each pixel of ``x`` once."""
    if type(layer) is not nn.Conv2d or (layer.padding, layer.dilation, layer.groups) != ((0, 0), (1, 1), 1):
        return False
    height, width = layer.kernel_size
    return layer.stride == (height, width) and x.shape[2] % height == x.shape[3] % width == 0


def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``; that of a linear layer which nobody looks at is `linear`."""
    if isinstance(layer, nn.Linear) and not looked_at(x, layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


class Observed(nn.Module):
    """What tells of the stages of its computation. `CLIP.layers` gives copies of a model's parts an observer."""

    observe: Observe = staticmethod(ignore)


class Block(nn.Module):
    """What is recomputed, compiled and sharded in one piece."""

    recomputed = False  # whether backward passes compute it again, in place of keeping what it computed
    noise: Noise | None = None  # of the step under way

    def drop(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """What a part of the block, the first (0) or the second (1), adds [n, ..., d], with the noise of training."""
        if self.noise is None or not self.training:
            return x
        return x * torch.from_numpy(self.noise.factors(part, x.shape)).to(x)


def run(block: nn.Module, *inputs: Any) -> torch.Tensor:
    """``block(*inputs)``, which keeps its inputs only if it is a block that is recomputed."""
    if not (isinstance(block, Block) and block.recomputed):
        return block(*inputs)
    passes = count()

    def compute(*inputs: Any) -> torch.Tensor:
        # The first pass alone moves running statistics.
        statistics = {name: buffer.clone() for name, buffer in block.named_buffers()} if next(passes) else {}
        return functional_call(block, statistics, inputs)

    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)


class Blocks(nn.Sequential, Observed):
    """Blocks one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self):
            x = run(block, x)
            if self.observe is not ignore:
                # Transformers compute [l, n, d] where other code looks at them, and tell of [n, l, d] as ever.
                self.observe(str(index), x.transpose(0, 1) if x.ndim == 3 else x)
        return x


class PatchDropout:
    """Leaves patches out of a tower that is trained; ``leading`` tokens in front of them stay.

    It is no module, since OpenAI's tower has none in its place.
    """

    noise: PatchNoise | None = None  # of the step under way

    def __init__(self, leading: int) -> None:
        self.leading = leading

    def __call__(self, x: torch.Tensor, training: bool) -> torch.Tensor:
        """[n, leading + patches, d] -> [n, leading + kept, d]."""
        if self.noise is None or not training:
            return x
        kept = torch.from_numpy(self.noise.kept(len(x), x.shape[1] - self.leading)).to(x.device) + self.leading
        rows = torch.arange(len(x), device=x.device)[:, None]
        return torch.cat([x[:, : self.leading], x[rows, kept]], dim=1)


class MLP(nn.Sequential):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner_width)
        self.gelu = activation_of(activation)
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = apply(layer, x)
        return x


class MLPHead(nn.Module):
    """Two linear layers without bias, with a ReLU between them."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, width, bias=False)
        self.c_proj = nn.Linear(width, embed_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)))


class ResidualAttentionBlock(Block):
    """A pre-norm transformer block.

    Args:
        attn_mask: what is added to the scores of attention, [l, l]; None if every token sees all.
    """

    def __init__(
        self, tower: TransformerFields, in_proj_bias: bool = True, attn_mask: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.attn = attention_of(tower.width, tower.heads, in_proj_bias)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower.width, tower.mlp_width, tower.activation)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)
        self.attn_mask = attn_mask

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        batch_first: bool = False,
    ) -> torch.Tensor:
        """[l, n, d] -> [l, n, d], as in OpenAI's class.

        With ``batch_first`` the same as [n, l, d] -> [n, l, d], under a ``mask`` as for `attend`; with ``pooled`` [n]
        only the tokens at these positions, [n, d].
        """
        if not batch_first:  # noise is drawn for [n, l, d]
            x = x + self.drop(self.attention(self.ln_1(x)).transpose(0, 1), 0).transpose(0, 1)
            return x + self.drop(self.mlp(self.ln_2(x)).transpose(0, 1), 1).transpose(0, 1)
        if pooled is None:
            x = x + self.drop(attend_tokens(self.attn, self.ln_1(x), mask), 0)
        else:
            normed = self.ln_1(x)
            attended = attend_queries(self.attn, pick(normed, pooled).unsqueeze(1), normed, mask)
            x = pick(x, pooled) + self.drop(attended.squeeze(1), 0)
        return x + self.drop(self.mlp(self.ln_2(x)), 1)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """[l, n, d] -> [l, n, d], under the block's own mask: the last rows and columns of one that is larger."""
        mask = self.attn_mask
        if mask is not None and recorded(x):  # by its values: a slice would record whether this text fills the mask
            rows = torch.arange(mask.shape[-1] - x.shape[0], mask.shape[-1], device=mask.device)
            mask = mask.index_select(-2, rows).index_select(-1, rows).to(x)
        elif mask is not None:
            if len(x) > mask.shape[-1] and is_causal(mask):
                mask = added_mask(causal_mask(len(x)), x.dtype)
            start = mask.shape[-1] - x.shape[0]
            mask = mask[..., start:, start:].to(x)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        """What the block takes, [n, l, d], without a mask -> [n, heads, l, l]."""
        x = self.ln_1(x)
        return maps_of(self.attn, x, x)


class Transformer(Observed):
    """A stack of blocks that ends in the state of one token of each row, or in those of all."""

    compiled = False  # whether inference takes blocks as compiled code, except the last, if that pools

    def __init__(self, tower: TransformerFields, in_proj_bias: bool = True, context_length: int | None = None) -> None:
        super().__init__()
        self.width, self.layers, self.causal = tower.width, tower.layers, context_length is not None
        mask = None  # of all blocks
        if context_length is not None:
            mask = added_mask(causal_mask(context_length, torch.device("cpu")), torch.float32)
        self.resblocks = Blocks(*(ResidualAttentionBlock(tower, in_proj_bias, mask) for _ in range(tower.layers)))

    @property
    def dtype(self) -> torch.dtype:
        """Of its matrices."""
        return dtype_of(self)

    def is_whole(self, x: torch.Tensor, *others: nn.Module) -> bool:
        """Whether all tokens have to be computed as in OpenAI's class: this transformer or the ``others`` are looked
        at, or its blocks got other masks.
        """
        if looked_at(x, self, *others):
            return True
        masks = {id(block.attn_mask): block.attn_mask for block in self.resblocks}.values()
        return not all(is_causal(mask) if self.causal else mask is None for mask in masks)

    def forward(self, x: torch.Tensor, pooled: torch.Tensor | None = None, batch_first: bool = False) -> torch.Tensor:
        """[l, n, d] -> [l, n, d], as in OpenAI's class.

        With ``batch_first`` the same as [n, l, d] -> [n, l, d]; with ``pooled`` [n] only the states at these positions,
        [n, d].
        """
        if not batch_first:
            return self.resblocks(x)
        mask = last_mask = None
        if self.causal:
            mask = causal_mask(x.shape[1], x.device)  # [l, l]
            last_mask = mask if pooled is None else mask[pooled][:, None, None]  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        compute = compiled(advance) if self.compiled and is_evaluated(self) else run
        for index, block in enumerate(blocks):
            x = compute(block, x, mask, None, True)
            self.observe(f"resblocks.{index}", x)
        x = (compute if pooled is None else run)(last, x, last_mask, pooled, True)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x

    def pool(self, x: torch.Tensor, pooled: torch.Tensor | None, whole: bool) -> torch.Tensor:
        """[n, l, d] -> [n, d], the states at the positions ``pooled`` [n], or all where that is None, [n, l, d].

        Args:
            whole: whether all tokens have to be computed as in OpenAI's class, which says `is_whole`.
        """
        if not whole:
            return in_chunks(self, x, pooled)
        x = self(x.transpose(0, 1)).transpose(0, 1)  # [n, l, d] -> [l, n, d] -> [n, l, d]
        return x if pooled is None else pick(x, pooled)


def is_inference(part: Observed, x: torch.Tensor) -> bool:
    """Whether ``x`` is on a CPU, and ``part`` computes for inference alone (`is_evaluated`)."""
    return x.device.type == "cpu" and is_evaluated(part)


def is_evaluated(part: Observed) -> bool:
    """Whether ``part`` is in evaluation mode, and neither gradients nor stages are wanted of it.

    Weights that are spread over processes are there while their block runs, so they want it to run as it is.
    """
    if torch.is_grad_enabled() or part.training or part.observe is not ignore:
        return False
    return not any(map(is_sharded, part.parameters()))


def in_chunks(transformer: Transformer, x: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
    """[n, l, d] -> [n, d] or [n, l, d]; in inference on a CPU as many rows at once as its caches hold."""
    if not is_inference(transformer, x):
        return transformer(x, pooled, batch_first=True)
    rows = max(1, CHUNK // (x[0].numel() * x.element_size())) if len(x) else 1
    chunks = x.split(rows)
    places = [None] * len(chunks) if pooled is None else pooled.split(rows)
    return torch.cat([transformer(*chunk, batch_first=True) for chunk in zip(chunks, places)])


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


class Mixer(Observed):
    """A stack of Mixer blocks that ends in the state of one token of each row."""

    def __init__(self, tower: MixerFields) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(MixerBlock(tower) for _ in range(tower.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of its matrices."""
        return dtype_of(self)

    def forward(self, x: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, x)
            self.observe(f"resblocks.{index}", x)
        x = run(last, x, pooled)
        self.observe(f"resblocks.{len(blocks)}", x)
        return x


# The classes that a transformer is made of, the functions that they call, and all of these at first.
KINDS = {
    *(nn.Conv2d, nn.Embedding, nn.GELU, nn.Linear, type(nn.MultiheadAttention(1, 1).out_proj)),
    *(nn.MultiheadAttention, Blocks, LayerNorm, MLP, QuickGELU, ResidualAttentionBlock, Transformer),
}
FUNCTIONS = (
    *("conv2d", "embedding", "layer_norm", "linear", "multi_head_attention_forward"),
    "scaled_dot_product_attention",
)
CHUNK = 2_500_000  # bytes that the states of a transformer's tokens take at once, such as 16 pictures of ViT-B/32
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = _methods()
