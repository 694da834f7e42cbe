"""The files that Hugging Face keeps a tokenizer in: made from what defines it, and read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from clip_core import files
from clip_core.buffers import shown
from clip_core.errors import CheckpointError, TextError
from clip_core.text.bpe import END_OF_TEXT, END_OF_WORD, START_OF_TEXT, BytePairTokenizer
from clip_core.text.definitions import cleaned
from clip_core.text.loading import MAXIMUM_BYTES, misfit, read_definition, tokenizer_from
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import TextTower

MAX_BYTES = 16 << 20  # OpenAI's tokenizer.json has 2 MB
HEADER = "#version: 0.2"
VOCABULARY = ("vocab.json", "merges.txt")
"""The files that tell it, where there is no tokenizer.json."""
OPENAI_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
"""Of OpenAI's merges, one a line, without the header."""


def texts(definition: str, text: TextTower) -> dict[str, str]:
    """File name -> its content, for the tokenizer of ``definition``, a merges file or a tokenizer.json.

    Raises:
        TextError: it defines none, or none for a vocabulary of the size of the tower's.
        ClipError: the library for the latter is not installed.
    """
    tokenizer = tokenizer_from(definition)
    if not isinstance(tokenizer, BytePairTokenizer):
        return _texts_of_json(tokenizer, text)
    merges, symbols = definition, tokenizer.symbols
    # Tokens behind the end of text were added to the model, and no text becomes them.
    size = text.vocabulary_size if text.required_token is None else text.required_token + 1
    if len(symbols) != size:
        raise TextError(f"The vocabulary has {len(symbols)} tokens, the weights are for {size}; give the model's.")
    tokens = {
        "bos_token": START_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,  # a model takes its feature at the first one
        "unk_token": END_OF_TEXT,
    }
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": text.context_length, **tokens}
    vocabulary = {symbol: token for token, symbol in enumerate(symbols)}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join([HEADER, *_lines(merges)]) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(tokens, indent=2) + "\n",
    }


def _texts_of_json(tokenizer: Tokenizer, text: TextTower) -> dict[str, str]:
    if fault := misfit(tokenizer, text):
        raise TextError(f"The model has a tokenizer {fault}; give the model's.")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.context_length,
        "pad_token": tokenizer.spelling(tokenizer.padding),
    }
    if tokenizer.end is not None:
        settings["eos_token"] = tokenizer.spelling(tokenizer.end)
    return {"tokenizer.json": tokenizer.definition, "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}


def read(folder: Path, cleaning: str | None = None) -> str | None:
    """What defines the tokenizer in ``folder``: the merges of CLIP's kind, a tokenizer.json; None where there is none.

    Args:
        cleaning: one of `clip_core.text.definitions.CLEANINGS`, done before a tokenizer that is not of CLIP's kind.

    Raises:
        CheckpointError: it cannot be read, or is of CLIP's kind with ids in another order, or more of them.
    """
    try:
        if (other := _of_another_kind(folder)) is not None:
            definition = read_definition(other)
            return definition if cleaning is None else cleaned(definition, cleaning)
        found = _vocabulary(folder)
    except TextError as error:
        raise CheckpointError(f"the tokenizer beside it cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the tokenizer beside it cannot be read: {error!r:.200}.") from error
    if found is None:
        return None
    name, ids, lines = found
    merges = "\n".join([HEADER, *lines]) + "\n"
    try:
        expected = BytePairTokenizer(merges).symbols
    except TextError as error:
        raise CheckpointError(f"the tokenizer beside it is not one of CLIP's: in {name}, {error}") from error
    for token, symbol in enumerate(expected):
        if ids.get(symbol) != token:
            what = f"{name} gives {symbol!r} the id {shown(ids.get(symbol))}"
            raise CheckpointError(
                f"the tokenizer beside it is not one of CLIP's: {what}; in CLIP's order of bytes, merges, start and "
                f"end it has {token}."
            )
    for symbol in ids.keys() - set(expected):
        raise CheckpointError(
            f"the tokenizer beside it adds the token {symbol!r:.80} with the id {shown(ids[symbol])} to those of its "
            "merges, and here it would be cut into pieces; if no text needs it, take it out of the tokenizer's files."
        )
    return merges


def is_openai(merges: str) -> bool:
    """Whether they are OpenAI's."""
    return hashlib.sha256("\n".join(_lines(merges)).encode()).hexdigest() == OPENAI_SHA256


def equal(definition: str | None, other: str | None) -> bool:
    """Whether both define the same tokenizer, whatever the headers of their merges; None is OpenAI's."""
    first, second = (
        None if text is None or is_openai(text) else _lines(text) or [text] for text in (definition, other)
    )
    return first == second


def _of_another_kind(folder: Path) -> Path | None:
    """The file of a tokenizer that is not of CLIP's kind, which ends words by a symbol of its own."""
    path = folder / "tokenizer.json"
    if path.exists():
        model = json.loads(files.read_regular(path, MAXIMUM_BYTES))["model"]
        return None if model["type"] == "BPE" and model.get("end_of_word_suffix") == END_OF_WORD else path
    of_clip = all((folder / name).exists() for name in VOCABULARY)
    return None if of_clip or not (folder / "vocab.txt").exists() else folder / "vocab.txt"


def _vocabulary(folder: Path) -> tuple[str, dict[str, Any], list[str]] | None:
    """The name of the file, symbol -> id, and the merges, one a text."""
    if (folder / "tokenizer.json").exists():  # which transformers prefers
        content = json.loads(files.read_regular(folder / "tokenizer.json", MAX_BYTES))
        model = content["model"]
        lines = [merge if type(merge) is str else " ".join(merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        return "tokenizer.json", model["vocab"] | added | _added(folder), lines
    if all((folder / name).exists() for name in VOCABULARY):
        ids = json.loads(files.read_regular(folder / "vocab.json", MAX_BYTES))
        merges = files.read_regular(folder / "merges.txt", MAX_BYTES).decode("utf-8")
        return "vocab.json", ids | _added(folder), _lines(merges)
    return None


def _added(folder: Path) -> dict[str, Any]:
    """The tokens that the files beside a vocabulary add to it, and their ids."""
    found: dict[str, Any] = {}
    if (folder / "added_tokens.json").exists():
        found |= json.loads(files.read_regular(folder / "added_tokens.json", MAX_BYTES))
    if (folder / "tokenizer_config.json").exists():
        settings = json.loads(files.read_regular(folder / "tokenizer_config.json", MAX_BYTES))
        decoder = settings.get("added_tokens_decoder", {})
        found |= {token["content"]: int(number) for number, token in decoder.items()}
    return found


def _lines(merges: str) -> list[str]:
    return merges.rstrip().split("\n")[1:]
