"""The stamp of embeddings: what made them, and whether they may be compared with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from clip_core import buffers
from clip_core.architecture import Architecture, differences
from clip_core.errors import ClipError
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.text.loading import is_json
from clip_core.text.vocabulary import MERGES_SHA256

DType = Literal["float16", "float32"]
DTYPES: tuple[DType, ...] = ("float16", "float32")

ORDER = "width first"
"""In which Pillow's filter is applied along the axes, whatever Pillow's version (`clip_core.preprocess.resize`)."""

_SHOWN = 12  # digits of a digest in a message


@dataclass(frozen=True)
class Stamp:
    """What made some embeddings."""

    weights: str  # SHA-256 of the weights under their canonical names, whatever file they are in (`weights_digest`)
    source: str  # the model's name, or the name of its file
    architecture: dict[str, Any]  # as `Architecture.to_dict` gives it
    tokenizer: str | None  # SHA-256 of what defines it; None: it is not known
    pixels: dict[str, Any]  # what becomes of a picture before the image tower
    precision: str  # that the model computed in
    dtype: DType  # that the embeddings are kept in
    normalized: bool  # whether each has length 1
    backend: str
    versions: dict[str, str]  # of all that numbers depend on

    def difference(self, other: Stamp) -> str | None:
        """Why embeddings of this stamp and of another one cannot be compared, in one sentence that names both.

        None: they can. Another backend, version, precision or dtype does not matter, nor does their length, which
        whoever compares makes 1.
        """
        if self.weights != other.weights:
            return self._sentence(other, "weights", self.weights[:_SHOWN], other.weights[:_SHOWN])
        if self.pixels != other.pixels:
            return self._sentence(other, "preprocessing", *_apart(self.pixels, other.pixels))
        if self.architecture != other.architecture:
            found = differences(*(Architecture.from_dict(each.architecture) for each in (self, other)))
            return f"{self.source} and {other.source} have other architectures: {', '.join(found[:3])}."
        if self.tokenizer != other.tokenizer:
            known = [(each.tokenizer or "")[:_SHOWN] or "an unknown one" for each in (self, other)]
            return self._sentence(other, "tokenizer", *known)
        return None

    def _sentence(self, other: Stamp, what: str, ours: str, theirs: str) -> str:
        return f"{self.source} has the {what} {ours}, and {other.source} has {theirs}: they cannot be compared."

    def change(self, other: Stamp) -> str | None:
        """The first field in which two stamps differ, with the value of each, for a message; None: they are equal."""
        ours, theirs = asdict(self), asdict(other)
        name = next((name for name in ours if ours[name] != theirs[name]), None)
        if name is None:
            return None
        if isinstance(ours[name], dict):
            return f"{name} {' and '.join(_apart(ours[name], theirs[name]))}"
        return f"{name} {ours[name]!s:.60} and {theirs[name]!s:.60}"

    def to_json(self) -> str:
        """One line; equal stamps give equal lines."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Stamp:
        """Read what `to_json` wrote.

        Args:
            source: what has it, for the message.

        Raises:
            ClipError: it is anything else.
        """
        try:
            stamp = TypeAdapter(cls).validate_json(text, strict=True)
            Architecture.from_dict(stamp.architecture)
            return stamp
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ClipError(f"The stamp of {source} cannot be read: {place}: {first['msg']}; embed again.") from error
        except ClipError as error:
            raise ClipError(f"The stamp of {source} cannot be read: {error}") from error


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of weights under their canonical names, as 64 hexadecimal digits, the same in float16 and float32.

    Counters, which have no effect and which not every framework keeps, do not enter it.
    """
    names = sorted(name for name, array in weights.items() if array.dtype != np.int64)
    with buffers.threads() as pool:
        digests = pool.map(lambda name: buffers.sha256(np.asarray(weights[name], "<f4")), names)
        listed = [[name, list(weights[name].shape), digest] for name, digest in zip(names, digests)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def tokenizer_digest(architecture: Architecture, vocabulary: str | None) -> str | None:
    """The SHA-256 of what defines a model's tokenizer; None: the model was not trained with OpenAI's, and has no other.

    Args:
        vocabulary: merges or a tokenizer.json; None: OpenAI's.
    """
    if vocabulary is None:
        return MERGES_SHA256 if architecture.text.required_token == OPENAI_VOCABULARY_SIZE - 1 else None
    if not is_json(vocabulary):  # but merges, whose header has no meaning
        vocabulary = "\n".join(" ".join(line.split()) for line in vocabulary.rstrip().split("\n")[1:])
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def pixels_of(architecture: Architecture) -> dict[str, Any]:
    """What becomes of a picture before the image tower, as plain data for JSON."""
    tower = architecture.image
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(tower.pixels).items()}
    return {"resolution": tower.resolution, **wanted, "order": ORDER}


def _apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str]:
    """What two descriptions have that differs, of each."""
    names = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    first, second = (", ".join(f"{name} {of.get(name)}" for name in sorted(names)) for of in (ours, theirs))
    return first, second
