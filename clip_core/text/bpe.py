"""Text -> token ids, equal to OpenAI's tokenizer: repair, unescape, lower-case, split into words, byte-pair encode."""

from __future__ import annotations

import heapq
import html
from functools import lru_cache
from itertools import chain

import ftfy
import regex

from clip_core.errors import TextError
from clip_core.text.tokenizer import Tokenizer
from clip_core.text.vocabulary import openai_merges

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
END_OF_WORD = "</w>"
HEADER = "#version: triclip 1"

CACHED_WORDS = 1 << 16
"""Parts of texts whose ids a tokenizer remembers; when there are more, it forgets them all and starts afresh."""

CACHED_WORD_LENGTH = 64
"""A part with more characters is encoded anew each time, so that odd texts cannot fill the memory."""

WORD = regex.compile(
    regex.escape(START_OF_TEXT)
    + "|"
    + regex.escape(END_OF_TEXT)
    + r"|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)

# A merges file writes each byte as a visible character. Printable Latin-1 stands for itself and comes first; the other
# bytes, in ascending order, are U+0100, U+0101 and so on. A byte's place in BYTES is its token id.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [*_PRINTABLE, *sorted(set(range(256)) - set(_PRINTABLE))]
_BYTE_IDS = [BYTES.index(byte) for byte in range(256)]
BYTE_SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
"""The visible character of each byte token, in the order of their ids."""


def words(text: str) -> list[str]:
    """Clean ``text`` as OpenAI does and split it into the words that are byte-pair encoded one by one.

    Cleaning is `ftfy.fix_text`, HTML unescaping twice and lower-casing. A word is a run of letters, one digit, an
    English contraction (``'s``, ``'re``), a run of other visible characters, or a special token.
    """
    return _words_of(text if _is_clean(text) else repaired(text))


def _is_clean(text: str) -> bool:
    """Whether repairing and unescaping, which take most of the time, change nothing.

    In ASCII they change control characters and entities only.
    """
    return text.isascii() and text.isprintable() and "&" not in text


def repaired(text: str) -> str:
    """``text`` after `ftfy.fix_text`, HTML unescaped twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def byte_symbol(byte: int) -> str:
    """The visible character of a byte."""
    return BYTE_SYMBOLS[_BYTE_IDS[byte]]


def byte_symbols(word: str) -> list[str]:
    """The byte tokens of ``word`` as they are written in a merges file; the last one ends the word."""
    symbols = [byte_symbol(byte) for byte in word.encode()]
    symbols[-1] += END_OF_WORD
    return symbols


class BytePairTokenizer(Tokenizer):
    """A byte-pair tokenizer with OpenAI's cleaning, word pattern and order of ids.

    The vocabulary is 256 bytes, the same 256 as the last of a word, one token per merge, and the start and end tokens.

    As in OpenAI's tokenizer, ``<|startoftext|>`` and ``<|endoftext|>`` inside a text, in any case and also when spelt
    with HTML entities, become the special ids.

    Attributes:
        symbols: each token as it is written in a merges file, in the order of their ids.
        merges: each line ``left right`` of the merges file, in its order.
        end: id of ``<|endoftext|>``, the largest id: models take their text feature at the largest id of a row.
    """

    kind = "byte-pair encoding, as OpenAI's"
    padding = 0
    start: int
    end: int

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
        texts = [bytes([byte]) for byte in BYTES] + [bytes([byte]) + b" " for byte in BYTES]
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
        self.special = frozenset({self.start, self.end})
        self._texts = [*texts, START_OF_TEXT.encode(), END_OF_TEXT.encode()]
        self.vocabulary_size = len(self._texts)
        self.symbols = (*ids, START_OF_TEXT, END_OF_TEXT)
        self.merges = tuple(" ".join(line.split()) for line in lines)
        self._cache: dict[str, list[int]] = {}

    @property
    def definition(self) -> str:
        return "\n".join([HEADER, *self.merges]) + "\n"

    def spelling(self, token: int) -> str:
        return self.symbols[token]

    def _decode(self, tokens: list[int]) -> str:
        """A blank follows each word."""
        return b"".join([self._texts[token] for token in tokens]).decode("utf-8", errors="replace")

    def _encode(self, text: str) -> list[int]:
        # No word has a blank in it, and a clean text has no other space. So its parts between blanks can be remembered,
        # which spares looking for the words in them.
        return self._encode_parts(text.lower().split() if _is_clean(text) else _words_of(repaired(text)))

    def _encode_parts(self, parts: list[str]) -> list[int]:
        try:
            return list(chain.from_iterable(map(self._cache.__getitem__, parts)))
        except KeyError:
            return [token for part in parts for token in self._cache.get(part) or self._encode_part(part)]

    def _encode_part(self, part: str) -> list[int]:
        """The ids of one or more whole words."""
        if part == START_OF_TEXT:
            return [self.start]
        if part == END_OF_TEXT:
            return [self.end]
        inside = WORD.findall(part)
        if len(inside) == 1:
            tokens = self.merge([_BYTE_IDS[byte] for byte in part.encode()])
        else:
            tokens = self._encode_parts(inside)
        if len(part) <= CACHED_WORD_LENGTH:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[part] = tokens
        return tokens

    def merge(self, tokens: list[int]) -> list[int]:
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


@lru_cache(maxsize=1)
def openai() -> BytePairTokenizer:
    """OpenAI's tokenizer of 49,408 ids; the first call reads its vocabulary, which may fetch it once.

    Raises:
        DownloadError: the vocabulary is nowhere to be found.
    """
    return BytePairTokenizer(openai_merges())
