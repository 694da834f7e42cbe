"""Fuzz the readers: ``python -m tests.fuzz [FORMAT ...] --inputs N``.

Each format has a process of its own, which may take `MEMORY_BYTES` above what it starts with, and `SECONDS` for an
input. An input that is neither read nor refused by a `ClipError` is a failure. What an input is follows from format,
seed and number alone: ``--first NUMBER --inputs 1 --keep FOLDER`` makes one again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from clip_core.errors import ClipError
from tests.fuzz.formats import Format

TABLE = "tests.fuzz.formats"  # the module whose FORMATS are fuzzed

SECONDS = 10.0  # of one input, by the rule for files of up to 1 MB
MEMORY_BYTES = 3 << 30
MOST_FAILURES = 20  # of one format, after which it is given up


class Hang(BaseException):
    """An input took too long."""


def main() -> int:
    """The command: one line for each failure and each format; 1 when there is a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help="by default all")
    parser.add_argument("--inputs", type=int, default=2000, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that fail")
    for hidden, kind, default in (("--table", str, TABLE), ("--seconds", float, SECONDS), ("--work", int, 0)):
        parser.add_argument(hidden, type=kind, default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    formats = importlib.import_module(arguments.table).FORMATS
    if arguments.work:
        (name,) = arguments.formats
        numbers = range(arguments.first, arguments.first + arguments.inputs)
        _work(formats[name], arguments.seed, numbers, arguments.seconds)
        return 0
    failed = 0
    for name in arguments.formats or formats:
        failures = fuzz(name, arguments.inputs, arguments.seed, arguments.first, arguments.keep)
        for failure in failures:
            print(failure)
        print(f"{name}: {arguments.inputs} inputs, {len(failures)} failures", flush=True)
        failed += len(failures)
    return 1 if failed else 0


def fuzz(
    name: str,
    inputs: int,
    seed: int = 0,
    first: int = 0,
    keep: Path | None = None,
    table: str = TABLE,
    seconds: float = SECONDS,
) -> list[str]:
    """What ``inputs`` inputs of a format do to its readers: a text for each failure; none is how it should be."""
    failures: list[str] = []
    end = first + inputs
    command = [sys.executable, "-m", "tests.fuzz", name, "--work", "1", "--table", table, "--seconds", str(seconds)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while first < end and len(failures) < MOST_FAILURES:
        part = ["--inputs", str(end - first), "--seed", str(seed), "--first", str(first)]
        done = subprocess.run(
            [*command, *part], env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        number = first - 1
        for line in done.stdout.splitlines():
            found = json.loads(line)
            number = found["number"]
            if "failure" in found:
                failures.append(f"{name} input {number} of seed {seed}: {found['failure']}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    kind = importlib.import_module(table).FORMATS[name]
                    (keep / f"{name}-{seed}-{number}").write_bytes(make(kind, seed, number, kind.seeds()))
        if done.returncode == 0:
            break
        if number < first:
            raise RuntimeError(f"The process that fuzzes {name} ended with {done.returncode}: {done.stderr[-2000:]}")
        failures.append(
            f"{name} input {number} of seed {seed} ended its process with {done.returncode}: {done.stderr[-900:]}"
        )
        first = number + 1
    return failures


def make(kind: Format, seed: int, number: int, seeds: list[bytes]) -> bytes:
    """The input with this number, made of the ``seeds`` of its format."""
    generator = random.Random(f"{kind.file} {seed} {number}")
    return generator.choice(kind.mutations)(generator.choice(seeds), generator, seeds)


def _work(kind: Format, seed: int, numbers: range, seconds: float) -> None:
    """Read the inputs one after the other; a line of JSON before each, and one for each failure."""
    seeds = kind.seeds()
    signal.signal(signal.SIGALRM, _hang)
    warnings.simplefilter("ignore")
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        kind.beside(top)
        sys.addaudithook(lambda event, arguments: _audit(event, arguments, str(top)))
        for content in seeds:  # what is read without a fault proves that the reader gets to the files
            (top / kind.file).write_bytes(content)
            kind.read(top / kind.file)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        for number in numbers:
            print(json.dumps({"number": number}), flush=True)
            (top / kind.file).write_bytes(make(kind, seed, number, seeds))
            faulthandler.dump_traceback_later(2 * seconds, exit=True)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            failure = _failure(kind, top / kind.file)
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            if failure is not None:
                print(json.dumps({"number": number, "failure": failure}), flush=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _failure(kind: Format, path: Path) -> str | None:
    try:
        kind.read(path)
    except ClipError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return f"refused only when the memory ran out: {error}"
            cause = cause.__cause__
        return None
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
    return None


def _hang(*_: object) -> None:
    raise Hang("it took too long")


def _audit(event: str, arguments: tuple[object, ...], folder: str) -> None:
    """End the process when a reader starts a program, connects, unpickles, or writes outside of its folder."""
    if event in ("os.system", "subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "socket.connect"):
        os._exit(99)
    if event == "pickle.find_class":
        os._exit(98)
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not str(path).startswith((folder, os.devnull)) and not str(path).endswith(".pyc"):
            os._exit(97)


if __name__ == "__main__":
    sys.exit(main())
