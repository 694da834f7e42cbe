"""Batches of pictures and captions: the same ones in the same order for the same seed, and resumed exactly.

The examples of an epoch are shuffled; the caption of an example that has several, and what is done to its picture at
random, follow from seed, epoch and example. Nothing depends on the number of workers, so processes can share the work.

Rules:

- A source with an order of its own (`clip_core.data.example.Ordered`) is taken in that order.
- An epoch has whole batches only; the examples of a last part batch come up in other epochs.
- An example that cannot be used (a damaged picture, no caption) is skipped, reported and counted; the next one of the
  order takes its place, so that every batch is full.
- A picture that a listing names twice is one example with the captions of both; two files with equal pictures, and the
  same picture in two parts of a mixture, are two examples.
- Captions may be equal within a batch, as in any data with classes; the loss takes them for each other's negatives.
- With several ranks, the batch of a step is cut into equal parts in the order of the ranks. Each rank skips faulty
  examples by itself, so each has a state of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_core.architecture import Architecture
from clip_core.data.augmentation import Augmentation
from clip_core.data.example import Ordered, Place, Source
from clip_core.data.faults import Fault, FaultReport
from clip_core.data.order import shuffled
from clip_core.errors import ClipError
from clip_core.processes import in_order
from clip_core.text.tokenizer import Tokenizer

DIED = (
    "A process that makes batches has died (exit code {code}); most often memory has run out: set a lower data.workers "
    "or data.batch_size, and resume."
)


@dataclass(frozen=True)
class Batch:
    """What one step is trained on."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    tokens: np.ndarray  # int64 [n, context]
    examples: np.ndarray  # int64 [n], their numbers in the source


class Loader:
    """An endless iterator of batches; each epoch has every example once, in an order of its own, but for a last batch
    that would be too small.

    Args:
        source: examples, also asked for by other processes when there are ``workers``.
        tokenizer: captions longer than the context are cut.
        batch_size: of all ranks together.
        seed: of the order, the captions and the augmentation.
        workers: processes that make batches ahead of time; with 0 they are made when asked for.
        augmentation: of the pictures.
        fault_share: the run ends when more of the examples cannot be used, counted over the epochs begun.
        fault_report: a file that faults are written to, one object per line.
        rank: which of the training processes this is.
        ranks: how many there are.

    Raises:
        ClipError: the source has fewer examples than one batch, or the batch cannot be cut into equal parts. While
            iterating: too many faults, or a worker process died.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        architecture: Architecture,
        batch_size: int,
        seed: int,
        workers: int = 0,
        *,
        augmentation: Augmentation | None = None,
        fault_share: float = 0.01,
        fault_report: Path | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        check_batch(len(source), batch_size, ranks)
        self.steps_per_epoch = len(source) // batch_size
        self._rows = batch_size // ranks
        self._examples = _Examples(
            source, tokenizer, architecture, augmentation or Augmentation(), seed, batch_size, rank, self._rows
        )
        self._faults = FaultReport(fault_report, fault_share, self.steps_per_epoch * self._rows)
        self._workers = workers
        self.position = 0  # batches given so far
        self._blocks: Generator[_Block, None, None] | None = None
        self._rest: _Block | None = None  # what the batches so far have left of the last block

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        parts: list[_Block] = []
        missing = self._rows
        while missing:
            block = self._rest or self._next_block()
            part, self._rest = block.split(missing)
            for fault in part.faults:
                self._faults.add(fault)
            parts.append(part)
            missing -= len(part.rows)
        self.position += 1
        pixels, tokens, examples, _, _ = parts[0]
        if len(parts) > 1:
            pixels, tokens, examples = (np.concatenate([part[field] for part in parts]) for field in range(3))
        return Batch(pixels, tokens, examples)

    def state(self) -> dict[str, int]:
        """The loader's position, for JSON; it does not depend on the number of workers."""
        return {"position": self.position} | ({"skipped": self._faults.count} if self._faults.count else {})

    def restore(self, state: dict[str, int]) -> None:
        """Go on after the batch at which `state` was taken, by a loader of the same arguments but for ``workers``."""
        self.close()
        self.position = state["position"]
        self._faults.count = state.get("skipped", 0)

    def close(self) -> None:
        """Stop the workers; the next batch starts them again."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = self._rest = None

    def _next_block(self) -> _Block:
        if self._blocks is None:
            self._faults.begin()
            first = self.position * self._rows + self._faults.count  # all rows that the batches so far have used
            block = partial(self._examples.block, size=self._rows)
            self._blocks = in_order(block, count(first, self._rows), self._workers, DIED)
        try:
            return next(self._blocks)
        except Exception:
            self.close()  # it has no next one
            raise


def check_batch(examples: int, batch_size: int, ranks: int) -> None:
    """Refuse a batch that the data is too small for, or that the processes cannot share.

    Raises:
        ClipError: naming what was found, and the setting to change.
    """
    if examples < batch_size:
        raise ClipError(
            f"The data has {examples} examples, fewer than one batch of {batch_size}; lower data.batch_size."
        )
    if batch_size % ranks:
        raise ClipError(f"A batch of {batch_size} cannot be cut into {ranks} equal parts; change data.batch_size.")


class _Block(NamedTuple):
    """Consecutive rows, those without faults as arrays."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    tokens: np.ndarray  # int64 [n, context]
    examples: np.ndarray  # int64 [n]
    rows: np.ndarray  # int64 [n]
    faults: list[Fault]

    def split(self, wanted: int) -> tuple[_Block, _Block | None]:
        """The first ``wanted`` examples with the faults before the last of them, and the rest if there is any.

        When there are too few, all faults come along: more examples are needed, so all of these are passed.
        """
        if len(self.rows) < wanted or (len(self.rows) == wanted and not self.faults):
            return self, None
        end = self.rows[wanted - 1]
        passed = [fault for fault in self.faults if fault.row < end]
        ahead = [fault for fault in self.faults if fault.row > end]
        rest = self._cut(slice(wanted, None), ahead)
        return self._cut(slice(wanted), passed), rest if len(rest.rows) or ahead else None

    def _cut(self, part: slice, faults: list[Fault]) -> _Block:
        return _Block(self.pixels[part], self.tokens[part], self.examples[part], self.rows[part], faults)


@dataclass(frozen=True)
class _Examples:
    """The examples of one rank, row by row, in all epochs."""

    source: Source
    tokenizer: Tokenizer
    architecture: Architecture
    augmentation: Augmentation
    seed: int
    batch_size: int  # of all ranks
    rank: int
    rows: int  # of a batch, for each rank

    @cached_property
    def _shuffled(self) -> Any:
        return shuffled(len(self.source), self.seed)

    @cached_property
    def _ordered(self) -> Ordered | None:  # once: looking for the method takes longer than calling it
        return self.source if isinstance(self.source, Ordered) else None

    def block(self, first: int, size: int) -> _Block:
        resolution, context = self.architecture.image.resolution, self.architecture.text.context_length
        pixels = np.empty((size, 3, resolution, resolution), np.float32)
        tokens = np.empty((size, context), np.int64)
        examples, rows = np.empty(size, np.int64), np.empty(size, np.int64)
        faults = []
        good = 0
        for row in range(first, first + size):
            epoch, (place, example) = self._place(row)
            try:
                pixels[good], tokens[good] = self._read(epoch, place, example)
            except ClipError as error:
                faults.append(Fault(row, example, str(error)))
                continue
            examples[good], rows[good] = example, row
            good += 1
        return _Block(pixels[:good], tokens[:good], examples[:good], rows[:good], faults)

    def _place(self, row: int) -> tuple[int, Place]:
        """The epoch of a row, and its place there."""
        batches = len(self.source) // self.batch_size
        batch, place_in_part = divmod(row, self.rows)
        epoch, batch = divmod(batch, batches)
        position = batch * self.batch_size + self.rank * self.rows + place_in_part
        if self._ordered is not None:
            return epoch, self._ordered.order(epoch, position, self.batch_size)
        example = self._shuffled[epoch * len(self.source) + position]
        return epoch, Place(example, example)

    def _read(self, epoch: int, place: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels float32 [3, r, r] and tokens int64 [context]."""
        example = self.source[number]
        generator = np.random.default_rng((self.seed, epoch, place))
        caption = example.caption
        if not isinstance(caption, str):
            caption = caption[generator.integers(len(caption))]
        tokens = self.tokenizer.tokenize(caption, self.architecture.text.context_length, truncate=True)[0]
        tower = self.architecture.image
        return self.augmentation(example.picture, tower.resolution, generator, tower.pixels), tokens
