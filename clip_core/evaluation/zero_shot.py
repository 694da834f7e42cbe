"""Zero-shot classification: the class whose text features lie nearest to the picture's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clip_core.backend import Model
from clip_core.batching import embed_texts
from clip_core.similarity import normalize
from clip_core.text.tokenizer import Tokenizer

BATCH = 128


def class_features(model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Unit features [classes, d] of classes that are each described by several prompts (paper, section 3.1.4).

    The class is the mean of its prompts' unit features, made unit again.
    """
    texts = [prompt for of_class in prompts for prompt in of_class]
    features = text_features(model, tokenizer, texts)
    return means(features, [len(of_class) for of_class in prompts])


def means(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean of the unit features [n, d] of each of c groups, made unit again: [c, d].

    Args:
        counts: of each group; their sum is n.
    """
    return normalize(np.stack([part.mean(axis=0) for part in np.split(features, np.cumsum(counts)[:-1])]))


def text_features(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Unit features float32 [n, d] of ``texts``."""
    return normalize(embed_texts(model, tokenizer.tokenize(texts, model.architecture.text.context_length)))


def image_features(model: Model, pixels: np.ndarray) -> np.ndarray:
    """Unit features float32 [n, d] of pixels [n, 3, r, r]."""
    return unit_features(model.embed_image, pixels)


def unit_features(embed: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Unit features float32 [n, d] of ``inputs`` [n, ...], which a model's ``embed`` is given part by part."""
    return normalize(np.concatenate([embed(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]))
