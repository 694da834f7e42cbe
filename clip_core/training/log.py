"""What a training run tells: one JSON object per step, a progress bar, and the loss curve as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clip_core.files import appending, read_regular, write_bytes, write_text

METRICS = "metrics.jsonl"
CURVE = "loss.png"

Metrics = dict[str, Any]


@contextmanager
def metrics_file(run: Path, after: int) -> Iterator[Any]:
    """A function that appends one object to ``metrics.jsonl``; lines of steps later than ``after`` are dropped first.

    A resumed run thus has each step once.
    """
    path = run / METRICS
    kept = [line for line in read_metrics(run) if line["step"] <= after]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    with appending(path) as file:

        def append(metrics: Metrics) -> None:
            file.write(json.dumps(metrics).encode() + b"\n")
            file.flush()

        yield append


def read_metrics(run: Path) -> list[Metrics]:
    """The objects of ``metrics.jsonl``; a last line that was cut off is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = read_regular(path).decode().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class ProgressBar:
    """Epoch, step, loss, logit scale, learning rate, samples per second and time left, on the terminal."""

    def __init__(self, steps: int, done: int, console: Console | None = None) -> None:
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[report]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self.task = self.progress.add_task("training", total=steps, completed=done, epoch=1, report="")

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, epoch: int, metrics: Metrics) -> None:
        report = (
            f"loss {metrics['loss']:.4f}  scale {metrics['logit_scale']:.1f}  "
            f"rate {metrics['learning_rate']:.1e}  {metrics['samples_per_second']:.0f} samples/s"
        )
        self.progress.update(self.task, completed=metrics["step"], epoch=epoch, report=report)


def plot(run: Path) -> Path:
    """Draw the loss and the learning rate of all steps as ``loss.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, so only at the end of a run
    from matplotlib.figure import Figure

    metrics = read_metrics(run)
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="loss of each step")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, mean of the last 50 steps")
    axes.set(xlabel="step", ylabel="contrastive loss", yscale="log")
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rate_axes.plot(steps, [line["learning_rate"] for line in metrics], color="tab:orange", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(run / CURVE, picture.getvalue())
    return run / CURVE


def _smooth(values: list[float], window: int = 50) -> list[float]:
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
