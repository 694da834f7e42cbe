"""OpenAI's tokenizer with the attributes of their class, for code that imports ``clip.simple_tokenizer``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from clip_core.text.bpe import END_OF_WORD, BytePairTokenizer, byte_symbol, openai
from clip_core.text.vocabulary import merges_of


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

    Raises:
        ClipError: the file cannot be read, or is not OpenAI's.
    """

    def __init__(self, bpe_path: str | os.PathLike[str] | None = None) -> None:
        self._tokenizer = openai() if bpe_path is None else BytePairTokenizer(merges_of(bpe_path))
        self.encoder = {symbol: token for token, symbol in enumerate(self._tokenizer.symbols)}
        self.decoder = dict(enumerate(self._tokenizer.symbols))
        self.bpe_ranks = {tuple(merge.split()): rank for rank, merge in enumerate(self._tokenizer.merges)}
        self.byte_encoder = {byte: byte_symbol(byte) for byte in range(256)}
        self.byte_decoder = {symbol: byte for byte, symbol in self.byte_encoder.items()}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without start and end."""
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; a blank follows each word."""
        return self._tokenizer.decode(tokens)

    def bpe(self, token: str) -> str:
        """A word in the characters of ``byte_encoder`` -> the tokens that it is made of, separated by blanks."""
        if self.encoder.get(token) in (self._tokenizer.start, self._tokenizer.end):
            return token
        parts = [*token[:-1], token[-1] + END_OF_WORD]
        while len(parts) > 1:
            pairs = set(pairwise(parts)) & self.bpe_ranks.keys()
            if not pairs:
                break
            first = min(pairs, key=self.bpe_ranks.__getitem__)
            merged: list[str] = []
            while parts:
                taken = 2 if tuple(parts[:2]) == first else 1
                merged.append("".join(parts[:taken]))
                del parts[:taken]
            parts = merged
        return " ".join(parts)
