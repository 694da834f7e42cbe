"""How far a long command is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clip.command.output import errors

INTERVAL = 30.0  # seconds between two lines


class Bar:
    """Told what is done, how much of it, and how much could not be; shows rate, time left and faults."""

    def __init__(self) -> None:
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
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, rate="", faults="")
            self._started[what] = now, done
        started, first = self._started[what]
        rate = f"{(done - first) / (now - started):.0f}/s" if done > first and now > started else ""
        unusable = f"{faults} faults" if faults else ""
        self._progress.update(self._tasks[what], completed=done, total=total, rate=rate, faults=unusable)
        if not errors.is_terminal and now - self._told > INTERVAL:
            self._told = now
            errors.print("  ".join(part for part in (f"{what} {done}/{total}", rate, unusable) if part))

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        """Show it while the block runs."""
        if not errors.is_terminal:
            yield self
            return
        with self._progress:
            yield self


@contextmanager
def downloading(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give what a download tells of the bytes that are there and the bytes in all; a terminal shows them."""
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
