"""``clip tokenize``, also called ``clip tokenizer encode``: the tokens of texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import converters
from clip.api import weights_file
from clip.command.output import Json, print_json
from clip_core.errors import ClipError
from clip_core.models import OPENAI_CONTEXT_LENGTH
from clip_core.text.bpe import openai
from clip_core.text.loading import read_tokenizer, tokenizer_of
from clip_core.text.tokenizer import Tokenizer

MAXIMUM_CONTEXT = 1 << 17  # no text that a tokenizer accepts has more tokens
TOKENIZERS = (".txt", ".gz", ".json")  # what their files end in, which models' files do not

Model = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Use the tokenizer of this model or file; by default OpenAI's."),
]


def run(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="The texts.")],
    model: Model = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=MAXIMUM_CONTEXT,
            help="Tokens a text may have, start and end included; by default the model's, else 77.",
        ),
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    json: Json = False,
) -> None:
    """Print the tokens of each text, start and end included, without the padding."""
    if model is None and Path(texts[0]).suffix.lower() in TOKENIZERS and os.path.isfile(texts[0]):
        raise ClipError(f"{texts[0]} is a file; for its tokenizer give --model {texts[0]}, and texts alone besides.")
    tokenizer, longest = opened(model)
    length = context_length or longest or OPENAI_CONTEXT_LENGTH
    rows = [tokenizer.row(text, length, truncate, f"text {index}") for index, text in enumerate(texts)]
    if json:
        print_json([{"text": text, "tokens": row} for text, row in zip(texts, rows)])
    else:
        for row in rows:
            print(*row)


def opened(name: str | None) -> tuple[Tokenizer, int | None]:
    """The tokenizer of a model or a file, by default OpenAI's, and the context length of a model.

    Raises:
        ClipError: it cannot be read, or the model does not carry its tokenizer.
    """
    if name is None:
        return openai(), OPENAI_CONTEXT_LENGTH
    if Path(name).suffix.lower() in TOKENIZERS:
        return read_tokenizer(name), None
    model = converters.read(weights_file(name)[0])
    return tokenizer_of(name, model.architecture, model.vocabulary), model.architecture.text.context_length
