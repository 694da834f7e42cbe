"""Features of whole data sets: pictures decoded by other processes, encoded in batches, kept on disk if wanted.

Kept features are in parts of `PART` pictures. A run that is interrupted goes on after the last whole part, and a later
one with other prompts encodes no picture again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from math import floor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from clip_core import safetensors
from clip_core.backend import Model
from clip_core.batching import embed_texts
from clip_core.buffers import Tensor
from clip_core.data.example import fingerprint_of
from clip_core.errors import CheckpointError, ClipError
from clip_core.files import exclusive, read_regular, write_bytes, write_text
from clip_core.pixels import Pixels
from clip_core.preprocess import preprocess
from clip_core.processes import in_order
from clip_core.similarity import normalize
from clip_core.text.tokenizer import Tokenizer

BATCH = 64  # pictures that are encoded at once
PART = 1024  # pictures of one file
MANY = 1000  # pictures from which on it is worth while to start processes
DIED = (
    "A process that decodes pictures has died; most often memory has run out: choose fewer --workers or a smaller "
    "--batch-size. Such a process imports the script that it belongs to, which therefore has to do this below "
    '`if __name__ == "__main__":`.'
)

Progress = Callable[[str, int, int, int], None]
"""Told what is encoded, how many of how many are done, and how many could not be used."""


def quiet(what: str, done: int, total: int, faults: int) -> None:
    """The progress that nobody follows."""


class Pictures(Protocol):
    """Pictures by number, which may be asked for in another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image:
        """Raises `ClipError` when the picture cannot be used."""

    def files(self) -> Iterable[str]:
        """The files that pictures are read from."""


class PictureFeatures(NamedTuple):
    """What became of the first pictures of a set."""

    features: np.ndarray  # float32 [n, d], not normalised, none of them of length 0
    indices: np.ndarray  # int64 [n], the number of each in its set
    faults: dict[int, str]  # number -> why a picture was left out


def state(paths: Iterable[str]) -> str:
    """What tells files from others that stood in their place before, without reading them: their sizes and times."""
    found: list[int] = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            found += -1, -1
        else:
            found += status.st_size, status.st_mtime_ns
    return fingerprint_of(found)


class Store:
    """Features on disk, in a folder of their own for all that they depend on.

    Args:
        folder: of all features; made where it is absent.
        provenance: what the features depend on, as plain data for JSON.
    """

    def __init__(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]
        self._folder, self._provenance = folder / key, provenance

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing the same features.

        Raises:
            ClipError: one does, or the folder cannot be written.
        """
        with exclusive(self._folder, "evaluation"):
            write_text(self._folder / "provenance.json", json.dumps(self._provenance, indent=2) + "\n")
            yield

    def read(self, first: int, end: int) -> PictureFeatures | None:
        """The part from one picture up to another; None: it is not there, or not whole, and has to be made again."""
        try:
            content = safetensors.read(read_regular(self._path(first)))
            kept = json.loads(content.manifest or "")
            features, indices = content.tensors["features"], content.tensors["indices"]
            if kept["end"] < end:
                return None
        except (ClipError, ValueError, KeyError, TypeError):
            return None
        wanted = indices < end
        faults = {int(index): sentence for index, sentence in kept["faults"].items() if int(index) < end}
        return PictureFeatures(features[wanted], indices[wanted], faults)

    def write(self, first: int, end: int, part: PictureFeatures) -> None:
        """Keep a part, whole or not at all."""
        tensors = {"features": part.features, "indices": part.indices}
        manifest = json.dumps({"end": end, "faults": part.faults})
        of_file = {name: Tensor(array, array.dtype) for name, array in tensors.items()}
        write_bytes(self._path(first), b"".join(safetensors.pieces(of_file, manifest)))

    def _path(self, first: int) -> Path:
        return self._folder / f"from-{first:08}.safetensors"


def encode_pictures(
    model: Model,
    pictures: Pictures,
    *,
    limit: int | None = None,
    batch_size: int = BATCH,
    workers: int | None = None,
    fault_share: float = 0.01,
    store: Store | None = None,
    progress: Progress = quiet,
) -> PictureFeatures:
    """Features of the first pictures of a set.

    Args:
        limit: how many of them; by default all.
        batch_size: pictures that are encoded at once.
        workers: processes that decode, 0 for none beside this one; by default one for each core, up to four, if there
            are `MANY` pictures.
        fault_share: of the pictures that may be unusable, and are left out.
        store: keeps what is encoded, and gives what was.
        progress: told of every batch.

    Raises:
        ClipError: too many pictures cannot be used, or none can; or a process that decodes has died.
        CheckpointError: a feature is no finite number.
    """
    total = len(pictures) if limit is None else min(limit, len(pictures))
    parts: list[PictureFeatures] = []
    with ExitStack() as stack:
        first = 0
        if store is not None:
            stack.enter_context(store.held())
            while first < total and (kept := store.read(first, min(first + PART, total))) is not None:
                parts.append(kept)
                first = min(first + PART, total)
        faults = {index: sentence for part in parts for index, sentence in part.faults.items()}
        if faults:
            _check_faults(faults, floor(fault_share * total), total)
        progress("pictures", first, total, len(faults))
        if workers is None:
            workers = min(4, os.cpu_count() or 1) if total - first >= MANY else 0
        ends = [min(begin + PART, total) for begin in range(first, total, PART)]
        batches = [
            [range(start, min(start + batch_size, end)) for start in range(begin, end, batch_size)]
            for begin, end in zip(range(first, total, PART), ends)
        ]
        decode = _Decode(pictures, model.architecture.image.resolution, model.architecture.image.pixels)
        decoded = stack.enter_context(closing(in_order(decode, chain.from_iterable(batches), workers, DIED)))
        for of_part in batches:
            encoded: list[PictureFeatures] = []
            for batch in of_part:
                block = next(decoded)
                faults |= block.faults
                _check_faults(faults, floor(fault_share * total), total)
                encoded.append(PictureFeatures(_image_features(model, block.pixels), block.indices, block.faults))
                progress("pictures", batch.stop, total, len(faults))
            parts.append(_joined(encoded))
            if store is not None:
                store.write(of_part[0].start, of_part[-1].stop, parts[-1])
    return _joined(parts)


def encode_texts(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    what: str = "texts",
    progress: Progress = quiet,
) -> np.ndarray:
    """Unit features float32 [n, d] of texts.

    Args:
        truncate: cut texts that are too long for the model; otherwise they are refused.
        what: they are, for ``progress``.

    Raises:
        TextError: a text is too long, or cannot be used.
        CheckpointError: a feature is no finite number.
    """
    tokens = tokenizer.tokenize(texts, model.architecture.text.context_length, truncate)
    features = embed_texts(model, tokens, lambda done, total: progress(what, done, total, 0))
    return normalize(checked(model, features))


class _Block(NamedTuple):
    """Decoded pictures."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    indices: np.ndarray  # int64 [n]
    faults: dict[int, str]


@dataclass(frozen=True)
class _Decode:
    """Pictures -> pixels."""

    pictures: Pictures
    resolution: int
    wanted: Pixels

    def __call__(self, batch: range) -> _Block:
        pixels, faults = {}, {}
        for index in batch:
            try:
                pixels[index] = preprocess(self.pictures[index], self.resolution, self.wanted)
            except ClipError as error:
                faults[index] = str(error)
        shape = (0, 3, self.resolution, self.resolution)
        return _Block(
            np.stack(list(pixels.values())) if pixels else np.empty(shape, np.float32),
            np.array(list(pixels), np.int64),
            faults,
        )


def _check_faults(faults: Mapping[int, str], allowed: int, total: int) -> None:
    if len(faults) > min(allowed, total - 1):
        last = faults[max(faults)]
        raise ClipError(
            f"{len(faults)} of {total} pictures could not be used, and at most {min(allowed, total - 1)} may be left "
            f"out; the last fault is: {last} Mend the data, or allow more with --fault-share."
        )


def _image_features(model: Model, pixels: np.ndarray) -> np.ndarray:
    if not len(pixels):
        return np.empty((0, model.architecture.embed_dim), np.float32)
    return checked(model, model.embed_image(pixels))


def checked(model: Model, features: np.ndarray) -> np.ndarray:
    """The features, if each has a direction.

    Raises:
        CheckpointError: one is no finite number, or all its numbers are 0.
    """
    with np.errstate(all="ignore"):
        directed = np.isfinite(normalize(features)).all()
    if not directed:
        raise CheckpointError(
            f"{model.source} gives features that are not finite numbers; look at its weights with clip inspect."
        )
    return features


def _joined(parts: Sequence[PictureFeatures]) -> PictureFeatures:
    return PictureFeatures(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.indices for part in parts]),
        {index: sentence for part in parts for index, sentence in part.faults.items()},
    )
