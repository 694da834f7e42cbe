"""``clip tokenize``: the tokens of texts."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

import converters
from clip.api import weights_file
from clip.command.output import Json, print_json
from clip_core import tokenizer
from clip_core.architecture import OPENAI_CONTEXT_LENGTH


def run(
    texts: Annotated[list[str], typer.Argument(help="The texts.")],
    model: Annotated[str | None, typer.Option(help="Use this model's vocabulary; by default OpenAI's.")] = None,
    context_length: Annotated[int, typer.Option(min=2, help="Tokens a text may have, start and end included.")] = (
        OPENAI_CONTEXT_LENGTH
    ),
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    json: Json = False,
) -> None:
    """Print the tokens of each text, start and end included, without the padding."""
    vocabulary = None if model is None else converters.read(weights_file(model)[0]).vocabulary
    encoder = tokenizer.openai() if vocabulary is None else tokenizer.Tokenizer(vocabulary)
    rows = [row[: int(np.argmax(row)) + 1].tolist() for row in encoder.tokenize(texts, context_length, truncate)]
    if json:
        print_json([{"text": text, "tokens": row} for text, row in zip(texts, rows)])
    else:
        for row in rows:
            print(*row)
