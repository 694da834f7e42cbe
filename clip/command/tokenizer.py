"""``clip tokenizer``: learn a vocabulary from texts, and look into the tokenizers of models and files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clip.command import tokenize
from clip.command.output import Json, errors, print_fields, print_json
from clip.command.tokenize import Model, opened
from clip_core import files
from clip_core.errors import ClipError
from clip_core.text.bpe import BYTE_SYMBOLS, HEADER, BytePairTokenizer
from clip_core.text.bpe_training import learn, learn_byte_level
from clip_core.text.corpus import lines
from clip_core.text.definitions import BYTE_LEVEL_SPECIALS, byte_level

app = typer.Typer(no_args_is_help=True, help="Learn a vocabulary from texts, and look into tokenizers.")


class Kind(str, Enum):
    """What is learnt: a merges file for OpenAI's tokenizer, or a byte-level tokenizer.json that keeps the case."""

    OPENAI = "openai"
    BYTES = "bytes"


# Of each kind: the tokens before the first merge, and the file that is written by default.
_FIRST = {
    Kind.OPENAI: BytePairTokenizer(HEADER).vocabulary_size,
    Kind.BYTES: len(BYTE_LEVEL_SPECIALS) + len(BYTE_SYMBOLS),
}
_OUTPUT = {Kind.OPENAI: Path("merges.txt"), Kind.BYTES: Path("tokenizer.json")}


@app.command()
def train(
    corpus: Annotated[list[Path], typer.Argument(metavar="CORPUS", help="Text files with a text on each line.")],
    vocab_size: Annotated[int, typer.Option(min=1, max=10**7, help="The number of tokens.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; by default merges.txt or tokenizer.json.")
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(help="openai: for OpenAI's tokenizer, in lower case; bytes: byte-level, with case."),
    ] = Kind.OPENAI,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Learn byte pairs from texts; the same texts give the same file."""
    target, count = output or _OUTPUT[kind], vocab_size - _FIRST[kind]
    if count < 0:
        raise ClipError(
            f"--vocab-size is {vocab_size}; a vocabulary of the kind {kind.value} has {_FIRST[kind]} tokens before its "
            "first merge, so give at least as many."
        )
    files.check_target(target, corpus, force)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        texts = _texts(corpus, progress)
        merging = progress.add_task("merging", total=count, start=False)

        def told(learnt: int) -> None:
            progress.start_task(merging)
            progress.update(merging, completed=learnt)

        if kind is Kind.OPENAI:
            definition = learn(texts, count, told)
            learnt = definition.count("\n") - 1
        else:
            merges = learn_byte_level(texts, count, told)
            definition, learnt = byte_level(merges), len(merges)
    if learnt < count:
        raise ClipError(
            f"The texts have {learnt} merges, and a vocabulary of {vocab_size} tokens needs {count}; lower "
            f"--vocab-size to {_FIRST[kind] + learnt}, or give more texts."
        )
    with files.atomic_open(target, replace=force) as file:
        file.write(definition.encode())
    if json:
        print_json({"path": str(target), "kind": kind.value, "vocabulary_size": vocab_size, "merges": count})
    else:
        print(target)


app.command("encode")(tokenize.run)


@app.command()
def decode(
    tokens: Annotated[list[int], typer.Argument(metavar="TOKEN", min=0, help="Token ids.")],
    model: Model = None,
    json: Json = False,
) -> None:
    """Print the text of token ids."""
    text = opened(model)[0].decode(tokens)
    if json:
        print_json({"tokens": tokens, "text": text})
    else:
        print(text)


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", help="A model, or a tokenizer's file; by default OpenAI's tokenizer."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a tokenizer is, and what it puts around a text."""
    tokenizer, context_length = opened(model)
    around = {
        name: None if token is None else {"id": token, "token": tokenizer.spelling(token)}
        for name, token in (("start", tokenizer.start), ("end", tokenizer.end), ("padding", tokenizer.padding))
    }
    found = {
        "kind": tokenizer.kind,
        "vocabulary_size": tokenizer.vocabulary_size,
        "context_length": context_length,
        "sha256": hashlib.sha256(tokenizer.definition.encode()).hexdigest(),
    }
    if json:
        print_json(found | around)
    else:
        texts = {name: "none" if token is None else f"{token['id']} {token['token']}" for name, token in around.items()}
        print_fields(found | {"context_length": context_length or "any"} | texts)


def _texts(corpus: list[Path], progress: Progress) -> Iterator[str]:
    """All lines of the files, while a bar moves."""
    total = sum(os.path.getsize(path) for path in corpus if os.path.isfile(path))
    reading = progress.add_task("reading", total=total)
    for path in corpus:
        for line in lines(path):
            progress.advance(reading, len(line.encode()))
            yield line
