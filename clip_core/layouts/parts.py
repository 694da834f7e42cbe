"""What layouts are made of: the way from a project's names and axes to the canonical ones and back, and what it says.

A layout is a spelling of the names, the tensors that are stored transposed, axes of length 1 that are added, and
tensors that are stored in parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.architecture import Architecture, infer, infer_unchecked
from clip_core.buffers import Tensor
from clip_core.errors import CheckpointError
from clip_core.naming import Weights, parameters
from clip_core.parameters import Parameter
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS

_BLOCK = re.compile(r"(.+\.resblocks)\.([0-9]+)\.(.+)")
_ATTENTION_INPUT = re.compile(r"(.+\.attn\.in_proj)_(weight|bias)")


@dataclass(frozen=True)
class Word:
    """What somebody says of a model."""

    source: str  # who says it, in the middle of a sentence
    fields: Mapping[str, Any]  # by tower and name, such as ``text.heads``


@dataclass(frozen=True)
class Folder:
    """What a project's library looks for in a folder.

    ``describe`` takes the architecture and whether tokenizer files are written, and gives the content of each JSON file
    by its name, that of the configuration first.
    """

    weights: tuple[str, ...]  # the names of a weights file, preferred first
    describe: Callable[[Architecture, bool], dict[str, dict[str, Any]]]
    needs_tokenizer: bool  # whether the library finds no tokenizer elsewhere, OpenAI's included


def same(name: str) -> str:
    """The name itself."""
    return name


def whole(weights: Weights) -> Weights:
    """The weights themselves, none of which is in parts."""
    return weights


def undivided(name: str, array: np.ndarray, architecture: Architecture) -> list[tuple[str, np.ndarray]]:
    """The tensor itself."""
    return [(name, array)]


def silent(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    """What a project without configuration files says: nothing."""
    return []


@dataclass(frozen=True)
class Layout:
    """How one project stores a CLIP.

    Every other field has a value that leaves things as they are, so that a project states what it does differently.
    """

    name: str
    # Whether the names, without the prefix that all share, and the shapes are this project's.
    recognises: Callable[[Mapping[str, np.ndarray]], bool]
    spell: Callable[[str], str] = same  # canonical name -> theirs
    canonical: Callable[[str], str] = same  # their name -> canonical; an unknown name stays as it is
    towers: tuple[tuple[str, str], ...] | None = None  # pairs of kinds, image and text; None: all
    transposed: tuple[str, ...] = ()  # kinds of parameters, or names
    added_axes: Mapping[str, int] = field(default_factory=dict)  # canonical name -> axes of length 1 put in front
    # Those of the logit scale and the logit bias, where they depend on the model.
    scalar_axes: Callable[[Architecture], int] = lambda architecture: 0
    join: Callable[[Weights], Weights] = whole  # after renaming: tensors that are stored in parts become whole
    # Before renaming: the reverse, for a model.
    split: Callable[[str, np.ndarray, Architecture], Iterable[tuple[str, np.ndarray]]] = undivided
    prefix: str = ""  # of all names in a file
    other_marks: tuple[tuple[str, str], ...] = ()  # such as `marks` gives, in spellings that are only read
    # What the configurations beside a weights file say of the model in it. Each project's are asked, whatever the
    # layout of the weights, whose name is given with their path and the architecture that their shapes tell.
    words: Callable[[Path, str, Architecture], list[Word]] = silent
    # Whether the tokenizer files beside a weights file, if there are any, are of its model, by path and layout.
    has_tokenizer: Callable[[Path, str], bool] = lambda path, layout: False
    # What is done to a text before that tokenizer gets it, by the path (`clip_core.text.definitions.CLEANINGS`).
    cleaning: Callable[[Path], str | None] = lambda path: None
    folder: Folder | None = None

    def holds(self, architecture: Architecture) -> bool:
        """Whether it has names for these towers."""
        return self.towers is None or (architecture.image.kind, architecture.text.kind) in self.towers

    def marks(self) -> Iterator[tuple[str, str]]:
        """The names of two parameters, of the text and of the image tower, by which a model is found in a file."""
        for image in IMAGE_TOWERS.values():
            for text in TEXT_TOWERS.values():
                if self.towers is None or (image.kind, text.kind) in self.towers:
                    yield self.spell(("" if text.at_root else "text.") + text.mark), self.spell("visual." + image.mark)
        yield from self.other_marks

    def to_canonical(self, weights: Mapping[str, np.ndarray]) -> Weights:
        """``weights`` of a file under the canonical names and with the canonical number of axes.

        The axis order is still the file's: see `reorder`.

        Raises:
            CheckpointError: two names become one.
        """
        canonical: Weights = {}
        for spelled, array in weights.items():
            name = self.canonical(spelled)
            if name in canonical:
                raise CheckpointError(f"{spelled} and another name both stand for {name}; remove one.")
            axes = self.added_axes.get(name, 0)
            if name in ("logit_scale", "logit_bias") and array.shape == (1,):  # some of open_clip's, and every PASSL
                axes = 1
            if axes and array.shape[:axes] == (1,) * axes:
                array = array.reshape(array.shape[axes:])
            canonical[name] = array
        return self.join(canonical)

    def infer(self, weights: Mapping[str, np.ndarray]) -> Architecture:
        """The architecture that the shapes of weights from `to_canonical` tell.

        Raises:
            CheckpointError: they are not those of a CLIP.
        """
        shapes = {name: array.shape for name, array in weights.items()}
        if not self.transposed:
            return infer(shapes)
        # What is transposed depends on the kinds of the towers alone, whatever their numbers.
        stored = infer_unchecked(shapes)
        turned = {parameter.name for parameter in parameters(stored) if self._transposes(parameter)}
        return infer({name: shape[::-1] if name in turned else shape for name, shape in shapes.items()})

    def reorder(self, weights: Mapping[str, np.ndarray], architecture: Architecture) -> Weights:
        """Canonical axis order, and the batch counters that most projects leave out; in the order of the table."""
        ordered: Weights = {}
        for parameter in parameters(architecture):
            if parameter.name in weights:
                array = weights[parameter.name]
                transposed = self._transposes(parameter) and array.ndim == 2
                ordered[parameter.name] = array.T if transposed else array
            elif parameter.kind == "counter":
                ordered[parameter.name] = np.zeros((), np.int64)
        return ordered | {name: array for name, array in weights.items() if name not in ordered}

    def store(self, tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
        """Canonical ``tensors`` as a file has them, prefix included; views, nothing is copied."""
        stored: dict[str, Tensor] = {}
        for parameter in parameters(architecture):
            tensor = tensors[parameter.name]
            array = tensor.array.T if self._transposes(parameter) else tensor.array
            axes = self.added_axes.get(parameter.name, 0)
            axes += self.scalar_axes(architecture) if parameter.kind == "scalar" else 0
            array = array.reshape((1,) * axes + array.shape)
            for name, part in self.split(parameter.name, array, architecture):
                stored[self.prefix + self.spell(name)] = Tensor(part, tensor.dtype, tensor.trainable)
        return stored

    def _transposes(self, parameter: Parameter) -> bool:
        return parameter.kind in self.transposed or parameter.name in self.transposed


@dataclass(frozen=True)
class Renaming:
    """Names that differ by a table: of the towers, of what is inside a block, and of everything else."""

    towers: Mapping[str, str]
    block: Mapping[str, str]
    top: Mapping[str, str]

    def __call__(self, name: str) -> str:
        if (match := _BLOCK.fullmatch(name)) and match[1] in self.towers:
            tower, index, inner = match.groups()
            return f"{self.towers[tower]}.{index}.{self.block.get(inner, inner)}"
        return self.top.get(name, name)

    def inverse(self) -> Callable[[str], str]:
        """The canonical name for a name in this spelling; an unknown name stays as it is."""
        towers = {theirs: ours for ours, theirs in self.towers.items()}
        block = {theirs: ours for ours, theirs in self.block.items()}
        top = {theirs: ours for ours, theirs in self.top.items()}
        pattern = re.compile(rf"({'|'.join(map(re.escape, towers))})\.([0-9]+)\.(.+)")

        def canonical(name: str) -> str:
            if match := pattern.fullmatch(name):
                tower, index, inner = match.groups()
                return f"{towers[tower]}.{index}.{block.get(inner, inner)}"
            return top.get(name, name)

        return canonical


def modules(names: Mapping[str, str]) -> dict[str, str]:
    """A table of modules, as the table of their weights and biases."""
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in names.items() for leaf in ("weight", "bias")}


def mount_text(weights: Weights) -> Weights:
    """The parts of a text tower that other projects name alike wherever they are, below ``text.``."""
    parts = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
    return {f"text.{name}" if name.startswith(parts) else name: array for name, array in weights.items()}


def starts(weights: Iterable[str], *prefixes: str) -> bool:
    """Whether any name starts like this."""
    return any(name.startswith(prefixes) for name in weights)


def split_attention(name: str, array: np.ndarray, architecture: Architecture) -> list[tuple[str, np.ndarray]]:
    """The three inputs of an attention as ``q_proj``, ``k_proj`` and ``v_proj``; any other tensor as it is."""
    match = _ATTENTION_INPUT.fullmatch(name)
    if match is None:
        return [(name, array)]
    stem, leaf = match.groups()
    return [
        (f"{stem.removesuffix('in_proj')}{part}_proj.{leaf}", third) for part, third in zip("qkv", np.split(array, 3))
    ]


def join_attention(weights: Weights) -> Weights:
    """The reverse of `split_attention` over all of ``weights``."""
    joined = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(.+\.attn)\.q_proj\.(weight|bias)", name):
            stem, leaf = match.groups()
            names = [f"{stem}.{part}_proj.{leaf}" for part in "qkv"]
            parts = [weights.get(part) for part in names]
            # Parts that do not fit together stay as they are: the table then names them.
            found = [part for part in parts if part is not None and part.ndim]
            if len(found) == 3 and len({(part.shape, part.dtype) for part in found}) == 1:
                joined[f"{stem}.in_proj_{leaf}"] = np.concatenate(found)
                for part in names:
                    del joined[part]
    return joined
