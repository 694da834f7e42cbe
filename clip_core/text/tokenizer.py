"""The protocol of tokenizers, and which of them a model reads its texts with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import TextError
from clip_core.models import OPENAI_CONTEXT_LENGTH, OPENAI_VOCABULARY_SIZE
from clip_core.text.bpe import BytePairTokenizer, openai


class Tokenizer(Protocol):
    """Text -> token ids and back, as one kind of model reads them.

    Attributes:
        vocabulary_size: number of token ids.
        merges: each line ``left right`` of its merges file, in its order.
    """

    vocabulary_size: int
    merges: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, without start and end."""

    def special_in(self, tokens: Iterable[int]) -> str | None:
        """The first special token that `encode` has found in a text, where a model takes it to begin or end."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of a row of token ids."""

    def tokenize(
        self, texts: str | Iterable[str], context_length: int = OPENAI_CONTEXT_LENGTH, truncate: bool = False
    ) -> np.ndarray:
        """The tokens that a model reads: int64 [n, context_length]."""


def tokenizer_of(name: str, architecture: Architecture, vocabulary: str | None) -> Tokenizer:
    """The tokenizer for a model: of the vocabulary that its file carries, else OpenAI's.

    Args:
        name: what the sentence calls the model.
        vocabulary: the text of a merges file.

    Raises:
        TextError: the file carries none and the model was not trained with OpenAI's, or it carries one that is not
            the model's.
        DownloadError: it is OpenAI's, and that cannot be had.
    """
    size = architecture.text.end_of_text + 1  # tokens behind it were added to the model, and no text becomes them
    if vocabulary is None:
        if size != OPENAI_VOCABULARY_SIZE:
            raise TextError(
                f"{name} has a vocabulary of {size} tokens and does not carry it; "
                "clip convert FILE TARGET --like ORIGINAL takes it from the model that this one was fine-tuned from."
            )
        return openai()
    try:
        carried = BytePairTokenizer(vocabulary)
    except TextError as error:
        raise TextError(f"The vocabulary that {name} carries cannot be read: {error}") from error
    if carried.vocabulary_size != size:
        raise TextError(
            f"{name} carries a vocabulary of {carried.vocabulary_size} tokens, but its weights are for {size}; "
            "convert the original file again."
        )
    return carried
