"""CLIP in Paddle: two towers and the logits. Its twins are the files of this name in the other backends.

Parameters carry their canonical names; linear weights are stored [in, out], which is how Paddle multiplies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from types import MethodType
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import nn

from backends.paddle.layers import Attention, Block, Observed, normalize, recorded
from backends.paddle.tensors import constant_initial_values, empty, no_initial_values, to_array, to_tensor, use_device
from backends.paddle.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.architecture import Architecture
from clip_core.backend import below, class_of
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.handover import take
from clip_core.inputs import check_pixel_shape, check_pixels, check_token_shape, check_tokens
from clip_core.intermediates import Intermediates, intermediates
from clip_core.naming import Weights, check, parameters
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import TextTower

M = TypeVar("M", bound=nn.Layer)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def evaluating(layer: M) -> M:
    """A copy in evaluation mode that has the same tensors: the layer itself may be training in another thread."""
    twin = copy(layer)
    twin.training = False
    forward = layer.__dict__.get("forward")
    if getattr(forward, "__self__", None) is layer:  # the layer's own one, which paddle.flops sets on it
        twin.forward = MethodType(forward.__func__, twin)
    twin._sub_layers = {name: None if part is None else evaluating(part) for name, part in layer._sub_layers.items()}
    return twin


class CLIP(Observed):
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
        # A change of precision needs values.
        with no_initial_values() if precision == "fp32" else constant_initial_values():
            text = class_of(TEXT_TOWERS, architecture.text, "paddle")(architecture.text, architecture.embed_dim)
            # The parts of a text tower at the root are the model's own, its tensors first, as in OpenAI's class.
            own = text if architecture.text.at_root else nn.Layer()
            for name, parameter in own.named_parameters(include_sublayers=False):
                self.add_parameter(name, parameter)
            self.logit_scale = empty()
            self.logit_bias = empty() if architecture.logit_bias else None
            self.visual = class_of(IMAGE_TOWERS, architecture.image, "paddle")(
                architecture.image, architecture.embed_dim
            )
            for name, part in own.named_children():
                self.add_sublayer(name, part)
            if own is not text:
                self.text = text
        # Norms, embeddings, statistics and the scale stay in float32, as in OpenAI's package.
        for module in self.sublayers():
            if isinstance(module, nn.Linear | nn.Conv2D | Attention):
                module.to(dtype=self.dtype)
        self._set(weights)
        self.eval()

    @property
    def tower(self) -> TextTower:
        """The text tower, which a model is itself whose text tower is at its root."""
        return self.architecture.text

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
            tensor, array = state[parameter.name], take(weights, parameter.name)
            if parameter.kind == "linear":
                array = array.T
            if tensor.dtype in (paddle.float32, paddle.int64):  # which NumPy has, so that one copy is enough
                dtype = np.int64 if parameter.kind == "counter" else np.float32
                tensor.set_value(np.require(array, dtype, ["C", "A"]))
            else:
                tensor.set_value(paddle.to_tensor(np.require(array, requirements=["C", "A"])).astype(tensor.dtype))

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
            if isinstance(module, Block):
                module.recomputed = wanted

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.loading.tokenizer_of`)."""
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

    def encode_image(self, image: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """
        features = self.visual(self._pixels(image))
        self.observe("image_features", features)
        return features

    def encode_text(self, text: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        text = self._tokens(text)
        if not recorded() and len(text) == 0:
            return paddle.zeros([0, self.architecture.embed_dim], self.dtype)
        if self.architecture.text.at_root:
            features = TEXT_TOWERS[self.tower.kind].forward(self, text)
        else:
            features = self.text(text)
        self.observe("text_features", features)
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
        model, seen = self._observed()
        with paddle.no_grad():
            model.encode_image(pixels)
            model.encode_text(tokens)
        return seen

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """What the image tower's ``blocks`` compute (`clip_core.backend.Model.forward_intermediates`)."""
        model, seen = self._observed()

        def native(x: np.ndarray) -> paddle.Tensor:
            return paddle.to_tensor(x).astype(self.dtype)

        def whole(block: nn.Layer, x: np.ndarray) -> np.ndarray:
            return to_array(block(native(x)))

        def maps(block: Any, x: np.ndarray) -> np.ndarray:
            return to_array(block.attention_maps(native(x)))

        with paddle.no_grad():
            model.encode_image(pixels)
            return intermediates(self.architecture.image, model.visual, seen, whole, maps, blocks, tokens, attention)

    def _observed(self) -> tuple[CLIP, Weights]:
        """A copy in evaluation mode, and what its parts will have told of their computation, float32."""
        seen: Weights = {}

        def observe(name: str, value: paddle.Tensor) -> None:
            seen[name] = to_array(value)

        model = evaluating(self)
        for name, part in model.named_sublayers(include_self=True):
            if isinstance(part, Observed):
                part.observe = below(f"{name}." if name else "", observe)
        return model, seen

    def _pixels(self, image: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        resolution = self.architecture.image.resolution
        if not isinstance(image, paddle.Tensor | paddle.pir.Value):
            image = paddle.to_tensor(check_pixels(image, resolution))
        if not recorded() and image.shape[1:] != [3, resolution, resolution] and self._keeps_image_tower():
            check_pixel_shape(image.shape, resolution)
        if not image.is_floating_point():
            raise ImageError(f"The pixels have dtype {image.dtype}, expected float32; pass the pictures to preprocess.")
        return image.astype(self.dtype)

    def _tokens(self, text: paddle.Tensor | np.ndarray) -> paddle.Tensor:
        tower = self.architecture.text
        if not isinstance(text, paddle.Tensor | paddle.pir.Value):
            text = paddle.to_tensor(check_tokens(text, tower))
        if not recorded():
            check_token_shape(text.shape, tower)
        if self._is_summarised():
            token = tower.required_token
            text = paddle.full_like(text, tower.vocabulary_size - 1 if token is None else token)
        if text.dtype not in (paddle.int32, paddle.int64):
            raise TextError(f"The tokens have dtype {text.dtype}, expected int32 or int64; make them with tokenize.")
        return text

    def _is_summarised(self) -> bool:
        """Whether ``paddle.summary`` computes: it gives tokens of 0 alone, which are no text, and looks at shapes."""
        hooks = (hook for part in self.children() for hook in part._forward_post_hooks.values())
        return any(getattr(hook, "__module__", None) == "paddle.hapi.model_summary" for hook in hooks)

    def _keeps_image_tower(self) -> bool:
        """Whether the image tower has the shapes of its architecture; another one decides itself what it takes."""
        state = self.state_dict()
        return all(
            parameter.name in state
            and tuple(state[parameter.name].shape) == parameter.shape[:: -1 if parameter.kind == "linear" else 1]
            for parameter in self.architecture.mounted("image")
        )

    @contextmanager
    def _evaluation(self) -> Iterator[CLIP]:
        """This model without gradient, and with running statistics used rather than moved."""
        with paddle.no_grad():
            yield evaluating(self) if any(layer.training for layer in self.sublayers(include_self=True)) else self
