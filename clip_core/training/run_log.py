"""Where the metrics of a training run go: JSON lines, the progress on standard error, and files for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from clip_core.errors import ClipError
from clip_core.files import appending, read_regular, write_text
from clip_core.training.monitors import NNablaMonitor, TensorBoard
from clip_core.training.progress import Metrics, ProgressBar, ProgressLines, Scores, say, silence
from clip_core.training.recipe import Log

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.jsonl"
NEEDED = {"step", "learning_rate"}  # of a line of the metrics


class Sink(Protocol):
    """Where the metrics of a run go."""

    def step(self, metrics: Metrics) -> None: ...

    def evaluation(self, step: int, scores: Scores) -> None: ...


class RunLog:
    """All that the metrics of a run go to, written by one process.

    A sink that cannot be written to does not end the training: the others go on, and it is tried again. What is
    missing at the end is said on standard error when the ``with`` block ends.

    Args:
        run: folder of the run.
        settings: which sinks there are beside the JSON lines and the progress.
        after: the step that the run goes on from; what was written of later ones is dropped.
        last: the step that it ends at.

    Raises:
        ClipError: a file cannot be written; only here.
    """

    def __init__(self, run: Path, settings: Log, after: int, last: int) -> None:
        self._files = ExitStack()
        self._missing: dict[str, tuple[int, Exception]] = {}  # sink -> how often it failed, and how at last
        self._sinks: dict[str, Sink] = {}
        with self._files:
            self._sinks["the JSON lines"] = JsonLines(run, after, self._files)
            if settings.tensorboard:
                self._sinks["TensorBoard's event file"] = TensorBoard(run, after, self._files)
            if settings.nnabla_monitor:
                self._sinks["NNabla's monitor files"] = NNablaMonitor(run, after)
            terminal = sys.stderr is not None and sys.stderr.isatty()
            progress = ProgressBar(after, last) if terminal else ProgressLines(after, last)
            self._files.callback(self._try, "the progress", progress.close)
            self._sinks["the progress"] = progress
            self._files = self._files.pop_all()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        self._missing.pop("the progress", None)  # nobody can be told there
        if self._missing:
            faults = [f"{sink} ({count} times: {error})" for sink, (count, error) in self._missing.items()]
            say(f"Warning: training went on, but not all of it could be written: {', '.join(faults)}.")

    def step(self, metrics: Metrics) -> None:
        """Tell of a training step."""
        for name, sink in self._sinks.items():
            self._try(name, sink.step, metrics)

    def evaluation(self, step: int, scores: Scores) -> None:
        """Tell of the scores after a step."""
        for name, sink in self._sinks.items():
            self._try(name, sink.evaluation, step, scores)

    def _try(self, name: str, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except (ClipError, OSError, ValueError) as error:  # ValueError: of a file that was closed
            self._missing[name] = self._missing.get(name, (0, error))[0] + 1, error
            if name == "the progress":
                silence()


class JsonLines:
    """``metrics.jsonl`` with an object per step, and ``evaluation.jsonl`` with one per evaluation, if there is any."""

    def __init__(self, run: Path, after: int, files: ExitStack) -> None:
        self._run, self._files = run, files
        for name in (METRICS, EVALUATION):
            kept = [line for line in read_metrics(run, name, say) if line["step"] <= after]
            if name == METRICS or (run / name).exists():
                write_text(run / name, "".join(json.dumps(line) + "\n" for line in kept))
        self._metrics = files.enter_context(appending(run / METRICS))

    def step(self, metrics: Metrics) -> None:
        self._metrics.write(_line(metrics))

    def evaluation(self, step: int, scores: Scores) -> None:
        with appending(self._run / EVALUATION) as file:
            file.write(_line({"step": step, **scores}))


def _line(numbers: Mapping[str, Any]) -> bytes:
    """JSON has no word for a number that is not finite; it becomes ``null``."""
    known = {name: None if isinstance(x, float) and not isfinite(x) else x for name, x in numbers.items()}
    return json.dumps(known).encode() + b"\n"


def read_metrics(run: Path, name: str = METRICS, tell: Callable[[str], None] = lambda sentence: None) -> list[Metrics]:
    """The objects of ``metrics.jsonl`` or of another such file.

    What a power cut or another program has left there is passed over: a last line that was cut off, and lines that are
    not such an object.

    Args:
        tell: called once with how many of the lines are damaged, if any.
    """
    path = run / name
    if not path.is_file():
        return []
    *lines, _ = read_regular(path).split(b"\n")
    found = [_metrics_of(line, NEEDED if name == METRICS else {"step"}) for line in lines]
    whole = [metrics for metrics in found if metrics is not None]
    damaged = len(found) - len(whole)
    if damaged:
        tell(f"Passed over: {damaged} damaged {'line' if damaged == 1 else 'lines'} of {path}.")
    return whole


def _metrics_of(line: bytes, needed: set[str]) -> Metrics | None:
    """The numbers of a line, each finite or None; None for a line that is damaged."""
    try:
        found = json.loads(line.decode())
        numbers = [value for value in found.values() if value is not None]
        if not needed <= found.keys() or not all(isinstance(number, int | float) for number in numbers):
            return None
        sound = all(isfinite(number) for number in numbers) and all(found[name] is not None for name in needed)
        return found if sound and type(found["step"]) is int else None
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
