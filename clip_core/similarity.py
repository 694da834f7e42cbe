"""Features -> logits -> probabilities, and the two training losses with their gradients: the oracle of all frameworks.

Everything here is written for clarity and exactness in NumPy; the frameworks' own versions are compared with it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from clip_core.errors import ClipError


def normalize(features: np.ndarray) -> np.ndarray:
    """Features float [..., d] scaled to length 1 along the last axis, in their own precision.

    A feature of length 0 has no direction and becomes NaN, as with OpenAI's package.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return features / np.linalg.norm(features, axis=-1, keepdims=True)


def logits(image_features: np.ndarray, text_features: np.ndarray, logit_scale: float) -> np.ndarray:
    """Scaled cosine similarities [n, m] of image features [n, d] and text features [m, d], which need no normalising.

    Args:
        logit_scale: the factor itself, e.g. 100: exp of the parameter of that name.
    """
    similarities = normalize(image_features) @ normalize(text_features).T
    return similarities * similarities.dtype.type(logit_scale)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64 of the same shape: with logits [n, m], how each image spreads over texts."""
    return np.exp(_log_softmax(logits, axis=-1))


def pair_probabilities(logits: np.ndarray) -> np.ndarray:
    """Sigmoid, float64 of the same shape: how probable each pair is by itself, for logits that include a bias."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def contrastive_loss(logits: np.ndarray, reduction: Literal["mean", "sum"] = "mean") -> tuple[float, np.ndarray]:
    """The symmetric softmax loss of n matching pairs, and its gradient (paper, figure 3).

    Each image is to find its text among the n and each text its image: two cross-entropies, each the mean over n.

    Args:
        logits: float [n, n], images along the rows; the pairs are on the diagonal.
        reduction: ``mean`` of the two cross-entropies, as in the paper, or their ``sum``, as in PASSL.

    Returns:
        The loss and its gradient with respect to the logits, float64 [n, n].
    """
    n = _pairs(logits)
    texts_of_image = _log_softmax(logits, axis=1)
    images_of_text = _log_softmax(logits, axis=0)
    factor = (0.5 if reduction == "mean" else 1.0) / n
    loss = -factor * float(np.trace(texts_of_image) + np.trace(images_of_text))
    return loss, factor * (np.exp(texts_of_image) + np.exp(images_of_text) - 2 * np.eye(n))


def sigmoid_loss(logits: np.ndarray, bias: float) -> tuple[float, np.ndarray, float]:
    """The sigmoid loss of n matching pairs, and its gradients (SigLIP, arXiv 2303.15343, section 3).

    Each of the n x n combinations is judged by itself, as a pair or not; the sum over all is divided by n.

    Args:
        logits: float [n, n] without the bias, images along the rows; the pairs are on the diagonal.
        bias: the learnt number added to every logit.

    Returns:
        The loss, its gradient with respect to the logits, float64 [n, n], and with respect to the bias.
    """
    n = _pairs(logits)
    sign = 2 * np.eye(n) - 1  # 1 for a pair, -1 for any other combination
    margin = sign * (logits.astype(np.float64) + bias)
    loss_of_each = np.logaddexp(0, -margin)  # -log sigmoid(margin), without overflow
    gradient = -sign * np.exp(-np.logaddexp(0, margin)) / n  # sigmoid(-margin)
    return float(loss_of_each.sum()) / n, gradient, float(gradient.sum())


def _log_softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _pairs(logits: np.ndarray) -> int:
    """How many pairs ``logits`` [n, n] hold."""
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or not logits.size:
        raise ClipError(f"The logits of a loss have shape {logits.shape}; n pairs need [n, n] with n of 1 or more.")
    return logits.shape[0]
