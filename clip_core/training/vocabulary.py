"""The vocabulary of a new model: OpenAI's, that of a file, or one learnt from the captions that it is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from clip_core.data.example import Source
from clip_core.errors import ClipError, TextError
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.text.bpe import HEADER, BytePairTokenizer
from clip_core.text.bpe_training import learn, padded
from clip_core.text.loading import misfit, read_tokenizer, tokenizer_from
from clip_core.text.tokenizer import Tokenizer, require_text
from clip_core.text.vocabulary import are_openais
from clip_core.towers.parts import TextTower

CAPTIONS = 500_000
"""That a vocabulary is learnt from at most, the first ones of the data: about 20 seconds of work."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a model, as the text that its file carries; None stands for OpenAI's."""

    definition: str | None
    learnt: int = 0  # merges, from the captions of the data
    unused: int = 0  # tokens for which the captions have no merges


def vocabulary_of(text: TextTower, file: str | None, source: Source) -> Vocabulary:
    """The vocabulary for a text tower: of a file, or with as many merges as the tower has tokens for.

    Args:
        text: the tower; a vocabulary of OpenAI's size is OpenAI's unless there is a ``file``.
        file: of a tokenizer (`clip_core.text.loading.read_tokenizer`); of more merges the first ones are taken.
        source: whose captions a vocabulary is learnt from otherwise.

    Raises:
        ClipError: the file cannot be read or does not fit the tower, no vocabulary is as small as the tower's, or the
            captions are not known before the data is fetched, or have too few merges.
    """
    if file is not None:
        return Vocabulary(_of_file(file, text))
    size, smallest = text.vocabulary_size, BytePairTokenizer(HEADER).vocabulary_size
    if text.required_token is None or text.required_token < min(smallest, size) - 1:
        raise ClipError(
            "The architecture's text tower has no vocabulary as OpenAI's, whose last token ends a text; set "
            "model.vocabulary to a tokenizer.json that fits it, such as clip tokenizer train makes with --kind bytes."
        )
    size = text.required_token + 1  # tokens behind it were added to the model, and no text becomes them
    if size < smallest:
        raise ClipError(
            f"The architecture's vocabulary has {size} tokens; every vocabulary has {smallest} before its first merge, "
            "so give at least as many."
        )
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


def kept_vocabulary(definition: str) -> Vocabulary:
    """The vocabulary that a checkpoint keeps as the text that defines a tokenizer.

    Raises:
        TextError: it is none.
    """
    tokenizer = tokenizer_from(definition)
    openai = isinstance(tokenizer, BytePairTokenizer) and are_openais(tokenizer.merges)
    return Vocabulary(None if openai else definition)


def _of_file(file: str, text: TextTower) -> str:
    try:
        tokenizer = read_tokenizer(file)
    except TextError as error:
        raise ClipError(f"model.vocabulary cannot be used: {error}") from error
    if isinstance(tokenizer, BytePairTokenizer) and text.required_token is not None:
        count = text.required_token + 1 - BytePairTokenizer(HEADER).vocabulary_size
        if len(tokenizer.merges) < count:
            raise ClipError(
                f"model.vocabulary is {file}, which has {len(tokenizer.merges)} merges, and the architecture's "
                f"vocabulary needs {count}; lower its vocabulary_size, or give another file."
            )
        tokenizer = BytePairTokenizer("\n".join([HEADER, *tokenizer.merges[:count]]))
    if fault := misfit(tokenizer, text):
        raise ClipError(f"model.vocabulary is {file}, a tokenizer {fault}; {_remedy(tokenizer, text)}.")
    return tokenizer.definition


def _remedy(tokenizer: Tokenizer, text: TextTower) -> str:
    """How a tokenizer and a text tower that do not fit come together."""
    larger = tokenizer.vocabulary_size > text.vocabulary_size
    settings = {
        "vocabulary_size": (larger or text.required_token is None, text.vocabulary_size, tokenizer.vocabulary_size),
        "end_of_text": (text.required_token is not None, text.required_token, tokenizer.end),
        "padding": (text.padding_token is not None, text.padding_token, tokenizer.padding),
    }
    keys = [
        f"model.architecture.text.{key} to {wanted}"
        for key, (counts, found, wanted) in settings.items()
        if counts and found != wanted and wanted is not None
    ]
    other = "give the one that the tower is for"
    return f"set {' and '.join(keys)}, or {other}" if keys else other


def _usable(captions: Iterable[str]) -> Iterator[str]:
    """Without those that are no texts: they are faults of their examples."""
    for caption in captions:
        with suppress(TextError):
            require_text(caption)
            yield caption
