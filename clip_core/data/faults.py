"""Examples that cannot be used: listed in a file, counted, and the end of the run when there are too many."""

from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import NamedTuple

from clip_core.errors import ClipError
from clip_core.files import appending, read_regular, write_bytes

FAULTS = "faults.jsonl"  # of the run, whose examples could not be used


class Fault(NamedTuple):
    """An example that was skipped."""

    row: int  # its place among all that this process has asked for, from 0
    example: int  # its number in the source
    sentence: str


class FaultReport:
    """The faults of a run so far; ``count`` may be set to go on from there.

    Args:
        path: a file with one object per fault (row, example, fault); ``None`` only counts.
        share: of the examples of each epoch that has begun that may be faulty.
        rows: examples that this process asks for in an epoch.
    """

    def __init__(self, path: Path | None, share: float, rows: int):
        self._path, self._share, self._rows = path, share, rows
        self.count = 0

    def begin(self) -> None:
        """Remove the faults beyond the count from the file: a run that got further wrote them, and they recur."""
        if self._path is not None and self._path.exists():
            lines = read_regular(self._path).splitlines(keepends=True)
            write_bytes(self._path, b"".join(lines[: self.count]))

    def add(self, fault: Fault) -> None:
        """Count and write down.

        Raises:
            ClipError: the share is exceeded.
        """
        if self._path is not None:
            line = {"row": fault.row, "example": fault.example, "fault": fault.sentence}
            with appending(self._path) as file:
                file.write(json.dumps(line).encode() + b"\n")
        self.count += 1
        rows = self._rows * (fault.row // self._rows + 1)
        if self.count > self._share * rows:
            listed = "" if self._path is None else f"all are listed in {self._path}; "
            raise ClipError(
                f"{self.count} examples could not be used, and data.fault_share = {self._share} allows at most "
                f"{floor(self._share * rows)} in {rows}; {listed}the last one is: {fault.sentence} Mend the data."
            )
