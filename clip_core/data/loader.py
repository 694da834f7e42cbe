"""Batches of pictures and captions: the same ones in the same order for the same seed, and resumed exactly.

Grain shuffles, splits the work over processes and keeps the order, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.preprocess import pixels
from clip_core.tokenizer import Tokenizer


class Example(Protocol):
    """A picture with a caption."""

    picture: Image.Image
    caption: str


class Source(Protocol):
    """Examples that can be asked for in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Batch:
    """What one step is trained on."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    tokens: np.ndarray  # int64 [n, context]


@dataclass(frozen=True)
class _Collate:
    tokenizer: Tokenizer
    resolution: int
    context_length: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        tokens = self.tokenizer.tokenize([example.caption for example in examples], self.context_length, truncate=True)
        return Batch(pixels([example.picture for example in examples], self.resolution), tokens)


class Loader:
    """An endless iterator of batches; each epoch has every example once, in an order of its own, but for a last batch
    that would be too small.

    Args:
        source: examples, also asked for by other processes when there are ``workers``.
        tokenizer: captions longer than the context are cut.
        seed: of the order.
        workers: processes that make batches ahead of time; with 0 they are made when asked for.

    Raises:
        ClipError: the source has fewer examples than one batch.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        architecture: Architecture,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        import grain  # takes seconds, so only once data is wanted

        if len(source) < batch_size:
            raise ClipError(f"The data has {len(source)} examples, fewer than one batch of {batch_size}.")
        collate = _Collate(tokenizer, architecture.image.resolution, architecture.text.context_length)
        shuffled = grain.MapDataset.source(source).seed(seed).shuffle()
        self._batches = shuffled.batch(batch_size, drop_remainder=True, batch_fn=collate).repeat()
        self.steps_per_epoch = len(source) // batch_size
        self._options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        self._read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self.position = 0  # batches given so far
        self._iterator: Iterator[Batch] | None = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            ahead = self._batches[self.position :].to_iter_dataset(self._read_options)
            if self._options.num_workers:
                ahead = ahead.mp_prefetch(self._options)
            self._iterator = iter(ahead)
        batch = next(self._iterator)
        self.position += 1
        return batch

    def state(self) -> dict[str, int]:
        """Where the loader stands, for JSON; it does not depend on the number of workers."""
        return {"position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Go on after the batch at which `state` was taken."""
        self.position = state["position"]
        self.close()

    def close(self) -> None:
        """Stop the workers; the next batch starts them again."""
        self._iterator = None
