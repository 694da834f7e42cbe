"""What a training run tells people on standard error: sentences, and how far it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Metrics = dict[str, Any]  # of a step: its numbers by name
Scores = Mapping[str, float]


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
