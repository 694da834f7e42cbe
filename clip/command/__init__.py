"""The ``clip`` command: one file a sub-command, and one rule for errors."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

import clip
from clip.command.lazily import Commands
from clip_core import installation
from clip_core.errors import AssumptionWarning, ClipError, EndedBySignal, visible
from clip_core.memory import enough_memory
from clip_core.processor import choose_openblas_kernels

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"triclip {clip.__version__}")
        raise typer.Exit


def _use_threads(count: int | None) -> None:
    """Let NumPy and the frameworks, which are not imported yet, read the wish where they look for it."""
    if count is not None:
        for name in THREADS:
            os.environ[name] = str(count)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            callback=_use_threads,
            is_eager=True,
            help="Threads that compute on the CPU, in every framework; by default $OMP_NUM_THREADS, or one a core.",
        ),
    ] = None,
) -> None:
    """One CLIP for NNabla, Paddle, PyTorch and NumPy, verified to produce the same numbers."""


def main() -> None:
    """Run the command; a fault of the user's is one sentence on standard error and exit code 1."""
    for number in range(3):  # a stream that is closed from the start must not become a file of ours
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the work
    choose_openblas_kernels()  # NumPy is not imported yet
    # What frameworks say of themselves while they are imported is no part of the command's output.
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", "No ccache found", UserWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # the picture's own sentence says what matters
    warnings.simplefilter("once", AssumptionWarning)
    warnings.formatwarning = lambda message, *_: f"clip: warning: {visible(str(message))}\n"
    try:
        try:
            smaller = "choose a smaller model or less at once, or a machine with more memory"
            with _ending_on_signals(), enough_memory("while this was computed", smaller):
                installation.check()
                app(prog_name="clip")  # also where it was started as a module
        finally:
            if sys.stdout is not None:  # as it is when it was closed from the start
                sys.stdout.flush()
    except ClipError as error:
        _refuse(str(error))
    except BrokenPipeError:
        # Whoever read the output has closed it; Python must not complain about that again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _refuse(f"{error.filename or 'The output'} cannot be used: {error.strerror or error}.")


# What says how many threads: to PyTorch, Paddle and this project, and to the libraries below NumPy and PyTorch.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _refuse(sentence: str) -> NoReturn:
    print(f"clip: {visible(sentence)}", file=sys.stderr)
    sys.exit(1)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turn the signals that end a program into an exit that cleans up, so that no half-written file remains."""

    def end(number: int, _: object) -> None:
        raise EndedBySignal(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks one
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores one
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
