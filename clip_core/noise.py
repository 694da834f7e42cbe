"""Noise of training: dropout, drop path and patch dropout, drawn here and so the same in every framework.

Dropout (arXiv 1706.03762, section 5.4) drops single numbers of what a part of a block, attention or MLP, adds to its
input. Drop path (arXiv 1603.09382) drops all that a part adds for one example, and more often in later blocks: its rate
rises evenly from 0 in the first block to the recipe's in the last. What is kept is divided by the share that is kept.
Patch dropout (arXiv 2212.00794) leaves patches of a picture out of the image tower.

A draw depends on the seed, the step, the tower, the block, its part, and the place of the example among those of all
processes. So it is the same again when a block is recomputed, in micro batches, and on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

LEVELS = 1 << 16  # of a draw, which has 16 bits
HIGHEST_RATE = 1 - 1 / LEVELS  # of what is dropped: a higher one would keep nothing


@dataclass(frozen=True)
class Noise:
    """That of one block in one step."""

    dropout: float
    drop_path: float
    seed: int
    step: int
    tower: int  # 0 is the image tower, 1 the text tower
    block: int
    first: int  # where the first example is among those of all processes

    def factors(self, part: int, shape: Sequence[int]) -> np.ndarray:
        """What to multiply by what a part of the block adds: float32 that can be broadcast to ``shape``.

        Args:
            part: 0 is the first part of the block, 1 the second.
            shape: [n, ...], an example a row.
        """
        n, *rest = shape
        result = np.ones((n, *(1 for _ in rest)), np.float32)
        if self.drop_path:
            result *= self._kept(self.drop_path, 2 * part, n, 1).reshape(result.shape)
        if self.dropout:
            result = result * self._kept(self.dropout, 2 * part + 1, n, prod(rest)).reshape(shape)
        return result

    def _kept(self, rate: float, stream: int, n: int, count: int) -> np.ndarray:
        """Float32 [n, count] of 0 and 1 / (1 - rate)."""
        limit = round(rate * LEVELS)
        stream |= self.block << 8 | self.tower << 24
        kept = _draws(self.seed, self.step, stream, range(self.first, self.first + n), count) >= limit
        return kept * np.float32(LEVELS / (LEVELS - limit))


@dataclass(frozen=True)
class PatchNoise:
    """That of the patches of one step."""

    patch_dropout: float
    seed: int
    step: int
    first: int  # where the first example is among those of all processes

    def kept(self, n: int, patches: int) -> np.ndarray:
        """The numbers of the patches that are kept, int64 [n, k], rising; at least one of each picture."""
        count = max(int(patches * (1 - self.patch_dropout)), 1)
        draws = _draws(self.seed, self.step, _PATCHES, range(self.first, self.first + n), patches)
        return np.sort(draws.argsort(axis=1, kind="stable")[:, :count], axis=1)


_PATCHES = 0xFF  # a stream that no block has


def _draws(seed: int, step: int, stream: int, examples: range, count: int) -> np.ndarray:
    """Uint16 [n, count] for each of the ``examples``; a shorter row is the beginning of a longer one."""
    key = seed | step << 32 | stream << 80
    draws = np.empty((len(examples), -(-count // 4)), np.uint64)
    for row, example in enumerate(examples):
        draws[row] = np.random.Philox(key=key, counter=[0, example, 0, 0]).random_raw(draws.shape[1])
    return draws.astype("<u8", copy=False).view("<u2")[:, :count]
