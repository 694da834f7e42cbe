"""The order of examples: for the same seed the same in any process, and each entry computed by itself."""

from __future__ import annotations

from typing import Any


def shuffled(examples: int, seed: int) -> Any:
    """An endless sequence of the numbers below ``examples``: each once in every epoch of so many, in a new order.

    Grain computes each entry from its position, so the order takes no memory and resuming in it no time.
    """
    import grain  # takes seconds, so only once data is wanted

    return grain.MapDataset.range(examples).seed(seed % 2**32).shuffle()
