"""Scores of a model on a data set, in one backend or several, whose choices are compared then."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

import backends
from clip import report
from clip.api import open_model, weights_file
from clip.versions import versions
from clip_core import files
from clip_core.data.families import FAMILIES
from clip_core.data.settings import setting_error
from clip_core.errors import ClipError
from clip_core.evaluation.agreement import Agreement, agreement
from clip_core.evaluation.conformal import check_error
from clip_core.evaluation.features import BATCH, Pictures, Progress, Store, quiet, state
from clip_core.evaluation.scores import ERROR, Columns, Scores
from clip_core.evaluation.sentences import SENTENCES, SentenceSettings
from clip_core.evaluation.sets import SETS
from clip_core.evaluation.sets.labelled import LabelledSettings, Part
from clip_core.evaluation.tasks import Encoded, Encoder, Probe, Retrieval, SentencePairs, Task, ZeroShot
from clip_core.evaluation.typographic import Typographic
from clip_core.evaluation.world import World
from converters import files_of

FORMAT = 1
TRAINING_SHARE = 0.8  # of the pictures of a set without a training split


@dataclass(frozen=True)
class Evaluation:
    """What became of an evaluation."""

    report: dict[str, Any]  # plain data for JSON
    scores: dict[str, Scores]  # by backend
    agreement: dict[str, Agreement]  # by what is chosen; of one backend alone, nothing

    @property
    def disagreement(self) -> float:
        """The largest share of samples for which the backends do not all choose the same."""
        return max((found.disagreement for found in self.agreement.values()), default=0.0)


def task_of(kind: str, folder: str | os.PathLike[str] | None = None, **keys: Any) -> Task:
    """The task that a published data set is for.

    Args:
        kind: the name of the data set, as in a recipe.
        folder: of its files as they are published.
        keys: the other keys that a recipe would give it, such as ``templates`` or ``split``.

    Raises:
        ClipError: there is no such data set or key, files are missing, or they are in another layout.
    """
    settings = settings_of(kind, folder, {"pictures_per_class": 50, **keys} if kind == "shapes" else keys)
    task: Task
    if kind == "shapes":
        task = World(settings.pictures_per_class)
    elif isinstance(settings, LabelledSettings):
        task = ZeroShot(settings.labelled())
    elif isinstance(settings, SentenceSettings):
        task = SentencePairs(settings.pairs())
    else:
        task = Retrieval(settings.open(0))
    task.settings = settings.model_dump(mode="json")
    return task


def probe_of(
    kind: str,
    folder: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    shots: int | None = None,
    seed: int = 0,
    **keys: Any,
) -> Probe:
    """A linear probe on a published data set with classes.

    Args:
        kind, folder, keys: as for `task_of`.
        train: a folder like ``folder`` with the training pictures, in the training split of a set that has splits. By
            default they are the set's own training split, and those of a set that has none are `TRAINING_SHARE` of its
            pictures, chosen at random.
        shots: training pictures of each class; by default all.
        seed: of what is chosen at random.

    Raises:
        ClipError: as `task_of`, or the set has no classes.
    """
    settings = settings_of(kind, folder, keys)
    if not isinstance(settings, LabelledSettings):
        raise ClipError(f"A probe needs pictures with classes, and {kind} has none; choose one of {', '.join(SETS)}.")
    test = settings.labelled()
    has_splits = "split" in type(settings).model_fields
    if has_splits or train is not None:
        of_train = {**keys, "split": "train"} if has_splits else keys
        probe = Probe(settings_of(kind, folder if train is None else train, of_train).labelled(), test, shots, seed)
    else:
        places = np.random.default_rng(seed).permutation(len(test))
        of_train, of_test = np.split(places, [round(TRAINING_SHARE * len(test))])
        probe = Probe(Part(test, np.sort(of_train)), Part(test, np.sort(of_test)), shots, seed)
    probe.settings = {**settings.model_dump(mode="json"), "train": None if train is None else os.fspath(train)}
    return probe


def typographic_of(kind: str, folder: str | os.PathLike[str] | None = None, seed: int = 0, **keys: Any) -> Typographic:
    """A typographic attack on a data set with classes; arguments as of `probe_of`.

    Raises:
        ClipError: as `probe_of`, or there are fewer than two classes, or one has a name that cannot be written.
    """
    settings = settings_of(kind, folder, keys)
    if not isinstance(settings, LabelledSettings):
        raise ClipError(
            f"An attack needs pictures with classes, which {kind} has not; choose one of {', '.join(SETS)}."
        )
    task = Typographic(settings.labelled(), seed)
    task.settings = settings.model_dump(mode="json")
    return task


def settings_of(kind: str, folder: str | os.PathLike[str] | None, keys: Mapping[str, Any]) -> Any:
    """The settings of a published data set; arguments as of `task_of`.

    Raises:
        ClipError: there is no such data set or key.
    """
    kinds = {**FAMILIES, **SETS, **SENTENCES}
    if kind not in kinds:
        raise ClipError(f"There is no data set {kind!r}; choose one of {', '.join(sorted(kinds))}.")
    given = {"kind": kind, **({} if folder is None else {"folder": os.fspath(folder)}), **keys}
    try:
        return kinds[kind].model_validate(given)
    except ValidationError as error:
        raise ClipError(f"The data set {kind}: {setting_error(error, kinds[kind])}") from error


def evaluate(
    data: str | Task | Callable[[], Task],
    model: str | os.PathLike[str] = "shapes",
    *,
    folder: str | os.PathLike[str] | None = None,
    keys: Mapping[str, Any] | None = None,
    backend: str | Sequence[str] | None = None,
    device: Any = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    limit: int | None = None,
    batch_size: int = BATCH,
    workers: int | None = 0,
    fault_share: float = 0.01,
    seed: int = 0,
    error: float = ERROR,
    output: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Evaluation:
    """Score a model on a data set.

    Args:
        data: the name of a published data set, a task, or what opens one.
        model: a model's name, a weights file, or a folder with one.
        folder: of the data set's files.
        keys: the other keys that a recipe would give the data set.
        backend: one, or several that are compared; by default as for `clip.load`.
        device, precision, like, activation, heads: as for `clip.load`.
        limit: only the first pictures or pairs; those of a set with classes have nearly as many of each class.
        batch_size: pictures that are encoded at once.
        workers: processes that decode pictures, as for `clip.embed`; by default there are none.
        fault_share: of the pictures that may be unusable, and are left out.
        seed: of confidence intervals, and of the halves that calibration is fitted to and judged on.
        error: of the prediction sets of classes: the share of pictures whose set may lack their class.
        output: a folder for report, figures and a row for each sample. It keeps the features of pictures: a run that is
            interrupted goes on there, and one with other prompts encodes no picture again.
        plot: a file for a picture of the scores.
        force: replace a report that is there.
        progress: told of every batch.

    Raises:
        ClipError: the data or the model cannot be used.
    """
    check_error(error)
    if not (backend is None or backend):
        raise ClipError("No backend is given; name one or more, or leave backend out.")
    _check_counts(limit, batch_size, workers, fault_share, seed)
    report.check(output, plot, force)
    names: list[str | None] = [backend] if backend is None or isinstance(backend, str) else [*dict.fromkeys(backend)]
    for name in names:
        if name is not None:
            backends.get(name)  # before the work, not in the middle of it
    task = data
    if callable(task):
        task = task()
    elif isinstance(task, str):
        task = task_of(task, folder, **(keys or {}))
    file = weights_file(model)[0]
    digests = {path.name: files.sha256(path) for path in files_of(file)}
    encoded: dict[str, Encoded] = {}
    scores: dict[str, Scores] = {}
    for name in names:
        loaded = open_model(
            model, backend=name, device=device, precision=precision, like=like, activation=activation, heads=heads
        )
        provenance = {
            "model": digests,
            "architecture": loaded.model.architecture.to_dict(),
            "backend": loaded.model.backend,
            "device": None if device is None else str(device),
            "precision": precision,
            "versions": versions(loaded.model.backend),
        }
        encoder = Encoder(
            loaded.model,
            loaded.model.tokenizer,
            batch_size,
            workers,
            limit,
            fault_share,
            partial(_store, output, provenance),
            progress if len(names) == 1 else partial(_told_of, progress, loaded.model.backend),
        )
        encoded[loaded.model.backend] = task.encode(encoder)
        scores[loaded.model.backend] = task.score(encoded[loaded.model.backend], loaded.logit_scale, seed, error)
    agreed = _agreements(task, encoded) if len(encoded) > 1 else {}
    result = {
        "format": FORMAT,
        "task": task.title,
        "data": {**task.settings, **task.description},
        "model": {"name": loaded.name, "files": digests, "assumed": list(loaded.assumed)},
        "precision": precision,
        "limit": limit,
        "seed": seed,
        "versions": versions(*encoded),
        "results": {
            name: found.to_dict() | dict(encoded[name].chosen) | {"faults": encoded[name].faults}
            for name, found in scores.items()
        },
        "agreement": {name: found.to_dict() for name, found in agreed.items()},
    }
    if output is not None:
        samples: dict[str, Columns] = {
            name: {"name": task.names(encoded[name]), **found.samples()} for name, found in scores.items()
        }
        report.write(output, result, scores, samples, agreed, force)
    if plot is not None:
        report.draw(plot, result, scores, agreed, force)
    return Evaluation(result, scores, agreed)


def _check_counts(limit: int | None, batch_size: int, workers: int | None, fault_share: float, seed: int) -> None:
    for name, number, least in (
        ("limit", limit, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("seed", seed, 0),
    ):
        if number is not None and number < least:
            raise ClipError(f"{name} is {number}; give a whole number from {least} on.")
    if not 0 <= fault_share <= 1:
        raise ClipError(f"fault_share is {fault_share}; give a share from 0 to 1.")


def _told_of(progress: Progress, backend: str, what: str, done: int, total: int, faults: int) -> None:
    """Tell ``progress`` in which of several backends something is done."""
    progress(f"{backend}: {what}", done, total, faults)


def _store(
    output: str | os.PathLike[str] | None, made_by: Mapping[str, Any], pictures: Pictures, fingerprint: str
) -> Store | None:
    """Where the features of pictures with this fingerprint are kept."""
    if output is None:
        return None
    return Store(Path(output, "features"), {**made_by, "pictures": fingerprint, "files": state(pictures.files())})


def _agreements(task: Task, encoded: Mapping[str, Encoded]) -> dict[str, Agreement]:
    """How far the backends choose alike, of each kind of choice."""
    by_backend = {name: task.choices(each) for name, each in encoded.items()}
    first = next(iter(by_backend.values()))
    return {choice: agreement({name: found[choice] for name, found in by_backend.items()}) for choice in first}
