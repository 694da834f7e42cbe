"""The ``clip`` command as a user runs it, a recipe that trains in seconds, and what is held of every refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = """
model:
  architecture:
    embed_dim: 16
    image: {kind: vit, resolution: 64, patch: 32, width: 64, layers: 1, heads: 1}
    text: {context_length: 32, vocabulary_size: 600, width: 64, layers: 1, heads: 1}
    activation: quick_gelu
training: {steps: 6, seed: 1}
data: {source: {kind: shapes, examples: 100}, batch_size: 4}
checkpoint: {every_steps: 2}
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def process(*arguments: object, **options) -> subprocess.Popen:
    """The command as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"} | options
    return subprocess.Popen([sys.executable, "-m", "clip", *map(str, arguments)], env=environment, **streams)


def ended(command: subprocess.Popen) -> Ended:
    out, err = command.communicate(timeout=120)
    return Ended(command.returncode, out, err)


def assert_refused(result: Ended, *parts: str) -> None:
    """One sentence on standard error, nothing on standard output, exit code 1."""
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("clip: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith(".\n")
    for part in parts:
        assert part in result.err


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
