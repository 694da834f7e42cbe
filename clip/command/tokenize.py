"""``clip tokenize``: the tokens of texts."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

import converters
from clip.api import weights_file
from clip.command.output import Json, print_json
from clip_core.models import OPENAI_CONTEXT_LENGTH
from clip_core.text.bpe import openai
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer

MAXIMUM_CONTEXT = 1 << 17  # no text that a tokenizer accepts has more tokens


def run(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="The texts.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Use this model's vocabulary; by default OpenAI's.")
    ] = None,
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
    if model is None:
        encoder: Tokenizer = openai()
        longest = OPENAI_CONTEXT_LENGTH
    else:
        file = converters.read(weights_file(model)[0])
        encoder = tokenizer_of(model, file.architecture, file.vocabulary)
        longest = file.architecture.text.context_length
    tokens = encoder.tokenize(texts, context_length or longest, truncate)
    rows = [row[: int(np.argmax(row)) + 1].tolist() for row in tokens]
    if json:
        print_json([{"text": text, "tokens": row} for text, row in zip(texts, rows)])
    else:
        for row in rows:
            print(*row)
