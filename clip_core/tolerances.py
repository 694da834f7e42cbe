"""The numeric contract: how far a backend may be from `backends.numpy` in float64, in float32 on the CPU."""

from __future__ import annotations

# Largest absolute difference of a component of an embedding scaled to length 1.
EMBEDDING = 1e-5
# Largest absolute difference of a logit at a scale of 100; other scales in proportion.
LOGIT_AT_100 = 2e-3
# Largest difference of a value in a block's output, relative to the largest value of that output.
LAYER = 1e-4


def logit_bound(logit_scale: float) -> float:
    """The largest absolute difference of a logit at ``logit_scale`` (e.g. 100)."""
    return LOGIT_AT_100 * max(logit_scale, 1.0) / 100
