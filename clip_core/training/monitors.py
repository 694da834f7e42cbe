"""What other programs show of a run: TensorBoard's event files and the text files of ``nnabla.monitor``.

Both formats are a few bytes around each number, and are written here: the packages that define them would bring a
framework into the process, and write where a full disk ends the training.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Any

from clip_core.files import appending, read_regular, write_bytes

EVENTS = "events.out.tfevents."  # and the step after which the file begins
MONITOR = "monitor"


class TensorBoard:
    """Scalars ``train/NAME`` and ``evaluation/NAME`` in an event file of their own for each start of the run.

    Args:
        run: folder of the run.
        after: the step that the run goes on from; what was written of later ones is dropped.
        files: closes the event file.

    Source: tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto, and the record format of
    tensorflow/core/lib/io/record_writer.h.
    """

    def __init__(self, run: Path, after: int, files: ExitStack) -> None:
        for file in run.glob(f"{EVENTS}*"):
            start = file.name[len(EVENTS) :]
            if start.isdecimal() and int(start) >= after:
                file.unlink()
        self._file = files.enter_context(appending(run / f"{EVENTS}{after:010d}"))
        self._add(_bytes_field(3, b"brain.Event:2"))
        if after:
            # A session that starts (status 1) makes TensorBoard drop earlier files' events from this step on.
            self._add(_integer_field(2, after + 1) + _bytes_field(7, _integer_field(1, 1)))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Add the numbers of a training step."""
        numbers = {name: value for name, value in metrics.items() if name not in ("step", "epoch", "skipped")}
        self._add_scalars("train", metrics["step"], numbers)

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Add the scores after a step."""
        self._add_scalars("evaluation", step, scores)

    def _add_scalars(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        values = [
            _bytes_field(1, f"{group}/{name}".encode()) + b"\x15" + struct.pack("<f", number)  # field 2, 4 bytes
            for name, number in numbers.items()
        ]
        self._add(_integer_field(2, step) + _bytes_field(5, b"".join(_bytes_field(1, value) for value in values)))

    def _add(self, event: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + event  # field 1, 8 bytes: the time of day
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_checksum(length) + event + _masked_checksum(event))


class NNablaMonitor:
    """Series as ``nnabla.monitor.MonitorSeries`` writes them, ``NAME.series.txt`` with a line "step value" each.

    They are the total loss, the raw logarithm of the logit scale, the learning rate, and every score.

    Args:
        run: folder of the run, in which ``monitor/`` holds the series.
        after: the step that the run goes on from; lines of later ones are dropped.
    """

    def __init__(self, run: Path, after: int) -> None:
        self._folder = run / MONITOR
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.glob("*.series.txt"):
            lines = re.findall(
                rb"^([0-9]{1,18}) ([^ \n]+)\n", read_regular(path), re.MULTILINE
            )  # but not the damaged ones
            write_bytes(path, b"".join(b"%b %b\n" % line for line in lines if int(line[0]) <= after))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Add the numbers of a training step."""
        self._add("Total loss", metrics["step"], metrics["loss"])
        self._add("Logit scale", metrics["step"], log(metrics["logit_scale"]))
        self._add("Learning rate", metrics["step"], metrics["learning_rate"])

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Add the scores after a step."""
        for name, score in scores.items():
            self._add(f"Evaluation {name}", step, score)

    def _add(self, name: str, step: int, value: float) -> None:
        with appending(self._folder / f"{name.replace(' ', '-')}.series.txt") as file:
            file.write(f"{step} {value:g}\n".encode())


def _integer_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _variable_length(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _variable_length(len(value)) + value


def _variable_length(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that another follows."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _masked_checksum(data: bytes) -> bytes:
    """CRC-32C, rotated by 15 bits and shifted, as TensorFlow's records have it."""
    table, checksum = _checksums(), 0xFFFFFFFF
    for byte in data:
        checksum = table[(checksum ^ byte) & 255] ^ checksum >> 8
    checksum ^= 0xFFFFFFFF
    rotated = (checksum >> 15 | checksum << 17) + 0xA282EAD8
    return struct.pack("<I", rotated & 0xFFFFFFFF)


@lru_cache
def _checksums() -> list[int]:
    """CRC-32C (polynomial 0x1EDC6F41, reflected) of each byte."""
    table = []
    for checksum in range(256):
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
        table.append(checksum)
    return table
