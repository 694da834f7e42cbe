"""Batches come in the same order from any number of processes, and resume where they stopped."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.data.loader import Batch, Loader
from clip_core.data.shapes import TrainingSet, training_example
from clip_core.errors import ClipError
from clip_core.preprocess import preprocess
from tests.training.tiny import TINY

EXAMPLES, BATCH = 50, 8


def loader(tokenizer, seed: int = 1, workers: int = 0) -> Loader:
    return Loader(TrainingSet(0, EXAMPLES), tokenizer, TINY, BATCH, seed, workers)


def take(batches: Loader, count: int) -> list[bytes]:
    taken = [next(batches) for _ in range(count)]
    return [batch.pixels.tobytes() + batch.tokens.tobytes() for batch in taken]


def test_a_batch_is_preprocessed_pictures_with_their_own_captions(tokenizer):
    batch = next(loader(tokenizer))
    assert isinstance(batch, Batch)
    assert (batch.pixels.shape, batch.pixels.dtype) == ((BATCH, 3, 32, 32), np.float32)
    assert (batch.tokens.shape, batch.tokens.dtype) == ((BATCH, 24), np.int64)
    expected = {}
    for index in range(EXAMPLES):
        example = training_example(0, index)
        expected[preprocess(example.picture, 32).tobytes()] = tokenizer.tokenize(example.caption, 24)[0].tolist()
    for pixels, tokens in zip(batch.pixels, batch.tokens):
        assert expected[pixels.tobytes()] == tokens.tolist()


def test_each_epoch_has_no_example_twice_and_an_order_of_its_own(tokenizer):
    batches = loader(tokenizer)
    assert batches.steps_per_epoch == 6
    epochs = [[row.tobytes() for _ in range(6) for row in next(batches).pixels] for _ in range(2)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 48
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_the_seed_alone(tokenizer):
    assert take(loader(tokenizer), 8) == take(loader(tokenizer), 8)
    assert take(loader(tokenizer), 2) != take(loader(tokenizer, seed=2), 2)


def test_two_workers_give_the_same_batches_as_none_also_after_resuming(tokenizer):
    expected = take(loader(tokenizer), 9)
    parallel = loader(tokenizer, workers=2)
    assert take(parallel, 5) == expected[:5]
    state = parallel.state()
    parallel.close()
    assert take(parallel, 2) == expected[5:7]
    parallel.restore(state)
    assert take(parallel, 4) == expected[5:]
    parallel.close()


def test_a_restored_loader_goes_on_after_the_last_batch(tokenizer):
    first = loader(tokenizer)
    expected = take(first, 11)
    second = loader(tokenizer)
    take(second, 7)  # beyond the first epoch
    assert second.state() == {"position": 7}
    third = loader(tokenizer)
    third.restore(second.state())
    assert take(third, 4) == expected[7:]


def test_data_smaller_than_a_batch_is_refused(tokenizer):
    with pytest.raises(ClipError, match="has 7 examples, fewer than one batch of 8"):
        Loader(TrainingSet(0, 7), tokenizer, TINY, 8, seed=0)
