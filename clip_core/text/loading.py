"""Tokenizers from files, and from the texts that models carry."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from clip_core.architecture import Architecture
from clip_core.errors import ClipError, TextError
from clip_core.files import read_regular
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.text import definitions
from clip_core.text.bpe import BytePairTokenizer, openai
from clip_core.text.json_tokenizer import JsonTokenizer, parsed
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import TextTower

MAXIMUM_BYTES = 64 << 20
"""Of a tokenizer's file: Gemma's tokenizer.json, which SigLIP 2 uses, has 34 MB."""


def tokenizer_from(definition: str) -> Tokenizer:
    """The tokenizer that a text defines: a merges file, or else a tokenizer.json.

    Raises:
        TextError: it is neither.
        ClipError: the library for the latter is not installed.
    """
    return JsonTokenizer(definition) if is_json(definition) else BytePairTokenizer(definition)


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a file that `read_definition` reads.

    Raises:
        ClipError: the file cannot be read, or is none of these, or the library that it needs is not installed.
    """
    definition = read_definition(path)
    try:
        return tokenizer_from(definition)
    except TextError as error:
        raise TextError(f"{os.fspath(path)} is no tokenizer: {error}") from error


def read_definition(path: str | os.PathLike[str]) -> str:
    """The text that defines a tokenizer, of a merges file, a tokenizer.json or a vocab.txt.

    A file may be compressed by gzip. What only the tokenizer_config.json beside the last two says becomes a part of it.

    Raises:
        ClipError: the file cannot be read, or is none of these.
    """
    path = Path(path)
    data = read_regular(path, MAXIMUM_BYTES)
    try:
        if data[:2] == b"\x1f\x8b":
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            data = stream.decompress(data, MAXIMUM_BYTES)
            if not stream.eof:
                raise zlib.error(f"it is cut short, or decompresses to more than {MAXIMUM_BYTES} bytes")
        text = data.decode()
        if is_json(text):
            return definitions.completed(parsed(text), _settings(path))
        if "#version" in text.partition("\n")[0]:
            return text
        if "[UNK]" in text.split():
            return definitions.wordpiece(text, _settings(path))
        raise TextError(f"it starts with {text[:40]!r}; give a merges file, a tokenizer.json or a vocab.txt.")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, zlib.error, TextError) as error:
        reason = str(error) if isinstance(error, UnicodeDecodeError | zlib.error | TextError) else f"{error!r:.200}."
        raise TextError(f"{path} is no tokenizer: {reason}") from error


def tokenizer_of(name: str, architecture: Architecture, vocabulary: str | None) -> Tokenizer:
    """The tokenizer for a model: the one that its file carries, else OpenAI's.

    Args:
        name: what the sentence calls the model.
        vocabulary: the text that defines it, for `tokenizer_from`.

    Raises:
        TextError: the file carries none and the model was not trained with OpenAI's, or it carries one that is not
            the model's.
        ClipError: the library that it needs is not installed.
        DownloadError: it is OpenAI's, and that cannot be had.
    """
    if vocabulary is None:
        if architecture.text.required_token != OPENAI_VOCABULARY_SIZE - 1:
            raise TextError(
                f"{name} has a vocabulary of {_size(architecture.text)} tokens and does not carry it; "
                "clip convert FILE TARGET --like ORIGINAL takes it from the model that this one was fine-tuned from."
            )
        return openai()
    try:
        carried = tokenizer_from(vocabulary)
    except TextError as error:
        raise TextError(f"The tokenizer that {name} carries cannot be read: {error}") from error
    if fault := misfit(carried, architecture.text):
        raise TextError(f"{name} carries a tokenizer {fault}; convert the original file again.")
    return carried


def misfit(tokenizer: Tokenizer, text: TextTower) -> str | None:
    """Why a text tower cannot read what a tokenizer gives, as the end of a sentence; None: it can."""
    size = tokenizer.vocabulary_size
    if text.required_token is None:
        if size != text.vocabulary_size:
            return f"of {size} tokens, and its text tower is for {text.vocabulary_size}"
    elif tokenizer.end != text.required_token or size > text.vocabulary_size:
        return (
            f"of {size} tokens that ends texts with {tokenizer.end}, and its text tower is for {text.vocabulary_size} "
            f"and looks for {text.required_token}"
        )
    if text.padding_token not in (None, tokenizer.padding):
        return f"that fills texts up with {tokenizer.padding}, and its text tower looks for {text.padding_token}"
    return None


def _size(text: TextTower) -> int:
    """Tokens of a tower's vocabulary; those behind its end were added to the model, and no text becomes them."""
    return text.vocabulary_size if text.required_token is None else text.required_token + 1


def is_json(definition: str) -> bool:
    """Whether a text that defines a tokenizer is a tokenizer.json, and not merges."""
    return definition.lstrip().startswith("{")


def _settings(path: Path) -> dict[str, Any]:
    """What the tokenizer_config.json beside ``path`` says, and the model_type of the config.json."""
    model_type = _beside(path, "config.json").get("model_type")
    return {"model_type": model_type} | _beside(path, "tokenizer_config.json")


def _beside(path: Path, name: str) -> dict[str, Any]:
    """The JSON object of a file beside ``path``; empty where there is none.

    Raises:
        TextError: it is none.
    """
    beside = path.with_name(name)
    if not beside.exists():
        return {}
    try:
        content = json.loads(read_regular(beside, MAXIMUM_BYTES))
    except (ClipError, ValueError, RecursionError) as error:
        raise TextError(f"{name} beside it cannot be read: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise TextError(f"{name} beside it is not a JSON object; download it again.")
    return content
