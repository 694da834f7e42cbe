"""Text -> token ids, equal to OpenAI's tokenizer: repair, unescape, lower-case, split into words, byte-pair encode."""

from __future__ import annotations

import heapq
import html
from collections.abc import Iterable, Sequence
from functools import lru_cache

import ftfy
import numpy as np
import regex

from clip_core.errors import TextError
from clip_core.models import OPENAI_CONTEXT_LENGTH
from clip_core.text.vocabulary import openai_merges

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
END_OF_WORD = "</w>"

MAXIMUM_CHARACTERS = 30_000
"""A longer text is refused before any work is done on it: 30,000 combining marks take ftfy a second, 100,000 ten."""

CACHED_WORDS = 1 << 16
"""Words whose ids a tokenizer remembers; when there are more, it forgets them all and starts afresh."""

CACHED_WORD_LENGTH = 64
"""A word with more characters is encoded anew each time, so that odd texts cannot fill the memory."""

_WORD = regex.compile(
    regex.escape(START_OF_TEXT)
    + "|"
    + regex.escape(END_OF_TEXT)
    + r"|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_LONE_SURROGATE = regex.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")

# A merges file writes each byte as a visible character. Printable Latin-1 stands for itself and comes first; the other
# bytes, in ascending order, are U+0100, U+0101 and so on. A byte's place in this order is its token id.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = [*_PRINTABLE, *sorted(set(range(256)) - set(_PRINTABLE))]
_BYTE_IDS = [_BYTES.index(byte) for byte in range(256)]
BYTE_SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
"""The visible character of each byte token, in the order of their ids."""


def words(text: str, name: str = "the text") -> list[str]:
    """Clean ``text`` as OpenAI does and split it into the words that are byte-pair encoded one by one.

    Cleaning is `ftfy.fix_text`, HTML unescaping twice and lower-casing. A word is a run of letters, one digit, an
    English contraction (``'s``, ``'re``), a run of other visible characters, or a special token.

    Args:
        name: what an error calls the text.

    Raises:
        TextError: not a ``str``, longer than `MAXIMUM_CHARACTERS`, or with a lone surrogate.
    """
    require_text(text, name)
    # Repairing takes most of the time and changes nothing in plain ASCII without entities or control characters.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _WORD.findall(text.lower())


def require_text(text: object, name: str = "the text") -> None:
    """Refuse what is not a text that can be tokenized.

    Raises:
        TextError: as `words`.
    """
    if not isinstance(text, str):
        hint = "decode it first" if isinstance(text, bytes) else "give a text, or a flat list of texts"
        raise TextError(f"{name} is of type {type(text).__name__}, not str; {hint}.")
    if len(text) > MAXIMUM_CHARACTERS:
        raise TextError(f"{name} has {len(text)} characters; at most {MAXIMUM_CHARACTERS} are accepted, so shorten it.")
    if found := _LONE_SURROGATE.search(text):
        raise TextError(
            f"{name} has the lone surrogate U+{ord(found[0]):04X} at character {found.start()}, which is no text; "
            "read the text with its right encoding."
        )


def byte_symbol(byte: int) -> str:
    """The visible character of a byte."""
    return BYTE_SYMBOLS[_BYTE_IDS[byte]]


def byte_symbols(word: str) -> list[str]:
    """The byte tokens of ``word`` as they are written in a merges file; the last one ends the word."""
    symbols = [byte_symbol(byte) for byte in word.encode()]
    symbols[-1] += END_OF_WORD
    return symbols


class BytePairTokenizer:
    """A byte-pair tokenizer with OpenAI's cleaning, word pattern and order of ids.

    The vocabulary is 256 bytes, the same 256 as the last of a word, one token per merge, and the start and end tokens.

    Attributes:
        vocabulary_size: number of token ids.
        symbols: each token as it is written in a merges file, in the order of their ids.
        merges: each line ``left right`` of the merges file, in its order.
        start: id of ``<|startoftext|>``.
        end: id of ``<|endoftext|>``, the largest id: models take their text feature at the largest id of a row.
    """

    def __init__(self, merges: str):
        """Read ``merges``, the text of a merges file: a version header, then a merge ``left right`` per line.

        Raises:
            TextError: there is no header, or a line is not one new merge of two tokens that lines above it make.
        """
        header, *lines = merges.rstrip().split("\n")
        if "#version" not in header:
            raise TextError(
                f"line 1 of the merges is {header[:80]!r}, not a header with '#version'; give a merges file."
            )
        ids = {symbol: i for i, symbol in enumerate(BYTE_SYMBOLS + [symbol + END_OF_WORD for symbol in BYTE_SYMBOLS])}
        texts = [bytes([byte]) for byte in _BYTES] + [bytes([byte]) + b" " for byte in _BYTES]
        self._merged: dict[tuple[int, int], int] = {}
        for number, line in enumerate(lines, start=2):
            pair = line.split()
            if len(pair) != 2 or pair[0] not in ids or pair[1] not in ids or "".join(pair) in ids:
                raise TextError(
                    f"line {number} of the merges is {line[:80]!r}, not a new merge of two tokens made above; "
                    "give an unchanged merges file."
                )
            left, right = ids[pair[0]], ids[pair[1]]
            self._merged[left, right] = ids["".join(pair)] = len(texts)
            texts.append(texts[left] + texts[right])
        self.start, self.end = len(texts), len(texts) + 1
        self._texts = [*texts, START_OF_TEXT.encode(), END_OF_TEXT.encode()]
        self.vocabulary_size = len(self._texts)
        self.symbols = (*ids, START_OF_TEXT, END_OF_TEXT)
        self.merges = tuple(" ".join(line.split()) for line in lines)
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, without start and end.

        As in OpenAI's tokenizer, ``<|startoftext|>`` and ``<|endoftext|>`` inside a text, in any case and also when
        spelt with HTML entities, become the special ids. A model takes its feature at the first end token, so what
        follows a written ``<|endoftext|>`` does not count: `special_in` tells of it in texts you do not trust.

        Raises:
            TextError: not a ``str``, longer than `MAXIMUM_CHARACTERS`, or with a lone surrogate.
        """
        return self._encode(text, "the text")

    def special_in(self, tokens: Iterable[int]) -> str | None:
        """The first special token that `encode` has found in a text, where a model takes it to begin or end."""
        found = next((token for token in tokens if token in (self.start, self.end)), None)
        return None if found is None else self._texts[found].decode()

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of a row of token ids: a blank after each word, specials spelt out, U+FFFD for bytes cut apart.

        Raises:
            TextError: not one row of whole numbers, or an id that is not of this vocabulary.
        """
        row = np.asarray(tokens)
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise TextError(f"tokens are {row.dtype} {list(row.shape)}; give one row of whole numbers.")
        unknown = [token for token in row.tolist() if not 0 <= token < self.vocabulary_size]
        if unknown:
            raise TextError(f"token id {unknown[0]} is not of this vocabulary, whose ids are 0 to {self.end}.")
        return b"".join([self._texts[int(token)] for token in row]).decode("utf-8", errors="replace")

    def tokenize(
        self, texts: str | Iterable[str], context_length: int = OPENAI_CONTEXT_LENGTH, truncate: bool = False
    ) -> np.ndarray:
        """Token ids of one text or several, each as start, text, end, zeros.

        Args:
            truncate: cut a text that is too long; its last token becomes the end token.

        Returns:
            int64 [n, context_length]; n is 1 for a single ``str`` and 0 for an empty list.

        Raises:
            TextError: a text is too long, is not a ``str``, or cannot be used; the sentence gives its index.
        """
        if not isinstance(context_length, int) or context_length < 2:
            raise TextError(f"context_length is {context_length!r}; give a whole number of at least 2.")
        rows = []
        for index, text in enumerate(_listed(texts)):
            tokens = [self.start, *self._encode(text, f"text {index}"), self.end]
            if len(tokens) > context_length:
                if not truncate:
                    raise TextError(
                        f"text {index} is too long for context length {context_length}: it has {len(tokens)} tokens "
                        "with start and end; shorten it, or cut it with truncate=True (in the command: --truncate)."
                    )
                tokens[context_length - 1 :] = [self.end]
            rows.append(tokens)
        result = np.zeros((len(rows), context_length), np.int64)
        for row, tokens in zip(result, rows):
            row[: len(tokens)] = tokens
        return result

    def _encode(self, text: str, name: str) -> list[int]:
        tokens: list[int] = []
        for word in words(text, name):
            known = self._cache.get(word)
            tokens.extend(self._encode_word(word) if known is None else known)
        return tokens

    def _encode_word(self, word: str) -> list[int]:
        if word == START_OF_TEXT:
            return [self.start]
        if word == END_OF_TEXT:
            return [self.end]
        tokens = self._merge([_BYTE_IDS[byte] for byte in word.encode()])
        if len(word) <= CACHED_WORD_LENGTH:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = tokens
        return tokens

    def _merge(self, tokens: list[int]) -> list[int]:
        """Apply the merges, earliest first and from left to right, in O(n log n) for n bytes.

        A merge makes a token that only later merges use, so the smallest (merge, position) is always the next one.
        """
        tokens[-1] += len(BYTE_SYMBOLS)
        size = len(tokens)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))  # neighbours, as positions
        heap: list[tuple[int, int]] = []

        def propose(left: int) -> None:
            if left >= 0 and after[left] < size:
                merged = self._merged.get((tokens[left], tokens[after[left]]))
                if merged is not None:
                    heapq.heappush(heap, (merged, left))

        for position in range(size - 1):
            propose(position)
        while heap:
            merged, left = heapq.heappop(heap)
            right = after[left]
            # The proposal is out of date when either token has since become part of another.
            if right >= size or self._merged.get((tokens[left], tokens[right])) != merged:
                continue
            tokens[left], tokens[right] = merged, -1
            after[left] = after[right]
            if after[left] < size:
                before[after[left]] = left
            propose(before[left])
            propose(left)
        return [token for token in tokens if token >= 0]


def _listed(texts: object) -> Iterable:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise TextError(f"texts is of type {type(texts).__name__}; give a str or a list of str.")
    return texts


@lru_cache(maxsize=1)
def openai() -> BytePairTokenizer:
    """OpenAI's tokenizer of 49,408 ids; the first call reads its vocabulary, which may fetch it once.

    Raises:
        DownloadError: the vocabulary is nowhere to be found.
    """
    return BytePairTokenizer(openai_merges())
