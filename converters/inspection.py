"""Inspecting a weights file: what it is, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from clip_core import naming
from clip_core.architecture import Architecture
from clip_core.models import name_of
from converters.knowledge import named_alike, phrases, word_of_the_user
from converters.reading import Given, Like, enough_memory, load, original_of


@dataclass(frozen=True)
class Inspection:
    """What a file is, and everything that is wrong with it."""

    path: str
    size: int  # bytes
    sha256: str
    container: str
    entry: str  # the dictionary in the file that they are from, as "model.state_dict"; "" where there is no other
    layout: str
    model: str | None  # the registry's name for the architecture
    architecture: Architecture | None  # None: the first of the faults says why
    assumed: tuple[str, ...]  # what nobody says of the architecture, so that it is OpenAI's
    same_shapes: tuple[str, ...]  # where something is assumed: the known architectures that it may be
    prefix: str  # of the names in the file, where the model is a part of a larger one
    left_out: tuple[str, ...]  # the tensors of the file that are not below the prefix
    tensors: int
    scalars: int  # in all tensors, counters and statistics included
    dtypes: dict[str, int]  # dtype -> tensors
    manifest: bool  # whether the file carries one
    source_sha256: str | None
    own_vocabulary: bool  # False: OpenAI's
    zeros: tuple[str, ...]  # weights that are zero everywhere, which training seldom leaves
    faults: tuple[str, ...]  # empty: the file is sound

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"architecture": self.architecture and self.architecture.to_dict()}


def inspect(
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    like: Like | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> Inspection:
    """What a file is and everything that is wrong with it, as far as it can be taken apart.

    Args:
        prefix, like, activation, heads: as for `read`.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged so that nothing can be said of what it holds, or is of another kind.
    """
    with enough_memory(path):
        loaded = load(path, Given(prefix, like, word_of_the_user(activation, heads)), original_of(like))
    architecture, manifest = loaded.architecture, loaded.manifest
    faults = list(loaded.faults)
    if architecture is not None:
        faults += naming.faults(architecture, loaded.weights)
    if loaded.question is not None:
        faults.append(loaded.question)
    return Inspection(
        path=os.fspath(loaded.path),
        size=loaded.size,
        sha256=loaded.sha256,
        container=loaded.container,
        entry=loaded.entry,
        layout=loaded.layout,
        model=None if architecture is None else name_of(architecture),
        architecture=architecture,
        assumed=() if architecture is None else phrases(architecture, loaded.assumed),
        same_shapes=named_alike(architecture) if architecture is not None and loaded.assumed else (),
        prefix=loaded.prefix,
        left_out=loaded.left_out,
        tensors=len(loaded.weights),
        scalars=sum(array.size for array in loaded.weights.values()),
        dtypes=dict(sorted(Counter(array.dtype.name for array in loaded.weights.values()).items())),
        manifest=manifest is not None,
        source_sha256=None if manifest is None else manifest.source_sha256,
        own_vocabulary=loaded.vocabulary is not None,
        zeros=tuple(name for name, array in loaded.weights.items() if array.size and array.ndim and not array.any()),
        faults=tuple(faults),
    )
