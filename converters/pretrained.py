"""Towers that were trained before: found by their path or in another library's cache, read, and fitted to a model.

Nothing is fetched here: a file that is not there is a fault, which says where it was looked for and how to get it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core import naming
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import bert, torchvision
from clip_core.layouts.configuration import as_object, read_json
from clip_core.naming import Weights
from clip_core.parameters import HEAD, Place
from clip_core.towers.parts import Tower
from converters.reading import find, tensors_of

TOKENIZERS = ("tokenizer.json", "vocab.txt")
"""The files beside a text tower's weights that its tokenizer is read from, preferred first."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What a network does not bring along: a picture's size and colours, and how many tokens a text may have.
_OF_THE_MODEL = ("resolution", "pixels", "momentum", "context_length")


def with_tower(architecture: Architecture, weights: Weights, place: Place, name: str) -> Weights:
    """``weights`` with those of one tower, but for its head, taken from a file.

    Args:
        weights: the initial ones of ``architecture``, by their canonical names.
        place: of the tower.
        name: a file or folder, or a name that `located` finds in a cache.

    Raises:
        ClipError: there is no such file.
        CheckpointError: it cannot be read, or holds another tower than the architecture's.
    """
    path = located(place, name)
    tensors, digest = tensors_of(path)
    beginning = re.fullmatch(r".+-([0-9a-f]{8})\.pth", path.name)
    if name in torchvision.PUBLISHED and beginning and not digest.startswith(beginning[1]):
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not begin with {beginning[1]}; fetch it again.")
    expected = architecture.towers[place]
    try:
        tower, found, told = _image(tensors) if place == "image" else _text(path, tensors)
        _check_fields(place, tower, expected, told)
    except ClipError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if place == "text":
        found["positional_embedding"] = found["positional_embedding"][: architecture.text.context_length]
    prefix = architecture.prefix(place)
    mounted = {prefix + own: array for own, array in found.items()}
    kept = {
        parameter.name
        for parameter in naming.parameters(architecture)
        if parameter.tower != place
        or parameter.name.startswith(prefix + HEAD)
        or parameter.kind == "counter"  # which older files leave out
    }
    result = {own: array for own, array in weights.items() if own in kept} | mounted
    naming.check(architecture, result, str(path))
    return {own: result[own].astype(array.dtype) for own, array in weights.items()}


def located(place: Place, name: str) -> Path:
    """The weights file that a recipe's ``model.pretrained`` names.

    Args:
        name: a file, a folder, ``torchvision/`` and the name of an image network in PyTorch's cache, or the name of a
            text model in Hugging Face's.

    Raises:
        ClipError: there is none, with where it was looked for and how to get it.
    """
    if os.path.exists(name):
        return find(name)
    key = f"model.pretrained.{place}"
    if place == "image":
        if name not in torchvision.PUBLISHED:
            known = ", ".join(torchvision.PUBLISHED)
            raise ClipError(f"{key} is {name!r:.200}; there is no such file, and it is none of {known}.")
        file = torchvision.PUBLISHED[name]
        path = _torch_cache() / file
        if not path.exists():
            raise ClipError(
                f"{key} is {name}, whose file is not in PyTorch's cache as {path}; fetch {torchvision.ADDRESS}{file} "
                "to that place, or give the path of the file."
            )
        return path
    if not _NAME.fullmatch(name):
        raise ClipError(f"{key} is {name!r:.200}; there is no such file, and it is no name of a model.")
    folder = _hugging_face_cache() / f"models--{name.replace('/', '--')}"
    snapshot = _snapshot(folder)
    if snapshot is None:
        raise ClipError(
            f"{key} is {name}, which is neither a file nor in Hugging Face's cache as {folder}; fetch it with "
            f"hf download {name}, or give the path of a folder that has it."
        )
    return find(snapshot)


def tokenizer_beside(name: str) -> str | None:
    """The file of the tokenizer of a text tower that `located` finds; None: there is none."""
    folder = located("text", name).parent
    return next((str(folder / file) for file in TOKENIZERS if (folder / file).exists()), None)


def _image(tensors: Weights) -> tuple[Tower, Weights, bool]:
    """The tower, its weights, and whether all of its fields are told."""
    return *torchvision.image_tower(tensors), True


def _text(path: Path, tensors: Weights) -> tuple[Tower, Weights, bool]:
    file = path.with_name("config.json")
    if not file.exists():
        return *bert.text_tower(tensors), False
    try:
        configuration: Mapping[str, Any] = as_object(read_json(file), "it")
    except ClipError as error:
        raise CheckpointError(f"{file.name} beside it cannot be used: {error}") from error
    return *bert.text_tower(tensors, configuration), True


def _check_fields(place: Place, found: Tower, expected: Tower, told: bool) -> None:
    """Refuse a tower with other numbers than the architecture's.

    Args:
        told: whether those that shapes do not tell are known, too.
    """
    if found.kind != expected.kind:
        raise CheckpointError(
            f"it is a {found.title}, and the recipe's {place} tower is a {expected.title}; change one of them."
        )
    passed_over = _OF_THE_MODEL if told else (*_OF_THE_MODEL, *found.untold)
    other = [
        f"{name} {value} rather than {getattr(expected, name)}"
        for name, value in vars(found).items()
        if name not in passed_over and value != getattr(expected, name)
    ]
    if other:
        raise CheckpointError(
            f"it is another tower than model.architecture.{place}, {', '.join(other)}; change the recipe."
        )


def _torch_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def _hugging_face_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _snapshot(folder: Path) -> Path | None:
    """The folder of a model's files in Hugging Face's cache: of its branch ``main``, else the only one; None: none."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return None
    main = folder / "refs" / "main"
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if main.is_file():
        revision = main.read_text(encoding="utf-8", errors="replace").strip()
        return next((path for path in found if path.name == revision), None)
    return found[0] if len(found) == 1 else None
