"""The vocabulary of a new model: OpenAI's, that of a file, or one learnt from the captions that it is trained on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from clip_core.data.source import Source
from clip_core.errors import ClipError, TextError
from clip_core.files import read_regular
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.text.bpe import BytePairTokenizer, require_text
from clip_core.text.bpe_training import HEADER, learn, padded
from clip_core.text.vocabulary import are_openais
from clip_core.towers.text_transformer import TextTransformer

CAPTIONS = 500_000
"""That a vocabulary is learnt from at most, the first ones of the data: about 20 seconds of work."""

MAXIMUM_BYTES = 16 << 20  # of a merges file, compressed or not


@dataclass(frozen=True)
class Vocabulary:
    """The merges of a model; None stands for OpenAI's."""

    merges: str | None
    learnt: int = 0  # of them, from the captions of the data
    unused: int = 0  # tokens for which the captions have no merges


def vocabulary_of(text: TextTransformer, file: str | None, source: Source) -> Vocabulary:
    """The vocabulary for a text tower: as many merges as it has tokens for.

    Args:
        text: the tower; a vocabulary of OpenAI's size is OpenAI's unless there is a ``file``.
        file: a merges file, which may be compressed by gzip; of more merges the first ones are taken.
        source: whose captions a vocabulary is learnt from otherwise.

    Raises:
        ClipError: the file cannot be read or has too few merges, no vocabulary is as small as the tower's, or the
            captions are not known before the data is fetched, or have too few merges.
    """
    size, smallest = text.end_of_text + 1, BytePairTokenizer(HEADER).vocabulary_size
    if size < smallest:
        raise ClipError(
            f"The architecture's vocabulary has {size} tokens; every vocabulary has {smallest} before its first merge, "
            "so give at least as many."
        )
    if file is not None:
        return Vocabulary(_first_merges(file, size - smallest))
    if size == OPENAI_VOCABULARY_SIZE:
        return Vocabulary(None)
    if size == smallest:
        return Vocabulary(HEADER + "\n")
    count = size - smallest
    merges = learn(_usable(islice(source.captions(), CAPTIONS)), count)
    learnt = len(merges.splitlines()) - 1
    try:
        return Vocabulary(padded(merges, count), learnt, count - learnt)
    except TextError as error:
        raise ClipError(
            f"The captions have {learnt} merges, and a vocabulary of {size} tokens needs {count}; lower its "
            f"vocabulary_size in model.architecture to {smallest + learnt}, or set model.vocabulary to a merges file."
        ) from error


def kept_vocabulary(merges: str) -> Vocabulary:
    """The vocabulary that a checkpoint keeps as the text of a merges file.

    Raises:
        TextError: it is none.
    """
    return Vocabulary(None if are_openais(BytePairTokenizer(merges).merges) else merges)


def _first_merges(file: str, count: int) -> str:
    data = read_regular(file, MAXIMUM_BYTES)
    try:
        if data[:2] == b"\x1f\x8b":
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            data = stream.decompress(data, MAXIMUM_BYTES)
            if not stream.eof:
                raise zlib.error(f"it is cut short, or decompresses to more than {MAXIMUM_BYTES} bytes")
        lines = data.decode().splitlines()[: count + 1]
        merges = "\n".join(lines) + "\n"
        BytePairTokenizer(merges)
    except (zlib.error, UnicodeDecodeError, TextError) as error:
        raise ClipError(f"model.vocabulary is {file}, which is no merges file: {error}") from error
    if len(lines) <= count:
        raise ClipError(
            f"model.vocabulary is {file}, which has {len(lines) - 1} merges, and the architecture's vocabulary needs "
            f"{count}; lower its vocabulary_size, or give another file."
        )
    return merges


def _usable(captions: Iterable[str]) -> Iterator[str]:
    """Without those that are no texts: they are faults of their examples."""
    for caption in captions:
        with suppress(TextError):
            require_text(caption)
            yield caption
