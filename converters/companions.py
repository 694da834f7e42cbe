"""The files that the library of a layout wants beside the weights (`clip_core.layouts.parts.Folder`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.layouts import LAYOUTS
from clip_core.layouts.configuration import ASSUMED
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.text import vocabulary
from converters import tokenizer_files

# What the libraries read in place of a file that is written here.
_INSTEAD = ("processor_config.json", "tokenizer.json", "added_tokens.json")


def beside(
    path: Path, architecture: Architecture, assumed: Sequence[str], definition: str | None, layout: str
) -> dict[Path, str]:
    """The files, and their text, that Hugging Face or open_clip needs to load ``path``, if they look for its name.

    Args:
        assumed: the fields of the architecture that nobody has stated, which the configuration names, as it has to give
            them a value.
        definition: of the tokenizer; None: OpenAI's, which is found or fetched, if that is of the model's size. The
            files of a tokenizer that is neither given nor OpenAI's are left out.

    Raises:
        ClipError: a file that is there would be read instead, or the vocabulary is not the model's.
        DownloadError: OpenAI's vocabulary is nowhere to be found.
    """
    folder = LAYOUTS[layout].folder
    if folder is None or path.name not in folder.weights:
        return {}
    if folder.needs_tokenizer and definition is None:
        if architecture.text.required_token == OPENAI_VOCABULARY_SIZE - 1:
            definition = vocabulary.openai_merges()
        else:
            _refuse_tokenizer(path)
    contents = folder.describe(architecture, definition is not None)
    if assumed:
        next(iter(contents.values()))[ASSUMED] = list(assumed)
    texts = {name: _dump(content) for name, content in contents.items()}
    if definition is not None:
        texts |= tokenizer_files.texts(definition, architecture.text)
    preferred = folder.weights[: folder.weights.index(path.name)]
    for other in (*preferred, *(f"{weights}.index.json" for weights in preferred), *_INSTEAD):
        if other not in texts and path.with_name(other).exists():
            raise ClipError(
                f"{path.with_name(other)} would be read instead of what is written here; remove it, or choose another "
                "folder."
            )
    return {path.with_name(name): text for name, text in texts.items()}


def _refuse_tokenizer(path: Path) -> None:
    """Refuse to write a model whose vocabulary nobody knows beside the tokenizer of another one."""
    for name in tokenizer_files.VOCABULARY:
        if path.with_name(name).exists():
            raise ClipError(
                f"{path.with_name(name)} would be taken for the vocabulary of this model, which says nothing of its "
                "own; remove it, or choose another folder."
            )


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
