"""Canonical names in Paddle's axis order: a linear weight is (in, out)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clip_core.layouts.parts import Layout


def _recognises(weights: Mapping[str, np.ndarray]) -> bool:
    # A bias is as long as the output, which is the first axis of a linear weight as OpenAI stores it. All of them are
    # asked, so that one that is wrong does not put the others in the wrong.
    first = second = 0
    for name, array in weights.items():
        bias = weights.get(f"{name.removesuffix('weight')}bias")
        if bias is not None and array.ndim == 2:
            first += bias.shape == array.shape[:1]
            second += bias.shape == array.shape[1:]
    return second > first


LAYOUT = Layout("paddle", _recognises, transposed=("linear",))
