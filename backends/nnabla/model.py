"""CLIP in NNabla: two towers and the logits. Its twins are the files of this name in the other backends.

It works under ``nn.auto_forward()`` and as a static graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any, TypeVar

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.nnabla.functions import products
from backends.nnabla.layers import Block, Observed, normalize
from backends.nnabla.module import SWITCHES, Module, empty, plain_errors
from backends.nnabla.tensors import context_of, to_array, to_tensor
from backends.nnabla.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.architecture import Architecture
from clip_core.backend import below, class_of
from clip_core.errors import ClipError
from clip_core.handover import take
from clip_core.inputs import check_pixel_shape, check_pixels, check_token_shape, check_tokens
from clip_core.intermediates import Intermediates, intermediates
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights, check, parameters
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import TextTower

M = TypeVar("M", bound=Module)
SCALE = "logit_scale"  # which every model has in its scope
PUBLISHED: list[CLIP] = []  # the models that are in some scope, the last one last


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


class CLIP(Observed):
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
    scope: Mapping[str, Any] = {}  # NNabla's, in which it was published last
    published: Mapping[str, nn.Variable] = {}  # its parameters there

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
        text = class_of(TEXT_TOWERS, architecture.text, "nnabla")(architecture.text, architecture.embed_dim)
        # The parts of a text tower at the root are the model's own, its tensors first, as in OpenAI's class.
        own = text if architecture.text.at_root else Module()
        for name, parameter in own.own_parameters():
            setattr(self, name, parameter)
        self.logit_scale = empty()
        self.logit_bias = empty() if architecture.logit_bias else None
        self.visual = class_of(IMAGE_TOWERS, architecture.image, "nnabla")(architecture.image, architecture.embed_dim)
        for name, part in own.children():
            setattr(self, name, part)
        if own is not text:
            self.text = text
        self._set(weights)

    @property
    def tower(self) -> TextTower:
        """The text tower, which a model is itself whose text tower is at its root."""
        return self.architecture.text

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
            variables[parameter.name].data.get_data("w", dtype)[...] = take(weights, parameter.name)

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        variables = dict(self.named_parameters())
        return {parameter.name: to_array(variables[parameter.name]) for parameter in parameters(self.architecture)}

    def recompute_blocks(self, wanted: bool = True) -> None:
        """Let backward passes under ``nn.auto_forward()`` compute each block again, and keep nothing of it."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recomputed = wanted

    def publish(self) -> None:
        """Make the parameters visible in NNabla's current parameter scope, under NNabla's names.

        ``nn.get_parameters``, solvers and ``nn.save_parameters`` then work on this model. The parameters of a model
        that was published there before leave the scope; that model keeps working.
        """
        scope = nn.parameter.get_current_parameter_scope()
        own = self.spelled_parameters()
        for top in {name.split("/")[0] for name in own}:
            scope.pop(top, None)
        for name, variable in own.items():
            nn.parameter.set_parameter(name, variable)
        PUBLISHED[:] = [one for one in PUBLISHED if one.scope.get(SCALE) is one.logit_scale] + [self]
        self.scope, self.published = scope, own

    def spelled_parameters(self) -> dict[str, nn.Variable]:
        """The parameters and buffers under NNabla's names."""
        variables = dict(self.named_parameters())
        return {
            LAYOUTS["nnabla"].spell(parameter.name): variables[parameter.name]
            for parameter in parameters(self.architecture)
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with (`clip_core.text.loading.tokenizer_of`)."""
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

    def encode_image(self, image: nn.Variable | np.ndarray) -> nn.Variable:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape; of an array also: another type, or values that no preprocessing
                gives.
        """
        image = self._pixels(image)
        if image.shape[0] == 0:  # NNabla's functions stop the process at an empty batch
            return to_tensor(np.zeros((0, self.architecture.embed_dim), np.float32))
        with self._in_context():
            features = self.visual(image)
        self.observe("image_features", features)
        return features

    def encode_text(self, text: nn.Variable | np.ndarray) -> nn.Variable:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or are no whole numbers, an id is outside the vocabulary, or a text
                is without its end-of-text token; of an array also: another type. The tokens of a static graph are
                checked when it is computed, and NNabla raises a SystemError whose first cause is this error.
        """
        text = self._tokens(text)
        if text.shape[0] == 0:
            return to_tensor(np.zeros((0, self.architecture.embed_dim), np.float32))
        with self._in_context():
            if self.architecture.text.at_root:
                features = TEXT_TOWERS[self.tower.kind].__call__(self, text)
            else:
                features = self.text(text)
        self.observe("text_features", features)
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
            logits = scale * products(normalize(image_features), normalize(text_features))
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
        model, seen = self._observed()
        with SWITCHES, nn.auto_forward(), nn.no_grad():
            model.encode_image(pixels)
            model.encode_text(tokens)
        return seen

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """What the image tower's ``blocks`` compute (`clip_core.backend.Model.forward_intermediates`)."""
        model, seen = self._observed()

        def whole(block: Block, x: np.ndarray) -> np.ndarray:
            return to_array(block(to_tensor(x)))

        def maps(block: Any, x: np.ndarray) -> np.ndarray:
            return to_array(block.attention_maps(to_tensor(x)))

        with SWITCHES, nn.auto_forward(), nn.no_grad(), self._in_context():
            model.encode_image(pixels)
            return intermediates(self.architecture.image, model.visual, seen, whole, maps, blocks, tokens, attention)

    def _observed(self) -> tuple[CLIP, Weights]:
        """A copy in evaluation mode, and what its parts will have told of their computation, float32."""
        seen: Weights = {}

        def observe(name: str, value: nn.Variable) -> None:
            seen[name] = to_array(value)

        model = evaluating(self)
        for name, part in model.named_modules():
            if isinstance(part, Observed):
                part.observe = below(f"{name}." if name else "", observe)
        return model, seen

    def _pixels(self, image: nn.Variable | np.ndarray) -> nn.Variable:
        resolution = self.architecture.image.resolution
        if not isinstance(image, nn.Variable):
            image = to_tensor(check_pixels(image, resolution))
        check_pixel_shape(image.shape, resolution)
        return image

    def _tokens(self, text: nn.Variable | np.ndarray) -> nn.Variable:
        tower = self.architecture.text
        if not isinstance(text, nn.Variable):
            text = to_tensor(check_tokens(text, tower))
        check_token_shape(text.shape, tower)
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


def published() -> CLIP | None:
    """The model in NNabla's current parameter scope; None if there is none.

    Raises:
        ClipError: the scope has parameters of a CLIP that are not a published model's.
    """
    found = nn.get_parameters(grad_only=False)
    if SCALE not in found:
        return None
    for model in reversed(PUBLISHED):
        if found[SCALE] is model.logit_scale:
            for name, variable in model.published.items():
                if found.get(name) is not variable:
                    raise ClipError(
                        f"The parameter {name} in NNabla's scope is not the model's own any more; set its values "
                        "(.d) rather than the parameter."
                    )
            return model
    raise ClipError(
        "The parameters in NNabla's scope are not those of a model that clip.load has loaded there; load their file by "
        "clip.load, or before nn.load_parameters the file that they were tuned from."
    )
