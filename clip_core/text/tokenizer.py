"""What all tokenizers have in common: text -> a row of token ids, as one model reads it, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import regex

from clip_core.errors import TextError
from clip_core.models import OPENAI_CONTEXT_LENGTH

MAXIMUM_CHARACTERS = 30_000
"""A longer text is refused before any work is done on it: 30,000 combining marks take ftfy a second, 100,000 ten."""

_LONE_SURROGATE = regex.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def require_text(text: object, name: str = "the text") -> None:
    """Refuse what is not a text that can be tokenized.

    Args:
        name: what an error calls the text.

    Raises:
        TextError: not a ``str``, longer than `MAXIMUM_CHARACTERS`, or with a lone surrogate.
    """
    if not isinstance(text, str):
        hint = "decode it first" if isinstance(text, bytes) else "give a text, or a flat list of texts"
        raise TextError(f"{name} is of type {type(text).__name__}, not str; {hint}.")
    if len(text) > MAXIMUM_CHARACTERS:
        raise TextError(f"{name} has {len(text)} characters; at most {MAXIMUM_CHARACTERS} are accepted, so shorten it.")
    if not text.isascii() and (found := _LONE_SURROGATE.search(text)):
        raise TextError(
            f"{name} has the lone surrogate U+{ord(found[0]):04X} at character {found.start()}, which is no text; "
            "read the text with its right encoding."
        )


class Tokenizer(ABC):
    """Text -> token ids and back, as one model reads them; the same text always gives the same ids.

    Attributes:
        kind: what the command calls this kind of tokenizer.
        vocabulary_size: number of token ids.
        start: id of the token in front of each text; None where there is none.
        end: id of the token behind it; None where there is none.
        padding: id of the tokens behind that, up to the context length.
        special: ids that are no part of a text, and that a text must not spell out.
    """

    kind: str
    vocabulary_size: int
    start: int | None
    end: int | None
    padding: int
    special: frozenset[int]

    @property
    @abstractmethod
    def definition(self) -> str:
        """The text that a model's file carries; `clip_core.text.loading.tokenizer_from` makes a tokenizer of it."""

    @abstractmethod
    def spelling(self, token: int) -> str:
        """How a token is written in the vocabulary."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The token ids of a text that `require_text` has accepted."""

    @abstractmethod
    def _decode(self, tokens: list[int]) -> str:
        """The text of token ids of this vocabulary."""

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, without start and end.

        A special token that is written in the text becomes its special id, as in the packages that models come from.
        A model takes its feature at the first end token, so what follows a written one does not count: `check` refuses
        such texts.

        Raises:
            TextError: not a ``str``, longer than `MAXIMUM_CHARACTERS`, or with a lone surrogate.
        """
        require_text(text)
        return self._encode(text)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of a row of token ids, with special tokens spelt out, and U+FFFD for bytes cut apart.

        Raises:
            TextError: not one row of whole numbers, or an id that is not of this vocabulary.
        """
        row = np.asarray(tokens)
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise TextError(f"tokens are {row.dtype} {list(row.shape)}; give one row of whole numbers.")
        unknown = [token for token in row.tolist() if not 0 <= token < self.vocabulary_size]
        if unknown:
            raise TextError(
                f"token id {unknown[0]} is not of this vocabulary, whose ids are 0 to {self.vocabulary_size - 1}."
            )
        return self._decode(row.tolist())

    def row(self, text: str, context_length: int, truncate: bool = False, name: str = "the text") -> list[int]:
        """The token ids of ``text`` with start and end, without padding.

        Args:
            truncate: cut a text that is too long; the end token stays.
            name: what an error calls the text.

        Raises:
            TextError: the text is too long, is not a ``str``, or cannot be used.
        """
        require_text(text, name)
        before = [] if self.start is None else [self.start]
        behind = [] if self.end is None else [self.end]
        tokens = [*before, *self._encode(text), *behind]
        if len(tokens) > context_length:
            if not truncate:
                raise TextError(
                    f"{name} is too long for context length {context_length}: it has {len(tokens)} tokens "
                    "with start and end; shorten it, or cut it with truncate=True (in commands: --truncate)."
                )
            tokens[context_length - len(behind) :] = behind
        return tokens

    def tokenize(
        self, texts: str | Iterable[str], context_length: int = OPENAI_CONTEXT_LENGTH, truncate: bool = False
    ) -> np.ndarray:
        """Token ids of one text or several, each as start, text, end, padding.

        Args:
            truncate: cut a text that is too long; the end token stays.

        Returns:
            int64 [n, context_length]; n is 1 for a single ``str`` and 0 for an empty list.

        Raises:
            TextError: a text is too long, is not a ``str``, or cannot be used; the sentence gives its index.
        """
        shortest = max(2, self._around)
        if not isinstance(context_length, int) or context_length < shortest:
            raise TextError(f"context_length is {context_length!r}; give a whole number of at least {shortest}.")
        rows = [self.row(text, context_length, truncate, f"text {i}") for i, text in enumerate(_listed(texts))]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        result = np.full((len(rows), context_length), self.padding, np.int64)
        result[np.arange(context_length) < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), np.int64)
        return result

    def check(self, text: str, context_length: int | None, remedy: str) -> None:
        """Refuse a text that a model would not read to its end.

        Args:
            context_length: None where a text that is too long is cut.
            remedy: what else to do with it.

        Raises:
            TextError: it is too long or cannot be used, or a special token is written in it.
        """
        tokens = self.encode(text)
        special = next((token for token in tokens if token in self.special), None)
        if special is not None:
            raise TextError(
                f"the text has {self.spelling(special)} in it, where a model takes a text to begin or end; remove that."
            )
        length = len(tokens) + self._around
        if context_length is not None and length > context_length:
            raise TextError(
                f"the text is too long: with start and end it has {length} tokens, and the model reads "
                f"{context_length}; {remedy}."
            )

    @property
    def _around(self) -> int:
        """How many tokens each text has around it."""
        return (self.start is not None) + (self.end is not None)


def _listed(texts: object) -> Iterable[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise TextError(f"texts is of type {type(texts).__name__}; give a str or a list of str.")
    return texts
