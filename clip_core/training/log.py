"""What a training run tells: JSON lines, the progress on standard error, and the curves as a picture."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip_core.errors import ClipError
from clip_core.files import appending, read_regular, write_bytes, write_text
from clip_core.training.monitors import NNablaMonitor, TensorBoard
from clip_core.training.recipe import Log

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.jsonl"
CURVE = "loss.png"
NEEDED = {"step", "learning_rate"}  # of a line of the metrics

Metrics = dict[str, Any]  # of a step: its numbers by name
Scores = Mapping[str, float]


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


def say(sentence: str) -> None:
    """One line on standard error, which may be closed."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence()


def silence() -> None:
    """Send standard error nowhere: nobody reads it, and what cannot be written must not change the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


class ProgressBar:
    """Epoch, step, time left and as many numbers of the last step as there is room for, on a terminal."""

    REFRESH = 0.1  # seconds between two pictures of the bar

    def __init__(self, done: int, last: int, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console or Console(stderr=True),
            auto_refresh=False,  # a thread of its own would have errors of its own
        )
        self._task = self._progress.add_task("training", total=last, completed=done, epoch=1, numbers="")
        self._last, self._skipped, self._scores = last, 0, ""
        self._refreshed = monotonic()
        self._progress.start()

    def step(self, metrics: Metrics) -> None:
        self._skipped += metrics.get("skipped", False)
        done = metrics["step"]
        taken = len(f"epoch {metrics['epoch']} {'':10} {self._last}/{self._last} 000:00:00 ")
        room = self._progress.console.width - taken
        numbers = ""
        for part in [*_numbers(metrics, self._skipped), self._scores]:
            if part and len(numbers) + len(part) + 2 <= room:
                numbers += f"  {part}" if numbers else part
        self._progress.update(self._task, completed=done, epoch=metrics["epoch"], numbers=numbers)
        now = monotonic()
        if now - self._refreshed > self.REFRESH:
            self._refreshed = now
            self._progress.refresh()

    def evaluation(self, step: int, scores: Scores) -> None:
        self._scores = next(iter(_scores(scores)), "")
        self._progress.console.print(f"step {step}: {', '.join(_scores(scores))}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class ProgressLines:
    """A line for the first step, the last, every half minute between them, and each evaluation."""

    INTERVAL = 30.0  # seconds

    def __init__(self, done: int, last: int) -> None:
        self._done, self._last = done, last
        self._started = monotonic()
        self._told = -self.INTERVAL
        self._skipped = 0

    def step(self, metrics: Metrics) -> None:
        self._skipped += metrics.get("skipped", False)
        step, elapsed = metrics["step"], monotonic() - self._started
        if step < self._last and elapsed - self._told < self.INTERVAL:
            return
        self._told = elapsed
        left = timedelta(seconds=round(elapsed / (step - self._done) * (self._last - step)))
        parts = [f"step {step}/{self._last}", f"epoch {metrics['epoch']}", f"{left} left"]
        print("  ".join([*parts, *_numbers(metrics, self._skipped)]), file=sys.stderr, flush=True)

    def evaluation(self, step: int, scores: Scores) -> None:
        print(f"step {step}: {', '.join(_scores(scores))}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Every line stands already."""


def _numbers(metrics: Metrics, skipped: int) -> list[str]:
    """The numbers of a step in words, the most important first."""
    return [
        f"loss {metrics['loss']:.4f}",
        f"{metrics['samples_per_second']:.0f} samples/s",
        *([f"skipped {skipped}"] if skipped else []),
        f"top-1 {metrics['top1']:.0%}",
        f"scale {metrics['logit_scale']:.1f}",
        f"rate {metrics['learning_rate']:.1e}",
    ]


def _scores(scores: Scores) -> list[str]:
    return [f"{name} {score:.4g}" for name, score in scores.items()]


def plot(run: Path) -> Path:
    """Draw the loss and the learning rate of all steps as ``loss.png``, and the scores below them if there are any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, so only at the end of a run
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    metrics = [line for line in read_metrics(run) if line.get("loss") is not None]
    evaluations = read_metrics(run, EVALUATION)
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    figure = Figure(figsize=(9, 9 if evaluations else 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(2 if evaluations else 1, squeeze=False, sharex=True)[:, 0]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="loss of each step")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, mean of the last 50 steps")
    axes.set(xlabel="step", ylabel="contrastive loss")
    if any(loss > 0 for loss in losses):  # batches of one pair have a loss of 0
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))  # 2 and 3 rather than 2 x 10^0
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rate_axes.plot(steps, [line["learning_rate"] for line in metrics], color="tab:orange", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3)
    for panel in below:
        _plot_scores(panel, evaluations)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(run / CURVE, picture.getvalue())
    return run / CURVE


def _plot_scores(axes: Any, evaluations: list[Metrics]) -> None:
    """Shares on the left axis, losses on the right one."""
    names = list(dict.fromkeys(name for line in evaluations for name in line if name not in ("step", "faults")))
    loss_axes = axes.twinx()
    curves = []
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in evaluations if line.get(name) is not None]
        own, style = (loss_axes, ".--") if name.endswith("loss") else (axes, ".-")
        curves += own.plot(*zip(*points), style, color=f"C{number}", label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="share found")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    loss_axes.set_ylabel("loss")
    loss_axes.ticklabel_format(useOffset=False)
    loss_axes.set_visible(any(name.endswith("loss") for name in names))
    axes.legend(handles=curves, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _smooth(values: list[float], window: int = 50) -> list[float]:
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
