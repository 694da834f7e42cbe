"""The tokenizer of the models in `tests.training.tiny`."""

from __future__ import annotations

import pytest

from clip_core.data.shapes import vocabulary_captions
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import learn


@pytest.fixture(scope="session")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(learn(vocabulary_captions(), 200))
