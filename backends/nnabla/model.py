"""CLIP in NNabla. Its twins are backends/torch/model.py and backends/paddle/model.py: same classes, same order.

Two exact savings are built in. Text is computed up to the longest end-of-text of the batch, since causal attention lets
nothing behind it reach the feature. And the last block of a transformer is computed for the pooled token alone, since
the other tokens of that block are never looked at.

It works under ``nn.auto_forward()`` and as a static graph. A static graph is built before its tokens are known: there
the text is computed in its full length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import TypeVar

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from backends.nnabla.functions import (
    Recomputed,
    attend,
    check_when_computed,
    embed_patches,
    end_of_text,
    gelu,
    layer_norm,
    linear,
    pick,
    project,
    quick_gelu,
    reshape,
    usable_tokens,
)
from backends.nnabla.module import SWITCHES, Module, buffer, empty, plain_errors
from clip_core.architecture import Architecture
from clip_core.backend import Observe, ignore
from clip_core.errors import ClipError
from clip_core.inputs import check_pixel_shape, check_pixels, check_token_shape, check_tokens
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights, check, parameters
from clip_core.text.tokenizer import Tokenizer, tokenizer_of
from clip_core.towers.modified_resnet import ModifiedResNet as ResNetTower
from clip_core.towers.parts import Activation
from clip_core.towers.parts import Transformer as TransformerTower
from clip_core.towers.vision_transformer import VisionTransformer as ViTTower

M = TypeVar("M", bound=Module)


def to_tensor(array: np.ndarray) -> nn.Variable:
    """A NumPy array as a variable."""
    return nn.Variable.from_numpy_array(array)


def to_array(tensor: nn.Variable) -> np.ndarray:
    """A computed variable as a float32 (or integer) NumPy array."""
    array = tensor.data.get_data("r")
    return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)


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

    def __init__(self, channels: int) -> None:
        self.weight = empty(channels)
        self.bias = empty(channels)
        self.running_mean = buffer(np.zeros(channels, np.float32))
        self.running_var = buffer(np.ones(channels, np.float32))
        self.num_batches_tracked = buffer(np.zeros((), np.int64))

    def __call__(self, x: nn.Variable) -> nn.Variable:
        if self.training:  # a static graph counts once, when it is built
            self.num_batches_tracked.data.get_data("rw")[...] += 1
        bias, weight = (F.reshape(value, (1, -1, 1, 1)) for value in (self.bias, self.weight))
        # The running statistics are moved in place, so they must be variables rather than results of a function.
        shape = (1, *self.bias.shape, 1, 1)
        mean, variance = (value.reshape(shape, unlink=True) for value in (self.running_mean, self.running_var))
        return F.batch_normalization(x, bias, weight, mean, variance, eps=1e-5, batch_stat=self.training)


def activate(x: nn.Variable, activation: Activation) -> nn.Variable:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        return quick_gelu(x)
    return F.gelu(x) if activation == "gelu_tanh" else gelu(x)  # NNabla's own is the approximation


class Linear(Module):
    """A linear layer with bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = empty(outputs, inputs)
        self.bias = empty(outputs)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return linear(x, self.weight, self.bias)


class Conv2d(Module):
    """A convolution without bias."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> None:
        self.stride, self.padding = stride, padding
        self.weight = empty(outputs, inputs, size, size)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return F.convolution(x, self.weight, pad=(self.padding,) * 2, stride=(self.stride,) * 2)


def chunk(x: nn.Variable, parts: int) -> list[nn.Variable]:
    """The last axis of [n, l, parts * d] in equal parts [n, l, d]."""
    width = x.shape[2] // parts
    return [x[:, :, part * width : (part + 1) * width] for part in range(parts)]


def normalize(x: nn.Variable) -> nn.Variable:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / F.sum(x**2, axis=1, keepdims=True) ** 0.5


def context_of(device: str) -> nn.Context:
    """NNabla's context for ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ClipError: there is no such device, or NNabla's extension for it is not installed.
    """
    name, _, index = str(device).partition(":")
    extension = {"cpu": "cpu", "cuda": "cudnn", "gpu": "cudnn", "cudnn": "cudnn"}.get(name)
    if extension is None or not (index or "0").isdecimal():
        raise ClipError(f"NNabla has no device {device!r}; choose cpu, cuda or cuda:N.")
    try:
        return get_extension_context(extension, device_id=index or "0")
    except (ImportError, RuntimeError) as error:
        raise ClipError(
            f"NNabla cannot use the device {device!r} here ({error}); "
            "install its extension with: pip install 'triclip[nnabla-cuda]'."
        ) from error


def evaluating(module: M) -> M:
    """A copy in evaluation mode that has the same variables: the module itself may be training in another thread."""
    twin = copy(module)
    twin.training = False
    for name, value in vars(module).items():
        if isinstance(value, Module):
            setattr(twin, name, evaluating(value))
        elif isinstance(value, list):
            setattr(twin, name, [evaluating(part) for part in value])
    return twin


def run(block: ResidualAttentionBlock | Bottleneck, recomputed: bool, *inputs: nn.Variable | None) -> nn.Variable:
    """``block(*inputs)``; if ``recomputed``, it keeps its inputs only, and the backward pass computes it again."""
    if not recomputed or not nn.get_auto_forward():
        return block(*inputs)
    statistics = [variable for _, variable in block.named_parameters() if not variable.need_grad]

    def compute(*inputs: nn.Variable | None) -> nn.Variable:
        # The first pass alone moves running statistics.
        before = [np.array(variable.data.get_data("r")) for variable in statistics]
        result = block(*inputs)
        for variable, value in zip(statistics, before):
            variable.data.get_data("w", value.dtype)[...] = value
        return result

    with nn.no_grad():
        result = block(*inputs)
    return Recomputed(compute, inputs[1:], result)(inputs[0])


class Attention(Module):
    """Self-attention with packed query, key and value weights, for all tokens or for one token of each row."""

    def __init__(self, width: int, heads: int) -> None:
        self.width, self.heads = width, heads
        self.in_proj_weight = empty(3 * width, width)
        self.in_proj_bias = empty(3 * width)
        self.out_proj = Linear(width, width)

    def __call__(self, x: nn.Variable, mask: nn.Variable | None) -> nn.Variable:
        q, k, v = chunk(linear(x, self.in_proj_weight, self.in_proj_bias), 3)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: nn.Variable, pooled: nn.Variable, mask: nn.Variable | None) -> nn.Variable:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.width
        q = linear(pick(x, pooled), weight[:width], bias[:width])
        k, v = chunk(linear(x, weight[width:], bias[width:]), 2)
        x = attend(reshape(q, (x.shape[0], 1, width)), k, v, self.heads, mask)
        return self.out_proj(reshape(x, (x.shape[0], width)))


class MLP(Module):
    """Two linear layers with the activation between them."""

    def __init__(self, tower: TransformerTower) -> None:
        self.activation = tower.activation
        self.c_fc = Linear(tower.width, tower.mlp_width)
        self.c_proj = Linear(tower.mlp_width, tower.width)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualAttentionBlock(Module):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerTower) -> None:
        self.attn = Attention(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, mask: nn.Variable | None, pooled: nn.Variable | None = None) -> nn.Variable:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = pick(x, pooled) + self.attn.forward_pooled(self.ln_1(x), pooled, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(Module):
    """A stack of blocks that ends in the feature of one token of each row."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: TransformerTower) -> None:
        self.resblocks = [ResidualAttentionBlock(tower) for _ in range(tower.layers)]

    def __call__(self, x: nn.Variable, pooled: nn.Variable, causal: bool, observe: Observe, name: str) -> nn.Variable:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        mask = last_mask = None
        if causal:
            n, length, _ = x.shape
            positions = np.arange(length)
            mask = to_tensor((positions <= positions[:, None]).astype(np.float32)[None, None])  # [1, 1, l, l]
            row = to_tensor(np.broadcast_to(positions, (n, 1, 1, length)).astype(np.float32))
            end = F.broadcast(reshape(pooled, (n, 1, 1, 1)), (n, 1, 1, length))
            last_mask = F.less_equal(row, end)  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, self.recomputed, x, mask)
            observe(f"{name}.resblocks.{index}", x)
        x = run(last, self.recomputed, x, last_mask, pooled)
        observe(f"{name}.resblocks.{len(blocks)}", x)
        return x


class VisionTransformer(Module):
    """The image tower of section 2.4 of the paper: patches, a class token, a transformer, a projection."""

    def __init__(self, tower: ViTTower, embed_dim: int) -> None:
        self.class_embedding = empty(tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = Conv2d(3, tower.width, tower.patch, stride=tower.patch)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def __call__(self, x: nn.Variable, observe: Observe) -> nn.Variable:
        x = embed_patches(x, self.conv1.weight)  # [n, 3, r, r] -> [n, grid * grid, d]
        n, _, width = x.shape
        token = F.broadcast(F.reshape(self.class_embedding, (1, 1, width)), (n, 1, width))
        x = F.concatenate(token, x, axis=1)
        x = self.ln_pre(x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape)))
        observe("visual.ln_pre", x)
        first = to_tensor(np.zeros(n, np.int64))
        x = self.transformer(x, first, causal=False, observe=observe, name="visual.transformer")
        x = self.ln_post(x)
        observe("visual.ln_post", x)
        return project(x, self.proj)


class Bottleneck(Module):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        self.stride = stride
        self.conv1 = Conv2d(inputs, inner, 1)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = Conv2d(inner, inner, 3, padding=1)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = Conv2d(inner, inner * 4, 1)
        self.bn3 = BatchNorm2d(inner * 4)
        self.downsample: list[Conv2d | BatchNorm2d] | None = None
        if stride > 1 or inputs != inner * 4:
            self.downsample = [Conv2d(inputs, inner * 4, 1), BatchNorm2d(inner * 4)]

    def __call__(self, x: nn.Variable) -> nn.Variable:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.average_pooling(x, (self.stride,) * 2), F.average_pooling(y, (self.stride,) * 2)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            for part in self.downsample:
                x = part(x)
        return F.relu(x + y)


class AttentionPool2d(Module):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        width = tower.feature_width
        self.heads = tower.heads
        self.positional_embedding = empty(tower.grid**2 + 1, width)
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, embed_dim)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        x = F.transpose(reshape(x, (*x.shape[:2], -1)), (0, 2, 1))  # [n, c, h, w] -> [n, h * w, c]
        x = F.concatenate(F.mean(x, axis=1, keepdims=True), x, axis=1)
        x = x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape))
        x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(reshape(x, (x.shape[0], -1)))


class ModifiedResNet(Module):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        half = tower.width // 2
        self.conv1 = Conv2d(3, half, 3, stride=2, padding=1)
        self.bn1 = BatchNorm2d(half)
        self.conv2 = Conv2d(half, half, 3, padding=1)
        self.bn2 = BatchNorm2d(half)
        self.conv3 = Conv2d(half, tower.width, 3, padding=1)
        self.bn3 = BatchNorm2d(tower.width)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = []
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def __call__(self, x: nn.Variable, observe: Observe) -> nn.Variable:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.average_pooling(x, (2, 2))
        observe("visual.stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, self.recomputed, x)
                observe(f"visual.layer{stage}.{index}", x)
        return self.attnpool(x)


class Embedding(Module):
    """Rows that are looked up by number."""

    def __init__(self, rows: int, width: int) -> None:
        self.weight = empty(rows, width)

    def __call__(self, indices: nn.Variable) -> nn.Variable:
        return F.embed(indices, self.weight)


class CLIP(Module):
    """Two towers into one space, in evaluation mode until ``train()`` is called.

    Several threads may use a model at once; only between their calls may its mode be changed, or its weights. NNabla
    has one switch ``auto_forward`` for all threads, and ``embed_image``, ``embed_text`` and ``layers`` turn it on for
    as long as they compute: a thread that computes in another way meanwhile sets it once for all, with
    ``nn.set_auto_forward(True)``, rather than by ``with nn.auto_forward()``.

    Args:
        architecture: the shape of the model.
        weights: canonical name -> array, all of them.
        device: ``cpu``, or ``cuda`` or ``cuda:N`` for NNabla's cuDNN extension; by default the current context is used,
            whatever it is when a function is called.
        precision: ``fp32``.
        source: what the weights came from, for messages.
        vocabulary: the text of a merges file; without it, the vocabulary is OpenAI's.

    Raises:
        CheckpointError: the weights do not fit the architecture; every fault is listed.
    """

    backend = "nnabla"

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, np.ndarray],
        device: str | None = None,
        precision: str = "fp32",
        source: str = "the set of weights",
        vocabulary: str | None = None,
    ) -> None:
        if precision != "fp32":
            raise ClipError(f"There is no precision {precision!r} in NNabla; it computes in fp32.")
        check(architecture, weights, source)
        self.architecture, self.source, self.vocabulary = architecture, source, vocabulary
        self.context = None if device is None else context_of(device)
        text = architecture.text
        self.positional_embedding = empty(text.context_length, text.width)
        self.text_projection = empty(text.width, architecture.embed_dim)
        self.logit_scale = empty()
        self.logit_bias = empty() if architecture.logit_bias else None
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(architecture.image, ViTTower):
            self.visual = VisionTransformer(architecture.image, architecture.embed_dim)
        else:
            self.visual = ModifiedResNet(architecture.image, architecture.embed_dim)
        self.transformer = Transformer(text)
        self.token_embedding = Embedding(text.vocabulary_size, text.width)
        self.ln_final = LayerNorm(text.width, text.epsilon)
        self._set(weights)

    def load(self, weights: Mapping[str, np.ndarray], source: str = "the set of weights") -> None:
        """Take over ``weights``: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        check(self.architecture, weights, source)
        self._set(weights)

    def _set(self, weights: Mapping[str, np.ndarray]) -> None:
        variables = dict(self.named_parameters())
        for parameter in parameters(self.architecture):
            dtype = np.int64 if parameter.kind == "counter" else np.float32
            variables[parameter.name].data.get_data("w", dtype)[...] = weights[parameter.name]

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        variables = dict(self.named_parameters())
        return {parameter.name: to_array(variables[parameter.name]) for parameter in parameters(self.architecture)}

    def recompute_blocks(self, wanted: bool = True) -> None:
        """Let backward passes under ``nn.auto_forward()`` compute each block again, and keep nothing of it."""
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.recomputed = wanted

    def publish(self) -> None:
        """Make the parameters visible in NNabla's current parameter scope, under NNabla's names.

        ``nn.get_parameters``, solvers and ``nn.save_parameters`` then work on this model. The parameters of a model
        that was published there before leave the scope; that model keeps working.
        """
        variables = dict(self.named_parameters())
        names = {parameter.name: LAYOUTS["nnabla"].spell(parameter.name) for parameter in parameters(self.architecture)}
        scope = nn.parameter.get_current_parameter_scope()
        for top in {name.split("/")[0] for name in names.values()}:
            scope.pop(top, None)
        for name, spelled in names.items():
            nn.parameter.set_parameter(spelled, variables[name])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.tokenizer.tokenizer_of`)."""
        return tokenizer_of(self.source, self.architecture, self.vocabulary)

    def tokenize(
        self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False
    ) -> np.ndarray:
        """Texts -> int64 tokens [n, context_length] of the model's own vocabulary, by default of its own length.

        Raises:
            TextError: a text is too long and ``truncate`` is off, or is not a text; or the vocabulary is not known.
            DownloadError: it is OpenAI's, and that cannot be had.
        """
        length = self.architecture.text.context_length if context_length is None else context_length
        return self.tokenizer.tokenize(texts, length, truncate)

    def encode_image(self, image: nn.Variable | np.ndarray, observe: Observe = ignore) -> nn.Variable:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape; of an array also: another type, or values that no preprocessing
                gives.
        """
        image = self._pixels(image)
        if image.shape[0] == 0:  # NNabla's functions stop the process at an empty batch
            return to_tensor(np.zeros((0, self.architecture.embed_dim), np.float32))
        with self._in_context():
            features = self.visual(image, observe)
        observe("image_features", features)
        return features

    def encode_text(self, text: nn.Variable | np.ndarray, observe: Observe = ignore) -> nn.Variable:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or are no whole numbers, an id is outside the vocabulary, or a text
                is without its end-of-text token; of an array also: another type. The tokens of a static graph are
                checked when it is computed, and NNabla raises a SystemError whose first cause is this error.
        """
        text, tower = self._tokens(text), self.architecture.text
        if text.shape[0] == 0:
            return to_tensor(np.zeros((0, self.architecture.embed_dim), np.float32))
        with self._in_context():
            if nn.get_auto_forward():
                tokens = usable_tokens(text.data.get_data("r"), tower)
                last = int((tokens == tower.end_of_text).argmax(axis=-1).max())
                text = to_tensor(tokens[:, : last + 1])
            else:
                text = check_when_computed(text, tower)
            end = end_of_text(text, tower.end_of_text)
            length = text.shape[1]
            x = self.token_embedding(text) + F.reshape(self.positional_embedding[:length], (1, length, -1))  # [n, l, d]
            observe("token_embedding", x)
            x = self.transformer(x, end, causal=True, observe=observe, name="transformer")
            x = self.ln_final(x)
            observe("ln_final", x)
            features = project(x, self.text_projection)
        observe("text_features", features)
        return features

    def __call__(
        self, image: nn.Variable | np.ndarray, text: nn.Variable | np.ndarray
    ) -> tuple[nn.Variable, nn.Variable]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
        image_features, text_features = self.encode_image(image), self.encode_text(text)
        n, m = image_features.shape[0], text_features.shape[0]
        if n == 0 or m == 0:
            return to_tensor(np.zeros((n, m), np.float32)), to_tensor(np.zeros((m, n), np.float32))
        with self._in_context():
            scale = F.reshape(F.exp(self.logit_scale), (1, 1))
            logits = scale * linear(normalize(image_features), normalize(text_features))
            if self.logit_bias is not None:
                logits = logits + F.reshape(self.logit_bias, (1, 1))
            return logits, F.transpose(logits, (1, 0))

    def embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """The values of `encode_image` as a float32 array [n, d], without gradient."""
        with self._evaluation() as model:
            return to_array(model.encode_image(pixels))

    def embed_text(self, tokens: np.ndarray) -> np.ndarray:
        """The values of `encode_text` as a float32 array [n, d], without gradient."""
        with self._evaluation() as model:
            return to_array(model.encode_text(tokens))

    def layers(self, pixels: np.ndarray, tokens: np.ndarray) -> Weights:
        """What each block computes, float32, in the order of computation (`clip_core.backend.Model.layers`)."""
        seen: Weights = {}

        def observe(name: str, value: nn.Variable) -> None:
            seen[name] = to_array(value)

        with self._evaluation() as model:
            model.encode_image(pixels, observe)
            model.encode_text(tokens, observe)
        return seen

    def _pixels(self, image: nn.Variable | np.ndarray) -> nn.Variable:
        resolution = self.architecture.image.resolution
        if not isinstance(image, nn.Variable):
            image = to_tensor(check_pixels(image, resolution))
        check_pixel_shape(image.shape, resolution)
        return image

    def _tokens(self, text: nn.Variable | np.ndarray) -> nn.Variable:
        tower = self.architecture.text
        if not isinstance(text, nn.Variable):
            text = to_tensor(check_tokens(text, tower.context_length, tower.vocabulary_size, tower.end_of_text))
        check_token_shape(text.shape, tower.context_length)
        return text

    @contextmanager
    def _in_context(self) -> Iterator[None]:
        with SWITCHES, plain_errors(), nn.context_scope(self.context or nn.get_current_context()):
            yield

    @contextmanager
    def _evaluation(self) -> Iterator[CLIP]:
        """This model at once, without gradient, and with running statistics used rather than moved."""
        with SWITCHES, nn.auto_forward(), nn.no_grad():
            yield evaluating(self) if any(module.training for module in self.modules()) else self
