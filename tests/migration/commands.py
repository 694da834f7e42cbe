"""The commands of the document, made small: in this process, in a shell, or up to the launcher."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip.command import train as train_command
from clip_core.data.families import FAMILIES
from clip_core.training import loop
from tests.launching import ENVIRONMENT
from tests.migration.datasets import TINY
from tests.migration.document import ROOT, Check, Row
from tests.migration.trainings import Run, Trainings

TORCH_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "8")
PADDLE_LAUNCHER = ("-m", "paddle.distributed.launch", "--nproc_per_node", "8")


def tiny(run: Path, **data: object) -> str:
    """What makes a command of the document small; ``section__key`` stands for ``section.key``."""
    architecture = json.dumps(TINY)
    words = ["-o", f"model.architecture={architecture}", "-o", "data.workers=0", "--steps", "2", "--output", str(run)]
    for key, value in data.items():
        words += [
            "-o",
            f"{key.replace('__', '.')}={value if isinstance(value, (str, Path, int)) else json.dumps(value)}",
        ]
    return shlex.join(words)


def in_this_process(row: Row, train: Trainings, **data: object) -> Run:
    train.asked += 1
    words = row.command[row.command.index("clip ") + len("clip ") :]
    if words not in train.commands:
        train.commands[words] = train.command(f"{words} {tiny(train.folder() / 'run', **data)}")
    return train.commands[words]


def as_written(row: Row, train: Trainings, command: str, **data: object) -> Run:
    """In a shell, with the framework's launcher."""
    train.asked += 1
    run = train.folder() / "run"
    script = train.data / "bin" / "clip"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!{sys.executable}\nfrom clip.command import main\n\nmain()\n")
    script.chmod(0o755)
    environment = os.environ | ENVIRONMENT
    environment |= {"PYTHONPATH": str(ROOT), "PATH": os.pathsep.join([str(script.parent), ENVIRONMENT["PATH"]])}
    words = f"{command} {tiny(run, **data)}"
    ended = subprocess.run(["bash", "-c", words], cwd=train.data, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return Run(run, ended.stderr)


def launches(*launcher: str) -> Check:
    """The framework's own launcher is called with the same command but for ``--num-gpus``."""

    def check(row: Row, train: Trainings) -> None:
        called: list[list[str]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", shlex.split(row.command))
            patch.setattr(train_command, "run_until_stopped", lambda words, environment: called.append(words) or 0)
            for family in FAMILIES.values():
                patch.setattr(family, "open", lambda settings, seed: ())  # the data of the row is not here
            patch.setattr(loop, "check_start", lambda *arguments: None)
            train.command(row.command.removeprefix("clip "))
        (words,) = called
        assert words[: 1 + len(launcher)] == [sys.executable, *launcher]
        own = shlex.split(row.command)
        at = own.index("--num-gpus")
        assert words[2 + len(launcher) :] == own[1:at] + own[at + 2 :]

    return check
