"""CLIP in Paddle. Its twins are backends/torch/model.py and backends/nnabla/model.py: same classes, same order.

Two exact savings are built in. Text is computed up to the longest end-of-text of the batch, since causal attention lets
nothing behind it reach the feature. And the last block of a transformer is computed for the pooled token alone, since
the other tokens of that block are never looked at.

Parameters carry their canonical names; linear weights are stored [in, out], which is how Paddle multiplies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.base import initializer
from paddle.distributed.fleet.utils import recompute

from clip_core.architecture import Architecture
from clip_core.backend import Observe, ignore
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.inputs import check_pixel_shape, check_pixels, check_token_shape, check_tokens
from clip_core.naming import Weights, check, parameters
from clip_core.text.tokenizer import Tokenizer, tokenizer_of
from clip_core.towers.modified_resnet import ModifiedResNet as ResNetTower
from clip_core.towers.parts import Activation
from clip_core.towers.parts import Transformer as TransformerTower
from clip_core.towers.vision_transformer import VisionTransformer as ViTTower

M = TypeVar("M", bound=nn.Layer)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PROCESSOR = Path("/proc/cpuinfo")


def to_tensor(array: np.ndarray) -> paddle.Tensor:
    """A NumPy array as a tensor on the CPU."""
    return paddle.to_tensor(array, place=paddle.CPUPlace())


def to_array(tensor: paddle.Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) NumPy array."""
    tensor = tensor.detach()
    return (tensor.astype("float32") if tensor.is_floating_point() else tensor).numpy()


@contextmanager
def constant_initial_values() -> Iterator[None]:
    """Spare Paddle the drawing of random numbers for values that are about to be overwritten."""
    users = initializer._global_weight_initializer(), initializer._global_bias_initializer()
    nn.initializer.set_global_initializer(nn.initializer.Constant(), nn.initializer.Constant())
    try:
        yield
    finally:
        nn.initializer.set_global_initializer(*users)


def normalize(x: paddle.Tensor) -> paddle.Tensor:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / x.norm(axis=-1, keepdim=True)


def use_device(device: str | None) -> None:
    """Make ``device`` Paddle's current one (``cuda`` means ``gpu``), and let the CPU use all that it has.

    Raises:
        ClipError: this build of Paddle has no such device.
    """
    # Left alone, Paddle uses one thread.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    paddle.core.set_num_threads(int(asked) if asked.isdecimal() and int(asked) else cores)
    # The MKL in Paddle's wheels takes AMD's processors for the oldest ones, at less than half of their speed.
    processor = PROCESSOR.read_text() if PROCESSOR.is_file() else ""
    if "AuthenticAMD" in processor and "avx2" in processor:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # has AVX2; read at the first matrix product
    if device is None:
        return
    try:
        paddle.set_device(str(device).replace("cuda", "gpu"))
    except (ValueError, OSError, RuntimeError) as error:
        raise ClipError(
            f"Paddle cannot use the device {device!r} here: {str(error).strip().splitlines()[-1]}."
        ) from error


def empty(*shape: int) -> paddle.Tensor:
    """A trainable parameter whose value is about to be set."""
    return paddle.create_parameter(list(shape), "float32", default_initializer=nn.initializer.Constant())


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision of the input."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x.astype("float32")).astype(x.dtype)


class BatchNorm2d(nn.Layer):
    """Batch normalisation in float32 under the names that PyTorch gives its parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = empty(channels)
        self.bias = empty(channels)
        self.register_buffer("running_mean", paddle.zeros([channels]))
        self.register_buffer("running_var", paddle.ones([channels]))
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        kept = 0.9 * self.running_var
        y = F.batch_norm(
            x.astype("float32"), self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        if self.training:
            self.num_batches_tracked += 1
            # Paddle adds the mean square deviation of n values; PyTorch and NNabla add n / (n - 1) times that.
            n = x.shape[0] * x.shape[2] * x.shape[3]
            self.running_var += (self.running_var - kept) / max(n - 1, 1)
        return y.astype(x.dtype)


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


def evaluating(layer: M) -> M:
    """A copy in evaluation mode that has the same tensors: the layer itself may be training in another thread."""
    twin = copy(layer)
    twin.training = False
    twin._sub_layers = {name: None if part is None else evaluating(part) for name, part in layer._sub_layers.items()}
    return twin


def run(block: nn.Layer, recomputed: bool, *inputs: paddle.Tensor | None) -> paddle.Tensor:
    """``block(*inputs)``; if ``recomputed``, it keeps its inputs only, and the backward pass computes it again."""
    if not recomputed:
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


class Attention(nn.Layer):
    """Self-attention with packed query, key and value weights, for all tokens or for one token of each row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = empty(width, 3 * width)
        self.in_proj_bias = empty(3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, axis=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: paddle.Tensor, pooled: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        weights, biases = self.in_proj_weight.split([self.width, 2 * self.width], axis=1), self.in_proj_bias
        q = F.linear(pick(x, pooled).unsqueeze(1), weights[0], biases[: self.width])
        k, v = F.linear(x, weights[1], biases[self.width :]).chunk(2, axis=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask)).squeeze(1)


class MLP(nn.Layer):
    """Two linear layers with the activation between them."""

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.activation = tower.activation
        self.c_fc = nn.Linear(tower.width, tower.mlp_width)
        self.c_proj = nn.Linear(tower.mlp_width, tower.width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualAttentionBlock(nn.Layer):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.attn = Attention(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(
        self, x: paddle.Tensor, mask: paddle.Tensor | None, pooled: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = pick(x, pooled) + self.attn.forward_pooled(self.ln_1(x), pooled, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Layer):
    """A stack of blocks that ends in the feature of one token of each row."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.resblocks = nn.LayerList([ResidualAttentionBlock(tower) for _ in range(tower.layers)])

    def forward(
        self, x: paddle.Tensor, pooled: paddle.Tensor, causal: bool, observe: Observe, name: str
    ) -> paddle.Tensor:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        mask = last_mask = None
        if causal:
            positions = paddle.arange(x.shape[1])
            mask = positions <= positions[:, None]  # [l, l]
            last_mask = (positions <= pooled[:, None])[:, None, None]  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, self.recomputed, x, mask)
            observe(f"{name}.resblocks.{index}", x)
        x = run(last, self.recomputed, x, last_mask, pooled)
        observe(f"{name}.resblocks.{len(blocks)}", x)
        return x


class VisionTransformer(nn.Layer):
    """The image tower of section 2.4 of the paper: patches, a class token, a transformer, a projection."""

    def __init__(self, tower: ViTTower, embed_dim: int) -> None:
        super().__init__()
        self.class_embedding = empty(tower.width)
        self.positional_embedding = empty(tower.grid**2 + 1, tower.width)
        self.proj = empty(tower.width, embed_dim)
        self.conv1 = nn.Conv2D(3, tower.width, tower.patch, stride=tower.patch, bias_attr=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: paddle.Tensor, observe: Observe) -> paddle.Tensor:
        x = self.conv1(x).flatten(2).transpose([0, 2, 1])  # [n, 3, r, r] -> [n, grid * grid, d]
        x = paddle.concat([self.class_embedding.astype(x.dtype).expand([len(x), 1, -1]), x], axis=1)
        x = self.ln_pre(x + self.positional_embedding.astype(x.dtype))
        observe("visual.ln_pre", x)
        first = paddle.zeros([len(x)], dtype="int64")
        x = self.transformer(x, first, causal=False, observe=observe, name="visual.transformer")
        x = self.ln_post(x)
        observe("visual.ln_post", x)
        return x @ self.proj.astype(x.dtype)


class Bottleneck(nn.Layer):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2D(inputs, inner, 1, bias_attr=False)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = nn.Conv2D(inner, inner, 3, padding=1, bias_attr=False)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = nn.Conv2D(inner, inner * 4, 1, bias_attr=False)
        self.bn3 = BatchNorm2d(inner * 4)
        self.downsample = None
        if stride > 1 or inputs != inner * 4:
            self.downsample = nn.Sequential(nn.Conv2D(inputs, inner * 4, 1, bias_attr=False), BatchNorm2d(inner * 4))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class AttentionPool2d(nn.Layer):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        super().__init__()
        width = tower.feature_width
        self.heads = tower.heads
        self.positional_embedding = empty(tower.grid**2 + 1, width)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x.flatten(2).transpose([0, 2, 1])  # [n, c, h, w] -> [n, h * w, c]
        x = paddle.concat([x.mean(axis=1, keepdim=True), x], axis=1)
        x = x + self.positional_embedding.astype(x.dtype)
        x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(x.squeeze(1))


class ModifiedResNet(nn.Layer):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        super().__init__()
        half = tower.width // 2
        self.conv1 = nn.Conv2D(3, half, 3, stride=2, padding=1, bias_attr=False)
        self.bn1 = BatchNorm2d(half)
        self.conv2 = nn.Conv2D(half, half, 3, padding=1, bias_attr=False)
        self.bn2 = BatchNorm2d(half)
        self.conv3 = nn.Conv2D(half, tower.width, 3, padding=1, bias_attr=False)
        self.bn3 = BatchNorm2d(tower.width)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.LayerList()
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def forward(self, x: paddle.Tensor, observe: Observe) -> paddle.Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        observe("visual.stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, self.recomputed, x)
                observe(f"visual.layer{stage}.{index}", x)
        return self.attnpool(x)


class CLIP(nn.Layer):
    """Two towers into one space, in evaluation mode until ``train()`` is called.

    Several threads may use a model at once. Only between their calls may its mode be changed, or its weights.

    Args:
        architecture: the shape of the model.
        weights: canonical name -> array, all of them.
        device: becomes Paddle's current device, as ``paddle.set_device`` has it; by default the current one stays.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two keep norms, embeddings and logits in float32.
        source: what the weights came from, for messages.
        vocabulary: the text of a merges file; without it, the vocabulary is OpenAI's.

    Raises:
        CheckpointError: the weights do not fit the architecture; every fault is listed.
    """

    backend = "paddle"

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, np.ndarray],
        device: str | None = None,
        precision: str = "fp32",
        source: str = "the set of weights",
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ClipError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
        check(architecture, weights, source)
        self.architecture, self.source, self.vocabulary = architecture, source, vocabulary
        self.dtype = PRECISIONS[precision]
        use_device(device)
        if precision != "fp32" and paddle.get_device() == "cpu":
            raise ClipError(f"Paddle has no {precision} kernels for the CPU; use precision fp32, or a GPU.")
        text = architecture.text
        with constant_initial_values():
            self.positional_embedding = empty(text.context_length, text.width)
            self.text_projection = empty(text.width, architecture.embed_dim)
            self.logit_scale = empty()
            self.logit_bias = empty() if architecture.logit_bias else None
            if isinstance(architecture.image, ViTTower):
                self.visual = VisionTransformer(architecture.image, architecture.embed_dim)
            else:
                self.visual = ModifiedResNet(architecture.image, architecture.embed_dim)
            self.transformer = Transformer(text)
            self.token_embedding = nn.Embedding(text.vocabulary_size, text.width)
            self.ln_final = LayerNorm(text.width, text.epsilon)
        # Norms, embeddings, statistics and the scale stay in float32, as in OpenAI's package.
        for module in self.sublayers():
            if isinstance(module, nn.Linear | nn.Conv2D | Attention):
                module.to(dtype=self.dtype)
        self._set(weights)
        self.eval()

    @property
    def device(self) -> str:
        """Where the weights are."""
        return str(self.logit_scale.place)

    def load(self, weights: Mapping[str, np.ndarray], source: str = "the set of weights") -> None:
        """Take over ``weights``: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        check(self.architecture, weights, source)
        self._set(weights)

    def _set(self, weights: Mapping[str, np.ndarray]) -> None:
        state = self.state_dict()
        for parameter in parameters(self.architecture):
            tensor, array = state[parameter.name], weights[parameter.name]
            if parameter.kind == "linear":
                array = np.ascontiguousarray(array.T)
            tensor.set_value(paddle.to_tensor(array).astype(tensor.dtype))

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        state = self.state_dict()
        weights: Weights = {}
        for parameter in parameters(self.architecture):
            array = to_array(state[parameter.name])
            weights[parameter.name] = np.ascontiguousarray(array.T) if parameter.kind == "linear" else array
        return weights

    def recompute_blocks(self, wanted: bool = True) -> None:
        """Let backward passes compute each block again, in place of keeping what it computed."""
        for module in self.sublayers():
            if isinstance(module, Transformer | ModifiedResNet):
                module.recomputed = wanted

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.tokenizer.tokenizer_of`)."""
        return tokenizer_of(self.source, self.architecture, self.vocabulary)

    def tokenize(
        self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False
    ) -> paddle.Tensor:
        """Texts -> int64 tokens [n, context_length] of the model's own vocabulary, by default of its own length.

        Raises:
            TextError: a text is too long and ``truncate`` is off, or is not a text; or the vocabulary is not known.
            DownloadError: it is OpenAI's, and that cannot be had.
        """
        length = self.architecture.text.context_length if context_length is None else context_length
        return to_tensor(self.tokenizer.tokenize(texts, length, truncate))

    def encode_image(self, image: paddle.Tensor | np.ndarray, observe: Observe = ignore) -> paddle.Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """
        features = self.visual(self._pixels(image), observe)
        observe("image_features", features)
        return features

    def encode_text(self, text: paddle.Tensor | np.ndarray, observe: Observe = ignore) -> paddle.Tensor:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        text, tower = self._tokens(text), self.architecture.text
        if len(text) == 0:
            return paddle.zeros([0, self.architecture.embed_dim], self.dtype)
        is_end = text == tower.end_of_text
        end = is_end.astype("int32").argmax(axis=-1)  # the first one
        # The only wait for the device.
        found = [text.min(), text.max(), is_end.any(axis=-1).all(), end.max()]
        low, high, ended, last = paddle.stack([value.astype("int64") for value in found]).tolist()
        if not (ended and low >= 0 and high < tower.vocabulary_size):
            check_tokens(to_array(text), tower.context_length, tower.vocabulary_size, tower.end_of_text)  # says why
        x = self.token_embedding(text[:, : last + 1]) + self.positional_embedding[: last + 1]  # [n, l, d]
        x = x.astype(self.dtype)
        observe("token_embedding", x)
        x = self.transformer(x, end, causal=True, observe=observe, name="transformer")
        x = self.ln_final(x)
        observe("ln_final", x)
        features = x @ self.text_projection.astype(x.dtype)
        observe("text_features", features)
        return features

    def forward(
        self, image: paddle.Tensor | np.ndarray, text: paddle.Tensor | np.ndarray
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> float32 logits per image [n, m] and per text [m, n]."""
        image_features = normalize(self.encode_image(image).astype("float32"))
        text_features = normalize(self.encode_text(text).astype("float32"))
        logits = self.logit_scale.exp() * paddle.matmul(image_features, text_features, transpose_y=True)
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.t()

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

        def observe(name: str, value: paddle.Tensor) -> None:
            seen[name] = to_array(value)

        with self._evaluation() as model:
            model.encode_image(pixels, observe)
            model.encode_text(tokens, observe)
        return seen

    def _pixels(self, image: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        resolution = self.architecture.image.resolution
        if not isinstance(image, paddle.Tensor):
            image = paddle.to_tensor(check_pixels(image, resolution))
        check_pixel_shape(image.shape, resolution)
        if not image.is_floating_point():
            raise ImageError(f"The pixels have dtype {image.dtype}, expected float32; pass the pictures to preprocess.")
        return image.astype(self.dtype)

    def _tokens(self, text: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        tower = self.architecture.text
        if not isinstance(text, paddle.Tensor):
            text = paddle.to_tensor(check_tokens(text, tower.context_length, tower.vocabulary_size, tower.end_of_text))
        check_token_shape(text.shape, tower.context_length)
        if text.dtype not in (paddle.int32, paddle.int64):
            raise TextError(f"The tokens have dtype {text.dtype}, expected int32 or int64; make them with tokenize.")
        return text

    @contextmanager
    def _evaluation(self) -> Iterator[CLIP]:
        """This model without gradient, and with running statistics used rather than moved."""
        with paddle.no_grad():
            yield evaluating(self) if any(layer.training for layer in self.sublayers(include_self=True)) else self
