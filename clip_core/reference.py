"""The whole forward pass in plain NumPy: the judge when two frameworks disagree, and the ``numpy`` backend.

In float64 it is the judge; in float32 it is a backend like the others. It computes what the frameworks' definitions
compute, with the same two savings: text up to the longest end-of-text, the last block for the pooled token alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from math import erf, pi, sqrt

import numpy as np

from clip_core.architecture import Architecture
from clip_core.backend import Observe, ignore
from clip_core.errors import ClipError
from clip_core.inputs import check_pixels, check_tokens
from clip_core.naming import Weights, check, parameters
from clip_core.similarity import logits
from clip_core.text.tokenizer import Tokenizer, tokenizer_of
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import Activation, Transformer
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

PRECISIONS: dict[str, np.dtype] = {"fp32": np.dtype(np.float32), "fp64": np.dtype(np.float64)}
EPSILON = 1e-5  # of every batch normalisation


def to_tensor(array: np.ndarray) -> np.ndarray:
    """This backend's tensors are NumPy arrays."""
    return np.asarray(array)


def to_array(tensor: np.ndarray) -> np.ndarray:
    """This backend's tensors are NumPy arrays."""
    return np.asarray(tensor)


class CLIP:
    """CLIP in NumPy, for inference.

    Args:
        architecture: the shape of the model.
        weights: canonical name -> array, all of them.
        device: the CPU is the only one.
        precision: ``fp32``, or ``fp64`` for the judge.
        source: what the weights came from, for messages.
        vocabulary: the text of a merges file; without it, the vocabulary is OpenAI's.

    Raises:
        CheckpointError: the weights do not fit the architecture; every fault is listed.
    """

    backend = "numpy"

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, np.ndarray],
        device: str | None = None,
        precision: str = "fp32",
        source: str = "the set of weights",
        vocabulary: str | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ClipError(f"There is no precision {precision!r} in NumPy; choose one of {', '.join(PRECISIONS)}.")
        if device not in (None, "cpu"):
            raise ClipError(f"The numpy backend has no device {device!r}; it runs on the cpu.")
        self.architecture, self.source, self.vocabulary = architecture, source, vocabulary
        self.dtype = PRECISIONS[precision]
        self.load(weights, source)

    def load(self, weights: Mapping[str, np.ndarray], source: str = "the set of weights") -> None:
        """Take over ``weights``: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        check(self.architecture, weights, source)
        self.weights = {
            parameter.name: np.array(weights[parameter.name], dtype=None if parameter.kind == "counter" else self.dtype)
            for parameter in parameters(self.architecture)
        }

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        return {
            name: array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
            for name, array in self.weights.items()
        }

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

    def encode_image(self, image: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type, or values that no preprocessing gives.
        """
        tower = self.architecture.image
        pixels = check_pixels(image, tower.resolution).astype(self.dtype, copy=False)
        if len(pixels) == 0:
            return np.zeros((0, self.architecture.embed_dim), self.dtype)
        run = _Pass(self.weights, observe)
        if isinstance(tower, VisionTransformer):
            features = run.vision_transformer(pixels, tower)
        else:
            features = run.modified_resnet(pixels, tower)
        return run.seen("image_features", features)

    def encode_text(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        tower = self.architecture.text
        text = check_tokens(text, tower.context_length, tower.vocabulary_size, tower.end_of_text)
        if len(text) == 0:
            return np.zeros((0, self.architecture.embed_dim), self.dtype)
        run = _Pass(self.weights, observe)
        return run.seen("text_features", run.text_transformer(text, tower))

    def __call__(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
        scale = np.exp(self.weights["logit_scale"])
        per_image = logits(self.encode_image(image), self.encode_text(text), scale) + self.weights.get("logit_bias", 0)
        return per_image, per_image.T

    def embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """The values of `encode_image` as a float32 array [n, d]."""
        return self.encode_image(pixels).astype(np.float32, copy=False)

    def embed_text(self, tokens: np.ndarray) -> np.ndarray:
        """The values of `encode_text` as a float32 array [n, d]."""
        return self.encode_text(tokens).astype(np.float32, copy=False)

    def layers(self, pixels: np.ndarray, tokens: np.ndarray) -> Weights:
        """What each block computes, in the order of computation (`clip_core.backend.Model.layers`)."""
        seen: Weights = {}
        self.encode_image(pixels, seen.__setitem__)
        self.encode_text(tokens, seen.__setitem__)
        return seen


class _Pass:
    """One forward pass: the functions of the network over one set of weights."""

    def __init__(self, weights: Weights, observe: Observe) -> None:
        self.weights, self.observe = weights, observe

    def seen(self, name: str, x: np.ndarray) -> np.ndarray:
        self.observe(name, x)
        return x

    def vision_transformer(self, pixels: np.ndarray, tower: VisionTransformer) -> np.ndarray:
        """Pixels [n, 3, r, r] -> features [n, embed_dim]."""
        n, grid, patch = len(pixels), tower.grid, tower.patch
        patches = pixels.reshape(n, 3, grid, patch, grid, patch)
        patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)  # [n, grid * grid, 3 * patch * patch]
        x = matmul(patches, self.weights["visual.conv1.weight"].reshape(tower.width, -1).T)
        token = np.broadcast_to(self.weights["visual.class_embedding"], (n, 1, tower.width))
        x = np.concatenate([token, x], axis=1) + self.weights["visual.positional_embedding"]
        x = self.seen("visual.ln_pre", self.layer_norm(x, "visual.ln_pre", tower.epsilon))
        x = self.transformer(x, "visual.transformer", tower, pooled=np.zeros(n, np.intp), causal=False)
        x = self.seen("visual.ln_post", self.layer_norm(x, "visual.ln_post", tower.epsilon))
        return x @ self.weights["visual.proj"]

    def text_transformer(self, tokens: np.ndarray, tower: TextTransformer) -> np.ndarray:
        """Tokens [n, context] -> features [n, embed_dim]."""
        end = (tokens == tower.end_of_text).argmax(axis=-1)
        length = int(end.max()) + 1
        x = self.weights["token_embedding.weight"][tokens[:, :length]] + self.weights["positional_embedding"][:length]
        self.seen("token_embedding", x)
        x = self.transformer(x, "transformer", tower, pooled=end, causal=True)
        x = self.seen("ln_final", self.layer_norm(x, "ln_final", tower.epsilon))
        return x @ self.weights["text_projection"]

    def transformer(
        self,
        x: np.ndarray,
        name: str,
        tower: Transformer,
        pooled: np.ndarray,
        causal: bool,
    ) -> np.ndarray:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        mask = last_mask = None
        if causal:
            positions = np.arange(x.shape[1])
            mask = positions <= positions[:, None]  # [l, l]
            last_mask = (positions <= pooled[:, None])[:, None, None]  # [n, 1, 1, l]
        for index in range(tower.layers - 1):
            block = f"{name}.resblocks.{index}"
            y = self.layer_norm(x, f"{block}.ln_1", tower.epsilon)
            q, k, v = np.split(self.linear(y, f"{block}.attn.in_proj_", slice(None)), 3, axis=-1)
            x = x + self.linear(attend(q, k, v, tower.heads, mask), f"{block}.attn.out_proj.")
            x = self.seen(block, x + self.mlp(x, block, tower))
        block = f"{name}.resblocks.{tower.layers - 1}"
        rows = np.arange(len(x))
        y = self.layer_norm(x, f"{block}.ln_1", tower.epsilon)
        q = self.linear(y[rows, pooled][:, None], f"{block}.attn.in_proj_", slice(tower.width))  # [n, 1, d]
        k, v = np.split(self.linear(y, f"{block}.attn.in_proj_", slice(tower.width, None)), 2, axis=-1)
        y = attend(q, k, v, tower.heads, last_mask)[:, 0]
        x = x[rows, pooled] + self.linear(y, f"{block}.attn.out_proj.")
        return self.seen(block, x + self.mlp(x, block, tower))

    def modified_resnet(self, pixels: np.ndarray, tower: ModifiedResNet) -> np.ndarray:
        """Pixels [n, 3, r, r] -> features [n, embed_dim]."""
        x = pixels
        for index, stride in ((1, 2), (2, 1), (3, 1)):
            x = self.conv_norm(x, f"visual.conv{index}", f"visual.bn{index}", stride)
            np.maximum(x, 0, out=x)
        x = self.seen("visual.stem", average_pool(x, 2))
        for stage, blocks in enumerate(tower.blocks):
            for block in range(blocks):
                name = f"visual.layer{stage + 1}.{block}"
                x = self.seen(name, self.bottleneck(x, name, stride=2 if stage and not block else 1))
        return self.attention_pool(x, tower)

    def bottleneck(self, x: np.ndarray, name: str, stride: int) -> np.ndarray:
        """[n, c, h, w] -> [n, 4 * inner, h / stride, w / stride]."""
        y = np.maximum(self.conv_norm(x, f"{name}.conv1", f"{name}.bn1"), 0)
        y = np.maximum(self.conv_norm(y, f"{name}.conv2", f"{name}.bn2"), 0)
        if stride > 1:
            x, y = average_pool(x, stride), average_pool(y, stride)
        y = self.conv_norm(y, f"{name}.conv3", f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1")
        return np.maximum(x + y, 0)

    def attention_pool(self, x: np.ndarray, tower: ModifiedResNet) -> np.ndarray:
        """[n, c, h, w] -> [n, embed_dim]: the mean of the map attends over the map."""
        x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # [n, c, h, w] -> [n, h * w, c]
        x = np.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.weights["visual.attnpool.positional_embedding"]
        q, k, v = (
            self.linear(tokens, f"visual.attnpool.{name}_proj.")
            for tokens, name in ((x[:, :1], "q"), (x, "k"), (x, "v"))
        )
        return self.linear(attend(q, k, v, tower.heads)[:, 0], "visual.attnpool.c_proj.")

    def mlp(self, x: np.ndarray, block: str, tower: Transformer) -> np.ndarray:
        hidden = self.linear(self.layer_norm(x, f"{block}.ln_2", tower.epsilon), f"{block}.mlp.c_fc.")
        return self.linear(activate(hidden, tower.activation), f"{block}.mlp.c_proj.")

    def linear(self, x: np.ndarray, name: str, rows: slice = slice(None)) -> np.ndarray:
        return matmul(x, self.weights[f"{name}weight"][rows].T) + self.weights[f"{name}bias"][rows]

    def layer_norm(self, x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1]
        x /= np.sqrt(variance + epsilon)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def conv_norm(self, x: np.ndarray, conv: str, norm: str, stride: int = 1) -> np.ndarray:
        """A convolution without bias, then batch normalisation by the running statistics."""
        gain = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + EPSILON)
        offset = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * gain
        x = convolve(x, self.weights[f"{conv}.weight"] * gain[:, None, None, None], stride)
        x += offset[:, None, None]
        return x


def matmul(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[..., i] @ [i, o] as one matrix product, which BLAS runs faster than a stack of small ones."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is true where seen."""
    n, length, width = q.shape
    q, k, v = (x.reshape(n, -1, heads, width // heads).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = (q * (width // heads) ** -0.5) @ k.transpose(0, 1, 3, 2)  # [n, heads, q, l]
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ v).transpose(0, 2, 1, 3).reshape(n, length, width)


def activate(x: np.ndarray, activation: Activation) -> np.ndarray:
    """OpenAI's QuickGELU, x * sigmoid(1.702 x), the exact GELU, or its approximation by tanh."""
    if activation == "quick_gelu":
        # exp of a large number is infinity, and dividing by it gives the right 0.
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-1.702 * x))
    if activation == "gelu_tanh":
        return x * (0.5 + 0.5 * np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return x * (0.5 + 0.5 * _erf(x / sqrt(2)).astype(x.dtype))


_erf = np.frompyfunc(erf, 1, 1)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """[n, i, h, w] * [o, i, size, size], padded to keep h and w at stride 1, as one matrix product per kernel cell."""
    n, inputs, height, width = x.shape
    outputs, _, size, _ = kernel.shape
    pad = size // 2
    if pad:
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    cells_first = np.ascontiguousarray(kernel.transpose(2, 3, 0, 1))  # BLAS refuses matrices with gaps
    result = np.zeros((n, outputs, height * width), x.dtype)
    for row in range(size):
        for column in range(size):
            cells = x[:, :, row : row + stride * height : stride, column : column + stride * width : stride]
            result += cells_first[row, column] @ cells.reshape(n, inputs, -1)
    return result.reshape(n, outputs, height, width)


def average_pool(x: np.ndarray, size: int) -> np.ndarray:
    """The mean of each size x size cell of [n, c, h, w]; rows and columns left over at the end are dropped."""
    n, channels, height, width = x.shape
    x = x[:, :, : height // size * size, : width // size * size]
    return x.reshape(n, channels, height // size, size, width // size, size).mean(axis=(3, 5))
