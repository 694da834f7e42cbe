"""A short version of every benchmark, and the page and the chart of their figures.

    python benchmarks/run.py
    python benchmarks/run.py --only text,tokenizer --rounds 5

The figures of each subject are kept in docs/benchmarks.json as soon as it is measured, and docs/benchmarks.md and
docs/benchmarks.svg are drawn from that file, so that one subject can be measured again alone. Options that are not of
this script go to those of the subjects.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import monotonic

import page
from subjects import SUBJECTS

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {', '.join(SUBJECTS)}, with commas between; by default all")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "docs", help="of the figures, page and chart")
    arguments, options = parser.parse_known_args()
    names = arguments.only.split(",") if arguments.only else list(SUBJECTS)
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"there are no subjects {', '.join(sorted(unknown))}; choose some of {', '.join(SUBJECTS)}")
    kept = arguments.folder / "benchmarks.json"
    for name in names:
        print(f"{name}: {SUBJECTS[name].title}", file=sys.stderr)
        measured = measure(name, options)
        # Read again, since another process may have measured another subject in the meantime.
        figures = json.loads(kept.read_text()) if kept.exists() else {}
        kept.write_text(json.dumps(figures | {name: measured}, indent=1) + "\n")
        page.write(arguments.folder)


def measure(name: str, options: list[str]) -> dict[str, object]:
    """What a subject's script writes, with the day and how long it ran."""
    subject, started = SUBJECTS[name], monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        command = [sys.executable, HERE / subject.script, *shlex.split(subject.options), *options, "--json", result]
        if subprocess.run(list(map(str, command))).returncode:
            sys.exit(f"the benchmark of {name} failed; the figures of the subjects before it are kept")
        figures = json.loads(result.read_text())
    return {"measured": date.today().isoformat(), "took_seconds": round(monotonic() - started)} | figures


if __name__ == "__main__":
    main()
