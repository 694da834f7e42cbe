"""The table of the numeric contract: each bound beside the worst case measured, float32 on a CPU unless it says else.

The bounds that ``clip parity`` applies to a user's model live in `clip_core.tolerances`. The worst cases are the
largest of all backends, over the nine OpenAI architectures reduced, and ViT-B/32 and RN50 at full size, with random
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clip_core import tolerances


@dataclass(frozen=True)
class Row:
    bound: float
    measured: float


CONTRACT = {
    # Embeddings are scaled to length 1, logits have the scale 100; both are largest absolute differences.
    "image_embedding": Row(tolerances.EMBEDDING, 9e-7),
    "text_embedding": Row(tolerances.EMBEDDING, 5e-7),
    "logits": Row(tolerances.logit_bound(100), 4e-5),
    # The output of a block, relative to its largest value.
    "layer": Row(tolerances.LAYER, 1e-5),
    # The gradient of the contrastive loss with respect to one parameter, relative to the largest of that parameter, or
    # to a thousandth of the largest of all where that is more: some gradients are 0 but for rounding.
    "gradient": Row(2e-4, 6e-5),
}
HALF = {
    # PyTorch on a CPU with half-precision weights and activations.
    "bf16": {
        "image_embedding": Row(3e-2, 9e-3),
        "text_embedding": Row(2e-2, 6e-3),
        "logits": Row(1.5, 0.4),
    },
    "fp16": {
        "image_embedding": Row(1e-2, 3e-3),
        "text_embedding": Row(3e-3, 9e-4),
        "logits": Row(0.6, 0.2),
    },
}
SMALLEST_GRADIENT = 1e-3  # of the largest of all


ROUNDING = 2.0**-24  # the largest relative error of one operation in float32


def spread(operations: int) -> float:
    """The standard deviation, relative, between two float32 results of so many operations each, one after the other.

    Kernels add up in different orders, so that each operation rounds otherwise, by ``ROUNDING / sqrt(3)`` on the
    average of its square, and independent roundings add up as a random walk does (Higham and Mary, SIAM Journal on
    Scientific Computing 41, 2019).
    """
    return ROUNDING * (2 * operations / 3) ** 0.5


def step_bound(operations: int, updates: int, weights: int) -> float:
    """How far the losses, or the norms of gradients, of one step may be apart, relative: three standard deviations.

    Before the first update two runs differ by the roundings of ``operations`` alone. Adam divides a gradient by its own
    size: one of the share s of its tensor's largest that is wrong by the share e moves its weight by e / s of a step
    otherwise, at most by 2. Small shares are about evenly spread, with a density of 3.2 (the largest of a tensor lies
    some four standard deviations out), so that the mean square is 4 * 3.2 * e. Of independent errors in all weights, a
    number that depends on all of them sees the mean, and over the updates they add up as a random walk does.
    """
    rounded = spread(operations)
    return 3 * (rounded + (4 * 3.2 * rounded * updates / weights) ** 0.5)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference; arrays of different shapes differ infinitely, and so does NaN."""
    if found.shape != expected.shape:
        return float("inf")
    result = float(np.abs(found.astype(np.float64) - expected).max())
    return result if result == result else float("inf")


def beyond(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], table: Mapping[str, Row] = CONTRACT
) -> dict[str, float]:
    """The stages whose difference is beyond its bound, with that difference."""
    assert found.keys() == expected.keys()
    differences = {stage: difference(found[stage], expected[stage]) for stage in expected}
    return {stage: value for stage, value in differences.items() if not value <= table[stage].bound}


def first_beyond(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str | None:
    """The first layer, in the order of computation, that is beyond its bound."""
    bound = CONTRACT["layer"].bound
    return next(
        (name for name, value in expected.items() if not difference(found[name], value) <= bound * np.abs(value).max()),
        None,
    )
