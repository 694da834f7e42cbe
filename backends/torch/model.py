"""CLIP in PyTorch: two towers and the logits. Its twins are the files of this name in the other backends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from backends.torch.layers import (
    Block,
    Observed,
    ResidualAttentionBlock,
    added_mask,
    causal_mask,
    dtype_of,
    normalize,
    recorded,
)
from backends.torch.sharding import part_of, whole_of
from backends.torch.tensors import device_of, drawn_seed, to_array, to_tensor, unless_set
from backends.torch.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.architecture import Architecture
from clip_core.backend import below, class_of
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.handover import take
from clip_core.initialize import initialize
from clip_core.inputs import check_pixel_shape, check_pixels, check_token_shape, check_tokens
from clip_core.intermediates import Intermediates, intermediates
from clip_core.naming import Weights, check, parameters
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import TextTower

M = TypeVar("M", bound=nn.Module)
OWN = ("backends", "torch")  # where the forward passes of towers come from
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluating(module: M) -> M:
    """A copy in evaluation mode that has the same tensors: the module itself may be training in another thread."""
    twin = copy(module)
    twin.training = False
    twin._modules = {name: None if part is None else evaluating(part) for name, part in module._modules.items()}
    return twin


def _is_drawn_by_openai(name: str, array: np.ndarray) -> bool:
    if name.startswith("visual."):
        return bool(re.fullmatch(r"visual\.(attnpool\.[qkvc]_proj|layer\d\..+\.bn3)\.weight", name))
    return array.ndim == 2


class CLIP(Observed):
    """Two towers into one space, in evaluation mode until ``train()`` is called.

    Its parts have the names, attributes and layouts of OpenAI's class, so that code written for that one runs on it.
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
        self.context_length = architecture.text.context_length
        self.vocab_size = architecture.text.vocabulary_size
        place = device_of(device)
        with torch.device("meta"):  # no memory and no random numbers for values that are about to be overwritten
            text = class_of(TEXT_TOWERS, architecture.text, "torch")(architecture.text, architecture.embed_dim)
            # The parts of a text tower at the root are the model's own, its tensors first, as in OpenAI's class.
            own = text if architecture.text.at_root else nn.Module()
            for name, parameter in own.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            self.logit_scale = nn.Parameter(torch.empty(()))
            self.logit_bias = nn.Parameter(torch.empty(())) if architecture.logit_bias else None
            self.visual = class_of(IMAGE_TOWERS, architecture.image, "torch")(
                architecture.image, architecture.embed_dim
            )
            for name, part in own.named_children():
                self.add_module(name, part)
            if own is not text:
                self.text = text
        # Norms, embeddings, statistics and the scale stay in float32, as in OpenAI's package.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                module.to(PRECISIONS[precision])
        self.to_empty(device=place)
        self._set(weights)
        self.eval()

    @property
    def tower(self) -> TextTower:
        """The text tower, which a model is itself whose text tower is at its root; with the positions and the tokens
        that it has now.
        """
        tower = self.architecture.text
        if not tower.at_root or torch.jit.is_tracing():
            return tower
        length = len(self.positional_embedding)
        table = getattr(self.token_embedding, "weight", None)
        size = len(table) if isinstance(table, torch.Tensor) else tower.vocabulary_size
        if (length, size) == (tower.context_length, tower.vocabulary_size):
            return tower
        return replace(tower, context_length=length, vocabulary_size=size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices, as of now; some other parameters stay in float32."""
        return dtype_of(self.visual, self)

    @unless_set
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
            state = self.state_dict()
            for name in list(weights):
                # PyTorch takes no array that is read backwards or must not be written.
                array = torch.from_numpy(np.require(take(weights, name), requirements=["C", "A", "W"]))
                part_of(state[name]).copy_(part_of(state[name], array))

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
            if isinstance(module, Block):
                module.recomputed = wanted

    def __dir__(self) -> list[str]:
        """Without the tokenizer: PyTorch's tracer reads all that is listed, and that one may need a network."""
        return [name for name in super().__dir__() if name != "tokenizer"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.loading.tokenizer_of`)."""
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

    def initialize_parameters(self) -> None:
        """Draw the weights anew that OpenAI's class draws, from a seed that PyTorch's generator draws.

        These are the matrices outside of the image tower, and of a ResNet those of the pool and the last scales of the
        blocks. All else stays as it is.
        """
        drawn = initialize(self.architecture, drawn_seed())
        self._set({name: array for name, array in drawn.items() if _is_drawn_by_openai(name, array)})

    def build_attention_mask(self) -> torch.Tensor:
        """What is added to the scores of causal attention, [context_length, context_length]."""
        return added_mask(causal_mask(self.context_length), torch.float32)

    def encode_image(self, image: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """
        features = self.visual(self._pixels(image))
        self.observe("image_features", features)
        return features

    def encode_text(self, text: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        text = self._tokens(text)
        if not recorded(text) and len(text) == 0:
            return torch.zeros(0, self.architecture.embed_dim, dtype=self.dtype, device=self.logit_scale.device)
        if self.architecture.text.at_root:
            features = TEXT_TOWERS[self.tower.kind].forward(self, text)
        else:
            features = self.text(text)
        self.observe("text_features", features)
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
        model, seen = self._observed()
        with torch.no_grad():
            model.encode_image(pixels)
            model.encode_text(tokens)
        return seen

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """What the image tower's ``blocks`` compute (`clip_core.backend.Model.forward_intermediates`)."""
        model, seen = self._observed()

        def native(x: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(x).to(self.logit_scale.device, self.dtype)

        def whole(block: nn.Module, x: np.ndarray) -> np.ndarray:
            arguments = {"batch_first": True} if isinstance(block, ResidualAttentionBlock) else {}
            return to_array(block(native(x), **arguments))

        def maps(block: Any, x: np.ndarray) -> np.ndarray:
            return to_array(block.attention_maps(native(x)))

        with torch.no_grad():
            model.encode_image(pixels)
            return intermediates(self.architecture.image, model.visual, seen, whole, maps, blocks, tokens, attention)

    def _observed(self) -> tuple[CLIP, Weights]:
        """A copy in evaluation mode, and what its parts will have told of their computation, float32."""
        seen: Weights = {}

        def observe(name: str, value: torch.Tensor) -> None:
            seen[name] = to_array(value)

        model = evaluating(self)
        for name, part in model.named_modules():
            if isinstance(part, Observed):
                part.observe = below(f"{name}." if name else "", observe)
        return model, seen

    def _pixels(self, image: torch.Tensor | np.ndarray) -> torch.Tensor:
        resolution = self.architecture.image.resolution
        if not isinstance(image, torch.Tensor):
            image = to_tensor(check_pixels(image, resolution))
        if not recorded(image) and image.shape[1:] != (3, resolution, resolution) and self._keeps_image_tower():
            check_pixel_shape(image.shape, resolution)
        if not image.is_floating_point():
            raise ImageError(f"The pixels have dtype {image.dtype}, expected float32; pass the pictures to preprocess.")
        return image.to(self.logit_scale.device, self.dtype)

    def _tokens(self, text: torch.Tensor | np.ndarray) -> torch.Tensor:
        if not isinstance(text, torch.Tensor):
            text = to_tensor(check_tokens(text, self.tower))
        if not recorded(text):
            check_token_shape(text.shape, self.tower)
        if text.dtype not in (torch.int32, torch.int64):
            raise TextError(f"The tokens have dtype {text.dtype}, expected int32 or int64; make them with tokenize.")
        return text.to(self.logit_scale.device)

    def _keeps_image_tower(self) -> bool:
        """Whether the image tower has the shapes of its architecture, and nobody has hooked its parts or set other
        forward passes; another one decides itself what it takes.
        """
        for part in self.visual.modules():
            if part._forward_hooks or part._forward_pre_hooks or part.forward.__module__.partition(".")[0] not in OWN:
                return False
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        return all(shapes.get(parameter.name) == parameter.shape for parameter in self.architecture.mounted("image"))

    @contextmanager
    def _evaluation(self) -> Iterator[CLIP]:
        """This model without gradient, and with running statistics used rather than moved."""
        with torch.no_grad():
            yield evaluating(self) if any(module.training for module in self.modules()) else self
