"""CLIP in NumPy: two towers and the logits. Its twins are the files of this name in the other backends.

In float64 it is the judge; in float32 it is a backend like the others, for inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from backends.numpy.layers import part
from backends.numpy.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.architecture import Architecture
from clip_core.backend import Observe, below, class_of, ignore
from clip_core.errors import ClipError
from clip_core.handover import take
from clip_core.inputs import check_pixels, check_tokens
from clip_core.intermediates import Intermediates, intermediates
from clip_core.naming import Weights, check, parameters
from clip_core.similarity import logits
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer

PRECISIONS: dict[str, np.dtype] = {"fp32": np.dtype(np.float32), "fp64": np.dtype(np.float64)}


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
        self.weights: Weights = {
            parameter.name: np.array(
                take(weights, parameter.name), None if parameter.kind == "counter" else self.dtype, order="C"
            )
            for parameter in parameters(self.architecture)
        }

        image, text = self.architecture.image, self.architecture.text
        self.visual = class_of(IMAGE_TOWERS, image, "numpy")(part(self.weights, "visual"), image)
        own = self.weights if text.at_root else part(self.weights, "text")
        self.text = class_of(TEXT_TOWERS, text, "numpy")(own, text)

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""
        return {
            name: array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
            for name, array in self.weights.items()
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

    def encode_image(self, image: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type, or values that no preprocessing gives.
        """
        pixels = check_pixels(image, self.architecture.image.resolution).astype(self.dtype, copy=False)
        if len(pixels) == 0:
            return np.zeros((0, self.architecture.embed_dim), self.dtype)
        features = self.visual(pixels, below("visual.", observe))
        observe("image_features", features)
        return features

    def encode_text(self, text: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """
        text = check_tokens(text, self.architecture.text)
        if len(text) == 0:
            return np.zeros((0, self.architecture.embed_dim), self.dtype)
        features = self.text(text, below(self.architecture.prefix("text"), observe))
        observe("text_features", features)
        return features

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

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """What the image tower's ``blocks`` compute (`clip_core.backend.Model.forward_intermediates`)."""
        seen: Weights = {}
        self.encode_image(pixels, seen.__setitem__)
        whole, maps = (lambda block, x: block(x)), (lambda block, x: block.attention_maps(x))
        return intermediates(self.architecture.image, self.visual, seen, whole, maps, blocks, tokens, attention)
