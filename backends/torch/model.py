"""CLIP in PyTorch. Its twins are backends/paddle/model.py and backends/nnabla/model.py: same classes, same order.

Two exact savings are built in. Text is computed up to the longest end-of-text of the batch, since causal attention lets
nothing behind it reach the feature. And the last block of a transformer is computed for the pooled token alone, since
the other tokens of that block are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from itertools import count
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from backends.torch.sharding import part_of, whole_of
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

M = TypeVar("M", bound=nn.Module)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """A NumPy array as a tensor on the CPU."""
    return torch.tensor(array)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) NumPy array."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def normalize(x: torch.Tensor) -> torch.Tensor:
    """[n, d] scaled to length 1 along the last axis; a feature of length 0 becomes NaN, as with OpenAI's package."""
    return x / x.norm(dim=-1, keepdim=True)


def device_of(device: str | torch.device | None) -> torch.device:
    """``device``, by default the first CUDA device if there is one, else the CPU.

    Raises:
        ClipError: this build of PyTorch, or this machine, has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ClipError(f"PyTorch cannot use the device {device!r} here: {str(error).splitlines()[0]}.") from error


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation in float32, whatever the precision of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


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


def evaluating(module: M) -> M:
    """A copy in evaluation mode that has the same tensors: the module itself may be training in another thread."""
    twin = copy(module)
    twin.training = False
    twin._modules = {name: None if part is None else evaluating(part) for name, part in module._modules.items()}
    return twin


def run(block: nn.Module, recomputed: bool, *inputs: torch.Tensor | None) -> torch.Tensor:
    """``block(*inputs)``; if ``recomputed``, it keeps its inputs only, and the backward pass computes it again."""
    if not recomputed:
        return block(*inputs)
    passes = count()

    def compute(*inputs: torch.Tensor | None) -> torch.Tensor:
        # The first pass alone moves running statistics.
        statistics = {name: buffer.clone() for name, buffer in block.named_buffers()} if next(passes) else {}
        return functional_call(block, statistics, inputs)

    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)


class Attention(nn.Module):
    """Self-attention with packed query, key and value weights, for all tokens or for one token of each row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask))

    def forward_pooled(self, x: torch.Tensor, pooled: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[n, l, d] -> [n, d]: only the tokens at ``pooled`` [n] ask."""
        weights, biases = self.in_proj_weight.split([self.width, 2 * self.width]), self.in_proj_bias
        q = F.linear(pick(x, pooled).unsqueeze(1), weights[0], biases[: self.width])
        k, v = F.linear(x, weights[1], biases[self.width :]).chunk(2, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, mask)).squeeze(1)


class MLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.activation = tower.activation
        self.c_fc = nn.Linear(tower.width, tower.mlp_width)
        self.c_proj = nn.Linear(tower.mlp_width, tower.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualAttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.attn = Attention(tower.width, tower.heads)
        self.ln_1 = LayerNorm(tower.width, tower.epsilon)
        self.mlp = MLP(tower)
        self.ln_2 = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, pooled: torch.Tensor | None = None) -> torch.Tensor:
        """[n, l, d] -> [n, l, d]; with ``pooled`` [n] only the tokens at these positions, [n, d]."""
        if pooled is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = pick(x, pooled) + self.attn.forward_pooled(self.ln_1(x), pooled, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks that ends in the feature of one token of each row."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: TransformerTower) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(tower) for _ in range(tower.layers))

    def forward(self, x: torch.Tensor, pooled: torch.Tensor, causal: bool, observe: Observe, name: str) -> torch.Tensor:
        """[n, l, d] -> [n, d], the state at the positions ``pooled`` [n]."""
        mask = last_mask = None
        if causal:
            positions = torch.arange(x.shape[1], device=x.device)
            mask = positions <= positions[:, None]  # [l, l]
            last_mask = (positions <= pooled[:, None])[:, None, None]  # [n, 1, 1, l]
        *blocks, last = self.resblocks
        for index, block in enumerate(blocks):
            x = run(block, self.recomputed, x, mask)
            observe(f"{name}.resblocks.{index}", x)
        x = run(last, self.recomputed, x, last_mask, pooled)
        observe(f"{name}.resblocks.{len(blocks)}", x)
        return x


class VisionTransformer(nn.Module):
    """The image tower of section 2.4 of the paper: patches, a class token, a transformer, a projection."""

    def __init__(self, tower: ViTTower, embed_dim: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(tower.width))
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2 + 1, tower.width))
        self.proj = nn.Parameter(torch.empty(tower.width, embed_dim))
        self.conv1 = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch, bias=False)
        self.ln_pre = LayerNorm(tower.width, tower.epsilon)
        self.transformer = Transformer(tower)
        self.ln_post = LayerNorm(tower.width, tower.epsilon)

    def forward(self, x: torch.Tensor, observe: Observe) -> torch.Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)  # [n, 3, r, r] -> [n, grid * grid, d]
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        observe("visual.ln_pre", x)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = self.transformer(x, first, causal=False, observe=observe, name="visual.transformer")
        x = self.ln_post(x)
        observe("visual.ln_post", x)
        return x @ self.proj.to(x.dtype)


class Bottleneck(nn.Module):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * 4, 1, bias=False)
        self.bn3 = BatchNorm2d(inner * 4)
        self.downsample = None
        if stride > 1 or inputs != inner * 4:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, inner * 4, 1, bias=False), BatchNorm2d(inner * 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class AttentionPool2d(nn.Module):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        super().__init__()
        width = tower.feature_width
        self.heads = tower.heads
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)  # [n, c, h, w] -> [n, h * w, c]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(x.squeeze(1))


class ModifiedResNet(nn.Module):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    recomputed = False  # whether backward passes compute each block again

    def __init__(self, tower: ResNetTower, embed_dim: int) -> None:
        super().__init__()
        half = tower.width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, tower.width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(tower.width)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.ModuleList()
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def forward(self, x: torch.Tensor, observe: Observe) -> torch.Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        observe("visual.stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, self.recomputed, x)
                observe(f"visual.layer{stage}.{index}", x)
        return self.attnpool(x)


BLOCKS = ResidualAttentionBlock | Bottleneck  # what is recomputed, compiled and sharded in one piece


class CLIP(nn.Module):
    """Two towers into one space, in evaluation mode until ``train()`` is called.

    Several threads may use a model at once. Only between their calls may its mode be changed, or its weights.

    Args:
        architecture: the shape of the model.
        weights: canonical name -> array, all of them.
        device: a PyTorch device; the first CUDA device if there is one, else the CPU.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two keep norms, embeddings and logits in float32.
        source: what the weights came from, for messages.
        vocabulary: the text of a merges file; without it, the vocabulary is OpenAI's.

    Raises:
        CheckpointError: the weights do not fit the architecture; every fault is listed.
    """

    backend = "torch"

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, np.ndarray],
        device: str | torch.device | None = None,
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
        place = device_of(device)
        text = architecture.text
        with torch.device("meta"):  # no memory and no random numbers for values that are about to be overwritten
            self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
            self.text_projection = nn.Parameter(torch.empty(text.width, architecture.embed_dim))
            self.logit_scale = nn.Parameter(torch.empty(()))
            self.logit_bias = nn.Parameter(torch.empty(())) if architecture.logit_bias else None
            if isinstance(architecture.image, ViTTower):
                self.visual = VisionTransformer(architecture.image, architecture.embed_dim)
            else:
                self.visual = ModifiedResNet(architecture.image, architecture.embed_dim)
            self.transformer = Transformer(text)
            self.token_embedding = nn.Embedding(text.vocabulary_size, text.width)
            self.ln_final = LayerNorm(text.width, text.epsilon)
        # Norms, embeddings, statistics and the scale stay in float32, as in OpenAI's package.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | Attention):
                module.to(self.dtype)
        self.to_empty(device=place)
        self._set(weights)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    def load(self, weights: Mapping[str, np.ndarray], source: str = "the set of weights") -> None:
        """Take over ``weights``: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        check(self.architecture, weights, source)
        self._set(weights)

    def _set(self, weights: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                # PyTorch takes no array that is read backwards.
                array = torch.from_numpy(np.array(weights[name], order="C"))
                part_of(tensor).copy_(part_of(tensor, array))

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        state = self.state_dict()
        return {
            parameter.name: to_array(whole_of(state[parameter.name])).copy()
            for parameter in parameters(self.architecture)
        }

    def recompute_blocks(self, wanted: bool = True) -> None:
        """Let backward passes compute each block again, in place of keeping what it computed."""
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.recomputed = wanted

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.tokenizer.tokenizer_of`)."""
        return tokenizer_of(self.source, self.architecture, self.vocabulary)

    def tokenize(
        self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False
    ) -> torch.Tensor:
        """Texts -> int64 tokens [n, context_length] of the model's own vocabulary, by default of its own length.

        Raises:
            TextError: a text is too long and ``truncate`` is off, or is not a text; or the vocabulary is not known.
            DownloadError: it is OpenAI's, and that cannot be had.
        """
        length = self.architecture.text.context_length if context_length is None else context_length
        return to_tensor(self.tokenizer.tokenize(texts, length, truncate))

    def encode_image(self, image: torch.Tensor | np.ndarray, observe: Observe = ignore) -> torch.Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """
        features = self.visual(self._pixels(image), observe)
        observe("image_features", features)
        return features

    def encode_text(self, text: torch.Tensor | np.ndarray, observe: Observe = ignore) -> torch.Tensor:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        text, tower = self._tokens(text), self.architecture.text
        if len(text) == 0:
            return torch.zeros(0, self.architecture.embed_dim, dtype=self.dtype, device=self.device)
        is_end = text == tower.end_of_text
        end = is_end.int().argmax(dim=-1)  # the first one
        # The only wait for the device.
        low, high, ended, last = torch.stack([text.min(), text.max(), is_end.any(dim=-1).all(), end.max()]).tolist()
        if not (ended and low >= 0 and high < tower.vocabulary_size):
            check_tokens(to_array(text), tower.context_length, tower.vocabulary_size, tower.end_of_text)  # says why
        x = self.token_embedding(text[:, : last + 1]) + self.positional_embedding[: last + 1]  # [n, l, d]
        x = x.to(self.dtype)
        observe("token_embedding", x)
        x = self.transformer(x, end, causal=True, observe=observe, name="transformer")
        x = self.ln_final(x)
        observe("ln_final", x)
        features = x @ self.text_projection.to(x.dtype)
        observe("text_features", features)
        return features

    def forward(
        self, image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> float32 logits per image [n, m] and per text [m, n]."""
        image_features = normalize(self.encode_image(image).float())
        text_features = normalize(self.encode_text(text).float())
        logits = self.logit_scale.exp() * image_features @ text_features.t()
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

        def observe(name: str, value: torch.Tensor) -> None:
            seen[name] = to_array(value)

        with self._evaluation() as model:
            model.encode_image(pixels, observe)
            model.encode_text(tokens, observe)
        return seen

    def _pixels(self, image: torch.Tensor | np.ndarray) -> torch.Tensor:
        resolution = self.architecture.image.resolution
        if not isinstance(image, torch.Tensor):
            image = to_tensor(check_pixels(image, resolution))
        check_pixel_shape(image.shape, resolution)
        if not image.is_floating_point():
            raise ImageError(f"The pixels have dtype {image.dtype}, expected float32; pass the pictures to preprocess.")
        return image.to(self.device, self.dtype)

    def _tokens(self, text: torch.Tensor | np.ndarray) -> torch.Tensor:
        tower = self.architecture.text
        if not isinstance(text, torch.Tensor):
            text = to_tensor(check_tokens(text, tower.context_length, tower.vocabulary_size, tower.end_of_text))
        check_token_shape(text.shape, tower.context_length)
        if text.dtype not in (torch.int32, torch.int64):
            raise TextError(f"The tokens have dtype {text.dtype}, expected int32 or int64; make them with tokenize.")
        return text.to(self.device)

    @contextmanager
    def _evaluation(self) -> Iterator[CLIP]:
        """This model without gradient, and with running statistics used rather than moved."""
        with torch.no_grad():
            yield evaluating(self) if any(module.training for module in self.modules()) else self
