"""OpenAI's tokenizer with the attributes of their class, for code that imports ``clip.simple_tokenizer``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise

import regex

from clip_core.errors import TextError
from clip_core.text.bpe import (
    BYTE_SYMBOLS,
    BYTES,
    CACHED_WORD_LENGTH,
    CACHED_WORDS,
    END_OF_TEXT,
    END_OF_WORD,
    START_OF_TEXT,
    WORD,
    BytePairTokenizer,
    byte_symbol,
    openai,
    repaired,
    words,
)
from clip_core.text.tokenizer import require_text
from clip_core.text.vocabulary import merges_of, openai_vocabulary


def default_bpe() -> str:
    """A copy of OpenAI's vocabulary file.

    Raises:
        ClipError: there is none, and none can be had.
    """
    return str(openai_vocabulary())


def bytes_to_unicode() -> dict[int, str]:
    """A byte -> the character that stands for it in the vocabulary, in the order of their ids."""
    return {byte: byte_symbol(byte) for byte in BYTES}


def get_pairs(word: Iterable[str]) -> set[tuple[str, str]]:
    """The neighbours in a word that is divided into tokens."""
    return set(pairwise(word))


def basic_clean(text: str) -> str:
    """``text`` with its encoding repaired, HTML unescaped twice, and no blanks around it."""
    return repaired(text).strip()


def whitespace_clean(text: str) -> str:
    """``text`` with single blanks inside, and none around it."""
    return regex.sub(r"\s+", " ", text).strip()


class SimpleTokenizer:
    """The byte-pair tokenizer of OpenAI's models.

    Args:
        bpe_path: a copy of OpenAI's file ``bpe_simple_vocab_16e6.txt.gz``; without it, where one is found.

    Attributes:
        encoder: how a token is written in the vocabulary -> its id.
        decoder: the other way round.
        bpe_ranks: two tokens -> their place in the order of merges.
        byte_encoder: a byte -> the character that stands for it in the vocabulary.
        byte_decoder: the other way round.
        cache: a word in these characters -> what `bpe` gives for it.
        pat: what a word is.

    Raises:
        ClipError: the file cannot be read, or is not OpenAI's.
    """

    def __init__(self, bpe_path: str | os.PathLike[str] | None = None) -> None:
        self._tokenizer = openai() if bpe_path is None else BytePairTokenizer(merges_of(bpe_path))
        self.encoder = {symbol: token for token, symbol in enumerate(self._tokenizer.symbols)}
        self.decoder = dict(enumerate(self._tokenizer.symbols))
        self.bpe_ranks = {tuple(merge.split()): rank for rank, merge in enumerate(self._tokenizer.merges)}
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {symbol: byte for byte, symbol in self.byte_encoder.items()}
        self.cache = {special: special for special in (START_OF_TEXT, END_OF_TEXT)}
        self.pat = WORD

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without start and end.

        Raises:
            TextError: not a ``str``, too long, or with a lone surrogate.
        """
        require_text(text)
        symbols = ("".join(self.byte_encoder[byte] for byte in word.encode()) for word in words(text))
        return [self.encoder[part] for word in symbols for part in self.bpe(word).split(" ")]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; a blank follows each word.

        Raises:
            TextError: an id is not of this vocabulary.
        """
        ids = [int(token) for token in tokens]
        unknown = [token for token in ids if token not in self.decoder]
        if unknown:
            raise TextError(f"token id {unknown[0]} is not of this vocabulary; give ids that encode gave.")
        symbols = "".join(self.decoder[token] for token in ids)
        text = bytes(self.byte_decoder[symbol] for symbol in symbols).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ")

    def bpe(self, token: str) -> str:
        """A word in the characters of ``byte_encoder`` -> the tokens that it is made of, separated by blanks."""
        if token in self.cache:
            return self.cache[token]
        parts = self._tokenizer.merge([BYTE_SYMBOLS.index(symbol) for symbol in token])
        divided = " ".join(self._tokenizer.symbols[part] for part in parts)
        if len(self.cache) < CACHED_WORDS and len(token) <= CACHED_WORD_LENGTH:
            self.cache[token] = divided
        return divided
