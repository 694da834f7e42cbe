"""Folders of embeddings with vectors of a test's own, as ``clip embed`` would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_core.embedding import parts
from clip_core.embedding.parts import PICTURE_COLUMNS, Part, Parts, Place
from clip_core.embedding.stamp import Stamp, pixels_of
from clip_core.models import SHAPES
from clip_core.similarity import normalize

STAMP = Stamp(
    weights="0a" * 32,
    source="shapes",
    architecture=SHAPES.to_dict(),
    tokenizer="1b" * 32,
    pixels=pixels_of(SHAPES),
    precision="fp32",
    dtype="float16",
    normalized=True,
    backend="numpy",
    versions={"numpy": "1"},
)


def unit_vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    """Float16 [n, d], of length 1 up to rounding."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return normalize(vectors).astype(np.float16)


def embedded(
    folder: Path, vectors: np.ndarray, ids: Sequence[str] | None = None, bytes_of: str = "", stamp: Stamp = STAMP
) -> Parts:
    """Pictures whose number is their width, in two parts.

    Args:
        bytes_of: what the files' digests are made of, beside the ids.
    """
    names = [f"{number:05}.png" for number in range(len(vectors))] if ids is None else list(ids)
    folder.mkdir()
    for first, end in ((0, len(names) // 2), (len(names) // 2, len(names))):
        numbers = range(first, end)
        columns: dict[str, list] = {name: [None] * len(numbers) for name in PICTURE_COLUMNS}
        columns["id"] = names[first:end]
        columns["path"] = [f"a folder/{name}" for name in names[first:end]]
        columns["width"] = columns["height"] = list(numbers)
        columns["sha256"] = [f"{name} {bytes_of}" for name in names[first:end]]
        columns["label"] = ["it's even" if number % 2 == 0 else "odd" for number in numbers]
        if numbers:
            parts.write(folder, Part(Place(first, end, len(names), "input"), vectors[first:end], columns), stamp)
    return Parts(folder)
