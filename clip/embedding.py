"""Embeddings of pictures and texts, with the stamp of what made them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import converters
from clip.api import LoadedModel, open_model, original_of, weights_file
from clip.versions import versions
from clip_core.embedding.stamp import DType, Stamp, pixels_of, tokenizer_digest, weights_digest


def open_stamped(
    model: str | os.PathLike[str] = "shapes",
    *,
    backend: str | None = None,
    device: Any = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    dtype: DType = "float32",
    normalize: bool = True,
) -> tuple[LoadedModel, Stamp]:
    """A model, and the stamp of what it embeds.

    Args:
        model, backend, device, precision, like, activation, heads: as for `clip.load`.
        dtype: that the embeddings are kept in.
        normalize: make each embedding's length 1.

    Raises:
        ClipError: the model cannot be used.
    """
    loaded = open_model(
        model, backend=backend, device=device, precision=precision, like=like, activation=activation, heads=heads
    )
    path = weights_file(model)[0]
    original = None if like is None else original_of(like)
    # Read once more, since a model may hold its weights in half precision.
    file = converters.read(path, like=original, activation=activation, heads=heads)
    architecture = loaded.model.architecture.to_dict()
    pixels = pixels_of(loaded.model.architecture)
    stamp = Stamp(
        weights=weights_digest(file.weights),
        source=Path(loaded.name).name if os.path.exists(loaded.name) else loaded.name,
        architecture=architecture,
        tokenizer=tokenizer_digest(loaded.model.architecture, loaded.model.vocabulary),
        pixels=pixels,
        precision=precision,
        dtype=dtype,
        normalized=normalize,
        backend=loaded.model.backend,
        versions=versions(loaded.model.backend),
    )
    return loaded, stamp
