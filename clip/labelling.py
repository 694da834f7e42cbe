"""Zero-shot labels of many pictures, written row by row as they are found."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip.api import LoadedModel
from clip.embedding import open_stamped
from clip.zero_shot import label_tokens, scores, template_for
from clip_core import files
from clip_core.batching import embed_texts
from clip_core.data.collection.lists import write_csv
from clip_core.embedding import engine, sources
from clip_core.embedding.engine import REMEDY, FaultLog, Plan
from clip_core.embedding.parts import Part, Parts, any_in
from clip_core.embedding.sources import Columns, Pictures
from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError
from clip_core.evaluation import prompts
from clip_core.evaluation.features import BATCH, Progress, quiet
from clip_core.parquet import require_pyarrow
from clip_core.similarity import normalize


class Row(NamedTuple):
    """A label of a picture; rank 1 is the best."""

    path: str
    rank: int
    label: str
    probability: float


@dataclass(frozen=True)
class Labelled:
    """What became of a run."""

    pictures: int
    counts: Counter[str]  # label -> pictures that it fits best
    faults: int


def label(
    pictures: Sequence[str],
    labels: Sequence[str],
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] = "shapes",
    *,
    templates: str | None = None,
    top_k: int = 1,
    columns: Columns = Columns(),  # noqa: B008  # it is frozen
    backend: str | None = None,
    device: Any = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    batch_size: int = BATCH,
    workers: int | None = None,
    truncate: bool = False,
    fault_share: float = 0.01,
    force: bool = False,
    progress: Progress = quiet,
) -> Labelled:
    """Write the best labels of each picture into a table.

    Args:
        pictures: as `clip_core.embedding.sources` describes, or a folder of embeddings, which are not computed again.
        labels: what a picture may show, each once.
        output: a name that ends in .csv, .jsonl or .parquet. Pictures that cannot be used are listed beside it.
        templates: for the texts of a label: a name or a file as `clip_core.evaluation.prompts` takes them, the mean of
            which stands for the label; by default the one that suits the model.
        top_k: labels of each picture, the best first.
        force: replace a table that is there.
        columns, model, backend, device, precision, like, activation, heads, batch_size, workers, truncate, fault_share,
            progress: as for `clip.embedding.embed_into`.

    Raises:
        ClipError: the model, a label or too many pictures cannot be used, or the table cannot be written.
    """
    target = Path(output)
    if target.suffix not in _WRITERS:
        raise ClipError(f"{target} is no table by its name; give one that ends in {', '.join(_WRITERS)}.")
    if target.suffix == ".parquet":
        require_pyarrow(target, ", or write .csv")
    files.check_target(target, force=force)
    chosen = prompts.resolved(templates, "imagenet")
    opened = _open(pictures, columns)
    loaded, stamp = open_stamped(
        model, backend=backend, device=device, precision=precision, like=like, activation=activation, heads=heads
    )
    features = _features_of(loaded, labels, chosen or (template_for(loaded),), truncate)
    faults = FaultLog(len(opened), fault_share, target.with_name(f"{target.stem}.faults.jsonl"))
    parts: Iterable[Part]
    if isinstance(opened, Parts):
        _check_comparable(opened, stamp)
        parts = opened
    else:
        faults.begin([])
        plan = Plan(len(opened), "", batch_size)
        parts = engine.picture_parts(loaded.model, opened, stamp, plan, faults, workers=workers, progress=progress)
    counts: Counter[str] = Counter()

    def batches() -> Iterator[list[Row]]:
        for part in parts:
            rows = list(_rows(loaded, part, features, labels, top_k))
            counts.update(row.label for row in rows if row.rank == 1)
            yield rows

    _WRITERS[target.suffix](target, batches(), force)
    return Labelled(len(opened), counts, faults.count)


def _open(pictures: Sequence[str], columns: Columns) -> Pictures | Parts:
    """The pictures, or the embeddings of pictures in a folder."""
    if len(pictures) == 1 and os.path.isdir(pictures[0]) and _has_embeddings(pictures[0]):
        return Parts(pictures[0])
    return sources.open_pictures(pictures, columns)


def _has_embeddings(folder: str) -> bool:
    with suppress(ClipError):  # it has other Parquet files
        return any_in(Path(folder))
    return False


def _check_comparable(there: Parts, stamp: Stamp) -> None:
    """Refuse embeddings that labels of this model cannot be compared with.

    Raises:
        ClipError: saying what differs.
    """
    if there.texts:
        raise ClipError(f"{there.folder} has embeddings of texts; give those of pictures.")
    if difference := there.stamp.difference(stamp):
        raise ClipError(f"{there.folder} cannot be labelled with this model: {difference}")


def _features_of(loaded: LoadedModel, labels: Sequence[str], templates: Sequence[str], truncate: bool) -> np.ndarray:
    """Unit features float32 [m, d] of labels, each the mean over the templates."""
    of_each = [
        normalize(embed_texts(loaded.model, label_tokens(loaded, labels, template, REMEDY, truncate)))
        for template in templates
    ]
    return of_each[0] if len(of_each) == 1 else normalize(np.mean(of_each, axis=0))


def _rows(loaded: LoadedModel, part: Part, features: np.ndarray, labels: Sequence[str], top_k: int) -> Iterator[Row]:
    found = scores(loaded, part.embeddings.astype(np.float32), features)
    best = np.argsort(-found.logits, axis=1, kind="stable")[:, :top_k]
    for path, places, probabilities in zip(part.columns["path"], best, found.probabilities):
        for rank, place in enumerate(places.tolist(), 1):
            yield Row(path, rank, labels[place], float(probabilities[place]))


def _write_csv(target: Path, batches: Iterator[list[Row]], replace: bool) -> None:
    write_csv(target, Row._fields, chain.from_iterable(batches), replace)


def _write_json_lines(target: Path, batches: Iterator[list[Row]], replace: bool) -> None:
    with files.atomic_open(target, replace) as file:
        for rows in batches:
            file.writelines(json.dumps(row._asdict()).encode() + b"\n" for row in rows)


def _write_parquet(target: Path, batches: Iterator[list[Row]], replace: bool) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    types = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float64())
    schema = pyarrow.schema(list(zip(Row._fields, types)))
    with files.atomic_open(target, replace) as file, ParquetWriter(file, schema) as writer:
        for rows in batches:
            writer.write_table(pyarrow.Table.from_pylist([row._asdict() for row in rows], schema))


_WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
