"""Training checkpoints that every framework can resume from, each a folder that is complete or not there.

``state.safetensors`` holds what `backends.base.Trainer.state` gives, ``run.json`` the step, the loader's state, the
recipe and the versions, and ``manifest.json`` the SHA-256 of both. The folder is written under a temporary name and
renamed when all of it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from clip_core.errors import CheckpointError, ClipError
from clip_core.files import read_regular, sha256, sync_folder, write_bytes, write_text

FOLDER = "checkpoints"
FORMAT_VERSION = 1
_STATE, _RUN, _MANIFEST = "state.safetensors", "run.json", "manifest.json"
_NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class Checkpoint:
    """A training run after ``step`` steps."""

    step: int
    trainer: dict[str, np.ndarray]
    loader: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]  # of the packages it was made with


def write(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``checkpoint`` into the folder of ``run``, then remove all but the newest ``keep``.

    Raises:
        ClipError: the folder cannot be written; older checkpoints are as they were.
    """
    folder = run / FOLDER / name_of(checkpoint.step)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_bytes(partial / _STATE, save({name: np.asarray(x, order="C") for name, x in checkpoint.trainer.items()}))
        described = {name: value for name, value in vars(checkpoint).items() if name != "trainer"}
        write_text(partial / _RUN, json.dumps(described, indent=2))
        digests = {name: sha256(partial / name) for name in (_STATE, _RUN)}
        write_text(partial / _MANIFEST, json.dumps({"format": FORMAT_VERSION, "sha256": digests}, indent=2))
        if folder.exists():  # a resumed run comes by the same step again, with the same numbers
            shutil.rmtree(folder)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ClipError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}; make room.") from error
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def name_of(step: int) -> str:
    """The name of the folder of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint and check it against its manifest.

    Raises:
        CheckpointError: a file is missing, changed, or not what `write` wrote.
    """
    try:
        manifest = json.loads(read_regular(folder / _MANIFEST))
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} is in checkpoint format {manifest['format']}; this version reads {FORMAT_VERSION}."
            )
        for name in (_STATE, _RUN):
            if sha256(folder / name) != manifest["sha256"][name]:
                raise CheckpointError(f"{folder / name} has changed since it was written; resume from another one.")
        run = json.loads(read_regular(folder / _RUN))
        return Checkpoint(trainer=load(read_regular(folder / _STATE)), **run)
    except CheckpointError:
        raise
    except Exception as error:  # every way in which a damaged file can fail to be read
        raise CheckpointError(f"{folder} is not a complete training checkpoint: {error}") from error


def newest(run: Path) -> Path:
    """The newest complete checkpoint in the folder of ``run``, or ``run`` itself when it is a checkpoint.

    A folder that was cut off while it was written has a temporary name and is not looked at.

    Raises:
        CheckpointError: there is none.
    """
    if (run / _MANIFEST).is_file():
        return run
    found = _folders(run)
    if not found:
        raise CheckpointError(f"{run} has no complete training checkpoint; give the --output folder of a run.")
    return found[-1]


def _folders(run: Path) -> list[Path]:
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name) and (entry / _MANIFEST).is_file())
