"""Embeddings of pictures and texts, in memory or in a folder of parts, with the stamp of what made them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import converters
from clip.api import LoadedModel, open_model, original_of, weights_file
from clip.versions import versions
from clip_core.data.example import Texts, fingerprint_of
from clip_core.embedding import engine, sources
from clip_core.embedding.engine import FaultLog, Plan
from clip_core.embedding.parts import PART, Fault, Format, Part, Parts, require_libraries
from clip_core.embedding.sources import Columns, Encoded, Joined, Pictures
from clip_core.embedding.stamp import DType, Stamp, pixels_of, tokenizer_digest, weights_digest
from clip_core.errors import ClipError, ImageError
from clip_core.evaluation.features import BATCH, Progress, quiet

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """Embeddings, and what made them."""

    array: np.ndarray  # [n, d], in the type that the stamp says
    ids: tuple[str, ...]  # of each; pictures and texts that were given as such are numbered from 0
    stamp: Stamp
    faults: tuple[Fault, ...] = ()  # of what is left out


def embed(
    pictures: Picture | Sequence[Picture] | None = None,
    model: str | os.PathLike[str] = "shapes",
    *,
    texts: str | Sequence[str] | None = None,
    backend: str | None = None,
    device: Any = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    batch_size: int = BATCH,
    workers: int | None = 0,
    normalize: bool = True,
    dtype: DType = "float32",
    truncate: bool = False,
    fault_share: float = 0.0,
    progress: Progress = quiet,
) -> Embeddings:
    """Embed pictures or texts.

    Args:
        pictures: paths, folders, archives and all else that ``clip embed`` takes, PIL images, and uint8 arrays
            [height, width, 3]; one of them or several.
        model, backend, device, precision, like, activation, heads: as for `clip.load`.
        texts: in place of pictures.
        batch_size: pictures that are encoded at once.
        workers: processes that decode, None for as many as are worth while. They import the script that calls this,
            which therefore has to do it below ``if __name__ == "__main__":``; by default there are none.
        normalize: make each embedding's length 1.
        dtype: of the embeddings.
        truncate: cut texts that are too long for the model; otherwise they cannot be used.
        fault_share: of the input that may be unusable, and is left out.
        progress: told of every batch.

    Raises:
        ClipError: the model, or too much of the input, cannot be used.
    """
    if (pictures is None) == (texts is None):
        raise ClipError("Give either pictures or texts to embed.")
    opened = None if pictures is None else _pictures_of(pictures)
    given = [texts] if isinstance(texts, str) else list(texts or ())
    if opened is None and not given:
        raise ClipError("There are no texts; give at least one.")
    loaded, stamp = open_stamped(
        model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads,
        dtype=dtype,
        normalize=normalize,
    )
    plan = Plan(len(given) if opened is None else len(opened), "", batch_size)
    faults = FaultLog(plan.total, fault_share, what="texts" if opened is None else "pictures")
    parts: Iterator[Part]
    if opened is None:
        parts = engine.text_parts(loaded.model, given, "", stamp, plan, faults, truncate=truncate, progress=progress)
    else:
        parts = engine.picture_parts(loaded.model, opened, stamp, plan, faults, workers=workers, progress=progress)
    made = list(parts)
    return Embeddings(
        np.concatenate([part.embeddings for part in made]),
        tuple(name.removeprefix("#") for part in made for name in part.columns["id"]),
        stamp,
        tuple(fault for part in made for fault in part.place.faults),
    )


def embed_into(
    output: str | os.PathLike[str],
    pictures: Sequence[str] = (),
    model: str | os.PathLike[str] = "shapes",
    *,
    texts: str | os.PathLike[str] | None = None,
    columns: Columns = Columns(),  # noqa: B008  # it is frozen
    backend: str | None = None,
    device: Any = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    batch_size: int = BATCH,
    workers: int | None = None,
    normalize: bool = True,
    dtype: DType = "float32",
    format: Format = "parquet",
    truncate: bool = False,
    fault_share: float = 0.01,
    resume: bool = False,
    part: int = PART,
    cluster: str | None = None,
    progress: Progress = quiet,
) -> Parts:
    """Embed pictures, or the texts of a list, into a folder of parts (`clip_core.embedding.parts`).

    Args:
        output: the folder, made where it is absent.
        pictures: as `clip_core.embedding.sources` describes.
        texts: the list, in place of pictures.
        columns: of lists and Parquet files.
        format: of the parts.
        resume: go on with what an interrupted run has left, or do nothing where all is there.
        part: pictures or texts of one file.
        cluster: of Ray, which embeds the pictures: ``auto``, ``HOST:PORT`` or ``local`` (`clip.cluster_engine`); by
            default this process embeds them.
        model, backend, device, precision, like, activation, heads, batch_size, workers, normalize, dtype, truncate,
            fault_share, progress: as for `embed`.

    Raises:
        ClipError: as `embed`, or the folder cannot be written, or has other embeddings.
    """
    from clip import cluster_engine  # which opens models by this module

    if bool(pictures) == (texts is not None):
        raise ClipError("Give either pictures or, with --texts, a list of texts.")
    if cluster is not None and texts is not None:
        raise ClipError("A cluster embeds pictures alone; embed texts without --engine ray.")
    require_libraries(output, format)
    if not resume:
        engine.check_new(Path(output))  # before the work of opening pictures and model
    opened = sources.open_pictures(pictures, columns) if pictures else None
    lines = Texts(() if texts is None else sources.texts_of(os.fspath(texts), columns.caption))
    wanted = {
        "model": model,
        "backend": backend,
        "device": device,
        "precision": precision,
        "like": like,
        "activation": activation,
        "heads": heads,
        "dtype": dtype,
        "normalize": normalize,
    }
    loaded, stamp = open_stamped(**wanted)
    what = "texts" if opened is None else "pictures"
    if opened is None:
        plan = Plan(len(lines), fingerprint_of(lines), batch_size, part)
    else:
        plan = Plan(len(opened), opened.fingerprint(), batch_size, part)
    with ExitStack() as stack:
        if cluster is not None:
            stack.enter_context(cluster_engine.connected(cluster))
        run = stack.enter_context(
            engine.run_in(output, plan, stamp, format=format, fault_share=fault_share, resume=resume, what=what)
        )
        parts: Iterator[Part]
        if opened is None:
            source = Path(str(texts)).name.encode(errors="backslashreplace").decode()  # a part holds UTF-8 alone
            parts = engine.text_parts(
                loaded.model, lines, source, stamp, plan, run.faults, run.missing, truncate=truncate, progress=progress
            )
        elif cluster is None:
            parts = engine.picture_parts(
                loaded.model, opened, stamp, plan, run.faults, run.missing, workers=workers, progress=progress
            )
        else:
            wanted["backend"] = loaded.model.backend  # which another machine might not choose by itself
            made_there = cluster_engine.embedded_batches(wanted, opened, stamp, plan, run.missing, workers)
            batches = stack.enter_context(closing(made_there))
            parts = engine.collected(batches, plan, run.faults, run.missing, progress)
        for made in parts:
            run.write(made)
    return Parts(output)


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


def _pictures_of(pictures: Picture | Sequence[Picture]) -> Pictures:
    """What was given to `embed`, in its order."""
    if isinstance(pictures, str | os.PathLike | Image.Image | np.ndarray):
        pictures = [pictures]
    found: list[Pictures] = []
    number = 0
    for is_path, group in groupby(pictures, lambda each: isinstance(each, str | os.PathLike)):
        of_group: list[Any] = list(group)
        if is_path:
            found.append(sources.open_pictures([os.fspath(each) for each in of_group]))
        else:
            found.append(_Given([_image_of(each) for each in of_group], number))
        number += len(of_group)
    if not found:
        raise ClipError("There are no pictures; give at least one.")
    return Joined(found)


class _Given:
    """Pictures that were given as such, named by their numbers."""

    def __init__(self, images: list[Image.Image], first: int) -> None:
        self._images, self._first = images, first

    def __len__(self) -> int:
        return len(self._images)

    def name(self, number: int) -> str:
        return str(self._first + number)

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        for number in numbers:
            yield Encoded(self.name(number), "", self._images[number])

    def fingerprint(self) -> str:
        return fingerprint_of([len(self)])


def _image_of(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return Image.fromarray(picture)
    found = f"an array {picture.dtype}{picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise ImageError(f"A picture was given as {found}; give a path, a PIL image or a uint8 array [height, width, 3].")
