"""The ``clip`` command: one file a sub-command, all under one rule for errors."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

import typer

from clip.command import classify, convert, demo, download, evaluate, inspect, models, parity, tokenize, train
from clip_core.errors import ClipError

app = typer.Typer(
    help="One CLIP for NNabla, Paddle, PyTorch and NumPy, held to the same numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (models, inspect, convert, parity, classify, tokenize, download, train, evaluate, demo):
    app.command(module.__name__.rsplit(".", 1)[-1])(module.run)


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
    # What frameworks say of themselves while they are imported is no part of the command's output.
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", "No ccache found", UserWarning)
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # as it is when it was closed from the start
                sys.stdout.flush()
    except ClipError as error:
        print(f"clip: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read the output has closed it; Python must not complain about that again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print(f"clip: {error.filename or 'The output'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
