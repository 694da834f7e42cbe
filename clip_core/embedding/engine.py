"""Pictures and texts -> parts of embeddings on one machine: other processes decode while the model computes.

The work is cut into parts, and a part into batches, by numbers alone (`Plan`). What becomes of a batch depends on its
pictures and on the model, so a part is the same whoever makes it and whenever: `Decode`, `embedded` and `joined` are
the stages, and `Run` is the folder that parts are written into.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_core.backend import Model
from clip_core.batching import embed_texts
from clip_core.data.faults import FAULTS
from clip_core.embedding import parts
from clip_core.embedding.parts import PART, PICTURE_COLUMNS, Fault, Format, Part, Parts, Place
from clip_core.embedding.sources import Encoded, Pictures
from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError, TextError
from clip_core.evaluation.features import BATCH, DIED, MANY, Progress, checked, quiet
from clip_core.files import appending, exclusive, write_bytes
from clip_core.image import open_image
from clip_core.pixels import Pixels
from clip_core.preprocess import preprocess
from clip_core.processes import in_order
from clip_core.similarity import normalize

MOST_WORKERS = 16  # by default
REMEDY = "shorten it, or cut it with --truncate"  # against a text that is too long


@dataclass(frozen=True)
class Plan:
    """How an input is cut into parts, and these into batches."""

    total: int  # pictures or texts
    inputs: str  # a digest of the input
    batch_size: int = BATCH
    part: int = PART

    def parts(self) -> Iterator[range]:
        """The numbers of each part."""
        for first in range(0, self.total, self.part):
            yield range(first, min(first + self.part, self.total))

    def batches(self, part: range) -> Iterator[range]:
        """The numbers of each batch of a part."""
        for first in range(part.start, part.stop, self.batch_size):
            yield range(first, min(first + self.batch_size, part.stop))

    def place(self, part: range, faults: Sequence[Fault]) -> Place:
        return Place(part.start, part.stop, self.total, self.inputs, tuple(faults))


class Decoded(NamedTuple):
    """A batch of pictures, without those that cannot be used."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    columns: dict[str, list[Any]]  # of `PICTURE_COLUMNS`, each of n values
    faults: list[Fault]


class Embedded(NamedTuple):
    """A batch of pictures whose pixels have become embeddings."""

    embeddings: np.ndarray  # [n, d]
    columns: dict[str, list[Any]]  # as of `Decoded`
    faults: list[Fault]


@dataclass(frozen=True)
class Decode:
    """Numbers of pictures -> a batch; the stage that runs in other processes."""

    pictures: Pictures
    resolution: int
    wanted: Pixels

    def __call__(self, numbers: range) -> Decoded:
        pixels, faults = [], []
        columns: dict[str, list[Any]] = {name: [] for name in PICTURE_COLUMNS}
        for number, stored in zip(numbers, self.pictures.read(numbers)):
            if isinstance(stored, ClipError):
                faults.append(_fault(number, self.pictures.name(number), str(stored)))
                continue
            try:
                _check_storable(stored)
                image = open_image(stored.data) if isinstance(stored.data, bytes) else stored.data
                pixels.append(preprocess(image, self.resolution, self.wanted))
            except ClipError as error:
                name = self.pictures.name(number)
                faults.append(_fault(number, name, f"{name}: {error}"))
                continue
            digest = hashlib.sha256(stored.data).hexdigest() if isinstance(stored.data, bytes) else None
            row = (stored.id, stored.path, *image.size, digest, stored.caption, stored.label)
            for name, value in zip(PICTURE_COLUMNS, row):
                columns[name].append(value)
        empty = np.empty((0, 3, self.resolution, self.resolution), np.float32)
        return Decoded(np.stack(pixels) if pixels else empty, columns, faults)


def _check_storable(stored: Encoded) -> None:
    """Refuse a picture with a text that UTF-8, and so a part, cannot hold.

    Raises:
        TextError: naming the text.
    """
    for what, text in (("name", stored.path), ("caption", stored.caption), ("label", stored.label)):
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise TextError(f"its {what} has characters that UTF-8 has no place for; write it anew.") from error


def _fault(number: int, *texts: str) -> Fault:
    """The fault of a picture, in which what UTF-8 cannot hold is written as its code."""
    return Fault(number, *(text.encode(errors="backslashreplace").decode() for text in texts))


def embedded(model: Model, pixels: np.ndarray, stamp: Stamp) -> np.ndarray:
    """Pixels float32 [n, 3, r, r] -> embeddings [n, d] as the stamp says.

    Raises:
        ClipError: one cannot be kept so.
    """
    if not len(pixels):
        return np.empty((0, model.architecture.embed_dim), stamp.dtype)
    return kept(model, model.embed_image(pixels), stamp)


def kept(model: Model, features: np.ndarray, stamp: Stamp) -> np.ndarray:
    """Features float32 [n, d] in the length and type that the stamp says.

    Raises:
        ClipError: one has no direction, or is too large for the type.
    """
    checked(model, features)
    with np.errstate(over="ignore"):
        result = (normalize(features) if stamp.normalized else features).astype(stamp.dtype)
    if not np.isfinite(result).all():
        raise ClipError(f"{model.source} gives features too large for {stamp.dtype}; keep them in float32.")
    return result


def joined(plan: Plan, part: range, batches: Sequence[Embedded]) -> Part:
    """A part of its batches."""
    return Part(
        plan.place(part, [fault for batch in batches for fault in batch.faults]),
        np.concatenate([batch.embeddings for batch in batches]),
        {name: [value for batch in batches for value in batch.columns[name]] for name in PICTURE_COLUMNS},
    )


class FaultLog:
    """What is left out of an input, counted and written into a file.

    Args:
        share: of the input that may be left out.
        path: a file with one object a line; None only counts.
    """

    def __init__(self, total: int, share: float, path: Path | None = None, what: str = "pictures") -> None:
        self._allowed, self._share, self._total = min(floor(share * total), total - 1), share, total
        self._path, self._what = path, what
        self.count = 0

    def begin(self, faults: Sequence[Fault]) -> None:
        """Go on from these; others in the file are of work that is done again."""
        self.count = len(faults)
        if self._path is not None and (faults or self._path.exists()):
            write_bytes(self._path, b"".join(map(_line, faults)))

    def add(self, faults: Sequence[Fault]) -> None:
        """Count and write down.

        Raises:
            ClipError: there are too many.
        """
        if not faults:
            return
        if self._path is not None:
            with appending(self._path) as file:
                file.write(b"".join(map(_line, faults)))
        self.count += len(faults)
        if self.count > self._allowed:
            listed = "" if self._path is None else f"all are listed in {self._path}; "
            raise ClipError(
                f"{self.count} of {self._total} {self._what} could not be used, and --fault-share {self._share:g} "
                f"allows at most {self._allowed}; {listed}the last fault is: {faults[-1].sentence}"
            )


def _line(fault: Fault) -> bytes:
    line = {"number": fault.number, "name": fault.name, "fault": fault.sentence}
    return json.dumps(line).encode() + b"\n"


def picture_parts(
    model: Model,
    pictures: Pictures,
    stamp: Stamp,
    plan: Plan,
    faults: FaultLog,
    missing: Sequence[range] | None = None,
    *,
    workers: int | None = None,
    progress: Progress = quiet,
) -> Iterator[Part]:
    """The parts of pictures, in their order.

    Args:
        missing: of the plan's parts, those that are wanted; by default all.
        workers: processes that decode, 0 for none beside this one; by default one for each core, up to `MOST_WORKERS`,
            if there are `MANY` pictures.
        progress: told of every batch.

    Raises:
        ClipError: too many pictures cannot be used, or the model's features cannot; or a process that decodes has died.
    """
    missing = list(plan.parts()) if missing is None else missing
    if workers is None:
        workers = min(MOST_WORKERS, os.cpu_count() or 1) if sum(map(len, missing)) >= MANY else 0
    tower = model.architecture.image
    decode = Decode(pictures, tower.resolution, tower.pixels)
    batches = (batch for part in missing for batch in plan.batches(part))
    with closing(in_order(decode, batches, workers, DIED)) as decoded:
        made = (Embedded(embedded(model, each.pixels, stamp), each.columns, each.faults) for each in decoded)
        yield from collected(made, plan, faults, missing, progress)


def collected(
    batches: Iterator[Embedded], plan: Plan, faults: FaultLog, missing: Sequence[range], progress: Progress = quiet
) -> Iterator[Part]:
    """The parts ``missing`` of a plan, of their batches, which come in order.

    Raises:
        ClipError: too many pictures cannot be used.
    """
    done = plan.total - sum(map(len, missing))
    progress("pictures", done, plan.total, faults.count)
    for part in missing:
        of_part: list[Embedded] = []
        for batch in plan.batches(part):
            of_part.append(next(batches))
            faults.add(of_part[-1].faults)
            done += len(batch)
            progress("pictures", done, plan.total, faults.count)
        yield joined(plan, part, of_part)


def text_parts(
    model: Model,
    texts: Sequence[str],
    source: str,
    stamp: Stamp,
    plan: Plan,
    faults: FaultLog,
    missing: Sequence[range] | None = None,
    *,
    truncate: bool = False,
    progress: Progress = quiet,
) -> Iterator[Part]:
    """The parts of texts, in their order.

    Args:
        source: of the texts, which their ids begin with.
        truncate: cut texts that are too long for the model; otherwise they are faults.
        missing, progress: as of `picture_parts`.

    Raises:
        ClipError: as `picture_parts`, or the model's tokenizer cannot be had.
    """
    missing = list(plan.parts()) if missing is None else missing
    done = plan.total - sum(map(len, missing))
    length = model.architecture.text.context_length
    for part in missing:
        columns: dict[str, list[Any]] = {"id": [], "text": []}
        of_part: list[Fault] = []
        for number in part:
            try:
                model.tokenizer.check(texts[number], None if truncate else length, REMEDY)
                columns["id"].append(f"{source}#{number}")
                columns["text"].append(texts[number])
            except TextError as error:
                of_part.append(Fault(number, f"{source}#{number}", str(error)))
        faults.add(of_part)
        features = np.empty((0, model.architecture.embed_dim), np.float32)
        if columns["text"]:
            features = embed_texts(model, model.tokenizer.tokenize(columns["text"], length, truncate=True))
        done += len(part)
        progress("texts", done, plan.total, faults.count)
        yield Part(plan.place(part, of_part), kept(model, features, stamp), columns)


@dataclass(frozen=True)
class Run:
    """A folder that the parts of one input are written into, held against other processes."""

    folder: Path
    stamp: Stamp
    format: Format
    faults: FaultLog
    missing: tuple[range, ...]  # of the plan's parts, those that are not there yet

    def write(self, part: Part) -> None:
        """Write a part, whole or not at all."""
        parts.write(self.folder, part, self.stamp, self.format)


@contextmanager
def run_in(
    folder: str | os.PathLike[str],
    plan: Plan,
    stamp: Stamp,
    *,
    format: Format = "parquet",
    fault_share: float = 0.01,
    resume: bool = False,
    what: str = "pictures",
) -> Iterator[Run]:
    """Begin to write embeddings, or go on.

    Args:
        fault_share: of the input that may be left out.
        resume: go on with what is there; otherwise the folder must have no embeddings.
        what: the input is of.

    Raises:
        ClipError: the folder cannot be written, is in use, or has other embeddings.
    """
    folder = Path(folder)
    with exclusive(folder, "clip embed"):
        there: Parts | None = None
        if not resume:
            check_new(folder)
        elif parts.any_in(folder):
            there = Parts(folder, whole=False)
            _check_alike(there, plan, stamp, format)
        faults = FaultLog(plan.total, fault_share, folder / FAULTS, what)
        faults.begin([] if there is None else there.faults)
        have = set() if there is None else {place.first for place in there.places}
        yield Run(folder, stamp, format, faults, tuple(part for part in plan.parts() if part.start not in have))


def check_new(folder: Path) -> None:
    """Refuse a folder that has embeddings.

    Raises:
        ClipError: it has some, or cannot be read.
    """
    if folder.is_dir() and parts.any_in(folder):
        raise ClipError(f"{folder} has embeddings already; go on with --resume, or give another folder.")


def _check_alike(there: Parts, plan: Plan, stamp: Stamp, format: Format) -> None:
    """Refuse to go on with embeddings that this run would not make.

    Raises:
        ClipError: saying what differs.
    """
    fault = None
    planned = {part.start: part.stop for part in plan.parts()}
    if there.stamp != stamp:
        fault = f"were made otherwise: {there.stamp.change(stamp)}"
    elif (there.total, there.inputs) != (plan.total, plan.inputs):
        fault = f"are of another input, of {there.total} and now {plan.total}"
    elif any(planned.get(place.first) != place.end for place in there.places):
        fault = "are in parts of another size"
    elif there.format != format:
        fault = f"have the format {there.format}, not {format}"
    if fault is not None:
        raise ClipError(f"The embeddings in {there.folder} {fault}; go on with what they had, or give another folder.")
