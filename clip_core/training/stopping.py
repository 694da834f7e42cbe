"""What asks a run to end early: a signal, or word from the process that has started all processes of the run.

The launchers of the frameworks each treat signals in their own way, and some kill a process before it has written its
checkpoint. The command that starts a launcher therefore keeps signals from it, and leaves word in a file instead. It
holds the folder of that file, so that the processes notice when it is gone without a word.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_core.errors import ClipError
from clip_core.files import exclusive, read_regular, write_text

WORD = "CLIP_STOP_FILE"
"""The environment variable that names the file to look for; a signal's number is in it."""

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Within the block the signals do not end the process; a function tells the first that has come, 0 while none has.

    Blocks within each other are told the same. When the command that has started this process is gone, it is SIGTERM.
    """
    word = os.environ.get(WORD)
    with _received() as received:

        def asked() -> int:
            if not received and word is not None:
                if os.path.exists(word):
                    with suppress(ClipError, ValueError):
                        received.append(int(read_regular(word)))
                elif _nobody_holds(Path(word).parent):
                    received.append(signal.SIGTERM)
            return received[0] if received else 0

        yield asked


def run_until_stopped(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher until all processes that it starts have ended, which each find the first signal by `stop_signals`.

    The launcher is in a session of its own, so that the signals of a terminal do not reach it. A second SIGINT has it
    end its processes at once.

    Returns:
        The exit code: the launcher's, or 128 and the signal when that is what has ended the run.
    """
    with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder), "launcher"):
        word = Path(folder) / "signal"
        environment = {**environment, WORD: str(word)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

        def leave_word(number: int) -> None:
            if not word.exists():
                write_text(word, str(number))
            elif number == signal.SIGINT:
                process.terminate()

        with _received(leave_word) as received:
            code = process.wait()
    if code < 0:
        return 128 - code
    return 128 + received[0] if received and not code else code


def _nobody_holds(folder: Path) -> bool:
    """Whether the command that made ``folder`` has ended; on Windows, where it cannot be asked, never."""
    if sys.platform == "win32":
        return False
    try:
        with exclusive(folder, "launcher"):
            return True
    except ClipError:
        return False


class _Receiver:
    """A handler of signals that keeps their numbers and does something else beside."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self.numbers: list[int] = []
        self._on_signal = on_signal

    def __call__(self, number: int, frame: object) -> None:
        self.numbers.append(number)
        self._on_signal(number)


@contextmanager
def _received(on_signal: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """A list that the signals are put into, instead of ending the process."""
    outer = signal.getsignal(signal.SIGTERM)
    if isinstance(outer, _Receiver):
        yield outer.numbers
        return
    receiver = _Receiver(on_signal)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield receiver.numbers
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not None}  # else it is not Python's
    for number, handler in before.items():
        if number == signal.SIGINT or handler is not signal.SIG_IGN:  # nohup has a process ignore SIGHUP
            signal.signal(number, receiver)
    try:
        yield receiver.numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
