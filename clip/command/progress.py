"""How far a long command is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from clip.command.output import errors

INTERVAL = 30.0  # seconds between two lines


class Bar:
    """Told what is done, how much of it, and how much could not be; shows rate, time left and faults."""

    def __init__(self, before: str = "") -> None:
        self.before = before  # what is being done to it, for the reader
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[faults]}"),
            console=errors,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._told = monotonic()

    def __call__(self, what: str, done: int, total: int, faults: int) -> None:
        now = monotonic()
        title = f"{self.before} {what}".strip()
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, rate="", faults="")
            self._started[title] = now, done
        started, first = self._started[title]
        rate = f"{(done - first) / (now - started):.0f} {what}/s" if done > first and now > started else ""
        unusable = f"{faults} faults" if faults else ""
        self._progress.update(self._tasks[title], completed=done, total=total, rate=rate, faults=unusable)
        if not errors.is_terminal and now - self._told > INTERVAL:
            self._told = now
            errors.print("  ".join(part for part in (f"{title} {done}/{total}", rate, unusable) if part))

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        """Show it while the block runs."""
        if not errors.is_terminal:
            yield self
            return
        with self._progress:
            yield self
