"""CLIP in onnxruntime, for inference: a session for each tower, made when it is first used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from backends.onnx.session import Session
from clip_core.architecture import Architecture
from clip_core.backend import Observe, ignore
from clip_core.errors import ClipError
from clip_core.inputs import check_pixels, check_tokens
from clip_core.intermediates import Intermediates
from clip_core.naming import Weights, check, parameters
from clip_core.similarity import logits
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer
from exporters.onnx.model import PRECISIONS, Part, write


class CLIP:
    """CLIP in onnxruntime, for inference on the CPU. Tensors in and out are NumPy arrays.

    Args:
        architecture: the shape of the model.
        weights: canonical name -> array, all of them.
        device: the CPU is the only one.
        precision: ``fp32`` or ``fp16``.
        source: what the weights came from, for messages.
        vocabulary: the text that defines its tokenizer; without it, that is OpenAI's.

    Raises:
        CheckpointError: the weights do not fit the architecture; every fault is listed.
    """

    backend = "onnx"
    Session: ClassVar[Any] = Session

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
            raise ClipError(f"There is no precision {precision!r} in ONNX; choose one of {', '.join(PRECISIONS)}.")
        if device not in (None, "cpu"):
            raise ClipError(f"The {self.backend} backend has no device {device!r}; it runs on the cpu.")
        self.architecture, self.source, self.vocabulary = architecture, source, vocabulary
        self.precision = precision
        self.load(weights, source)

    def load(self, weights: Mapping[str, np.ndarray], source: str = "the set of weights") -> None:
        """Take over ``weights``: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        check(self.architecture, weights, source)
        self.weights: Weights = {
            parameter.name: np.array(weights[parameter.name], None if parameter.kind == "counter" else np.float32)
            for parameter in parameters(self.architecture)
        }
        self._sessions: dict[tuple[Part, bool], Session] = {}

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        return {name: array.copy() for name, array in self.weights.items()}

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

    def encode_image(self, image: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Pixels float [n, 3, r, r] -> image features float32 [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type, or values that no preprocessing gives.
        """
        return self._features("image", check_pixels(image, self.architecture.image.resolution), observe)

    def encode_text(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Tokens int32 or int64 [n, context] -> text features float32 [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        return self._features("text", check_tokens(text, self.architecture.text), observe)

    def __call__(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
        scale = np.exp(self.weights["logit_scale"])
        per_image = logits(self.encode_image(image), self.encode_text(text), scale) + self.weights.get("logit_bias", 0)
        return per_image, per_image.T

    def embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """As `encode_image`."""
        return self.encode_image(pixels)

    def embed_text(self, tokens: np.ndarray) -> np.ndarray:
        """As `encode_text`."""
        return self.encode_text(tokens)

    def layers(self, pixels: np.ndarray, tokens: np.ndarray) -> Weights:
        """What each block computes, in the order of computation (`clip_core.backend.Model.layers`)."""
        seen: Weights = {}
        self.encode_image(pixels, seen.__setitem__)
        self.encode_text(tokens, seen.__setitem__)
        return seen

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """Refused: a graph shows no single blocks.

        Raises:
            ClipError: always.
        """
        raise ClipError(f"The {self.backend} backend shows no intermediate features; choose numpy or a framework.")

    def _features(self, what: Part, inputs: np.ndarray, observe: Observe) -> np.ndarray:
        if len(inputs) == 0:
            return np.zeros((0, self.architecture.embed_dim), np.float32)
        layers = observe is not ignore
        if (what, layers) not in self._sessions:
            graph = write(self.architecture, self.weights, what, self.precision, layers)
            self._sessions[what, layers] = self.Session(graph)
        found = self._sessions[what, layers]({what: inputs})
        for name, value in found.items():
            observe(name, value)
        return found[f"{what}_features"]
