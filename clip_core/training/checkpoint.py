"""Training checkpoints that every framework can resume from, each a folder that is complete or not there.

``state.safetensors`` holds what `clip_core.backend.Trainer.state` gives, ``run.json`` the step, the loader's state, the
recipe and the versions, ``vocabulary.txt`` what defines the model's tokenizer, and ``manifest.json`` the SHA-256 of
each. The folder is written under a temporary name, read
back, and renamed when all of it is on the disk; only then are older ones removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256 as digest_of
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from clip_core import safetensors
from clip_core.buffers import Tensor
from clip_core.data.settings import LARGEST, Section, setting_error, shown
from clip_core.errors import CheckpointError, ClipError
from clip_core.files import read_regular, sha256, sync_folder, write_bytes
from clip_core.text.loading import MAXIMUM_BYTES

FOLDER = "checkpoints"
FORMAT_VERSION = 1
_STATE, _RUN, _VOCABULARY, _MANIFEST = "state.safetensors", "run.json", "vocabulary.txt", "manifest.json"
_NAME = re.compile(r"step-(\d{8})(\.replaced|\.partial)?")
LAST_STEP = 10**8 - 1  # that a folder's name has room for
_MAXIMUM_BYTES = 1 << 20  # of what is described beside the state

Whole = Annotated[int, Field(ge=0, le=LARGEST)]


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A training run after ``step`` steps."""

    step: int
    trainer: dict[str, np.ndarray]
    loader: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]  # of the packages it was made with
    vocabulary: str | None = None  # what defines the tokenizer, OpenAI's too; None in older ones


class Writer:
    """Writes the checkpoints of a run one after the other; leaving the ``with`` block waits for the last.

    Args:
        run: the folder of the run.
        keep: how many are kept.
        background: whether `write` returns at once; the arrays of a checkpoint must then be copies.
        saved: the complete checkpoint that the run goes on from.
    """

    def __init__(self, run: Path, keep: int, background: bool, saved: Path | None = None) -> None:
        self._run, self._keep, self._background = run, keep, background
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Path] | None = None
        self._saved = saved

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def write(self, checkpoint: TrainingCheckpoint) -> None:
        """Write ``checkpoint`` when the one before is complete.

        Raises:
            ClipError: this one, or in the background the one before, could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(write, self._run, checkpoint, self._keep)
        if not self._background:
            self.wait()

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, if its writing has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            ClipError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                self._saved = pending.result()
            except ClipError as error:
                raise ClipError(f"{error} The last good checkpoint is {self._saved or 'none'}.") from error

    def last_good(self) -> Path | None:
        """The newest complete checkpoint, once nothing is being written any more."""
        with suppress(ClipError):
            self.wait()
        return self._saved


def write(run: Path, checkpoint: TrainingCheckpoint, keep: int) -> Path:
    """Write ``checkpoint`` into the folder of ``run``, then remove all but it and the ``keep - 1`` before it.

    Those of later steps are removed, too: they are of a run that was taken up again at an earlier step.

    Raises:
        ClipError: the folder cannot be written, or what is read back differs; older checkpoints are as they were.
    """
    folder = run / FOLDER / name_of(checkpoint.step)
    partial, replaced = (folder.with_name(folder.name + ending) for ending in (".partial", ".replaced"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(partial, checkpoint)
        verify(partial)
        if folder.exists():  # a resumed run comes by the same step again
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except (ClipError, OSError, MemoryError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # it may be what has filled the disk
        if isinstance(error, CheckpointError):
            raise ClipError(f"The checkpoint that was written is damaged: {error} Check the disk.") from error
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{folder}: {(error.strerror or reason).lower()}"
        elif isinstance(error, MemoryError):
            reason = f"{folder}: memory ran out; leave half as much again as the checkpoint takes."
        raise ClipError(f"The checkpoint of step {checkpoint.step} cannot be written: {reason}") from error
    earlier = [entry for entry in _entries(run) if entry < folder and not entry.suffix]
    for entry in _entries(run):
        if entry not in (folder, *earlier[len(earlier) - (keep - 1) :]):
            shutil.rmtree(entry, ignore_errors=True)
    return folder


def _fill(folder: Path, checkpoint: TrainingCheckpoint) -> None:
    described = {name: value for name, value in vars(checkpoint).items() if name not in ("trainer", "vocabulary")}
    contents = {
        _STATE: b"".join(safetensors.pieces({name: Tensor(x, x.dtype) for name, x in checkpoint.trainer.items()})),
        _RUN: json.dumps(described, indent=2).encode(),
    }
    if checkpoint.vocabulary is not None:
        contents[_VOCABULARY] = checkpoint.vocabulary.encode()
    for name, content in contents.items():
        write_bytes(folder / name, content)
    digests = {name: digest_of(content).hexdigest() for name, content in contents.items()}
    write_bytes(folder / _MANIFEST, json.dumps({"format": FORMAT_VERSION, "sha256": digests}, indent=2).encode())


def name_of(step: int) -> str:
    """The name of the folder of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def verify(folder: Path) -> None:
    """Check the files of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, changed, or not what `write` wrote.
    """
    try:
        manifest = json.loads(read_regular(folder / _MANIFEST, _MAXIMUM_BYTES))
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} is in checkpoint format {shown(manifest['format'])}; this version reads {FORMAT_VERSION}."
            )
        for name in (_STATE, _RUN, *({_VOCABULARY} & manifest["sha256"].keys())):
            if sha256(folder / name) != manifest["sha256"][name]:
                raise CheckpointError(f"{folder / name} has changed since it was written; resume from another one.")
    except CheckpointError:
        raise
    except Exception as error:  # every way in which a damaged file can fail to be read
        raise CheckpointError(f"{folder} is not a complete training checkpoint: {error}") from error


def read(folder: Path) -> TrainingCheckpoint:
    """Read a checkpoint and check it against its manifest.

    Raises:
        CheckpointError: a file is missing, changed, or not what `write` wrote.
    """
    verify(folder)
    try:
        state = safetensors.read(read_regular(folder / _STATE)).tensors
        return TrainingCheckpoint(trainer=state, vocabulary=vocabulary_in(folder), **described_in(folder))
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} is not a complete training checkpoint: {error}") from error


def described_in(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself beside the state and the vocabulary: step, loader, recipe and versions.

    Raises:
        CheckpointError: it is not what `write` wrote.
    """
    try:
        described = read_regular(folder / _RUN, _MAXIMUM_BYTES)
        _Described.model_validate_json(described)
        return json.loads(described)
    except ValidationError as error:
        fault = setting_error(error, _Described)
        raise CheckpointError(f"{folder / _RUN} cannot be used: {fault} Resume from another checkpoint.") from error


def vocabulary_in(folder: Path) -> str | None:
    """What defines the tokenizer of a checkpoint; older ones keep none.

    Raises:
        ClipError: the file cannot be read or is no text.
    """
    if not (folder / _VOCABULARY).exists():
        return None
    try:
        return read_regular(folder / _VOCABULARY, MAXIMUM_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / _VOCABULARY} is no text: {error}; resume from another checkpoint.") from error


def newest(run: Path, passed_over: Callable[[str], None] = lambda sentence: None) -> Path:
    """The newest complete checkpoint in the folder of ``run``, or ``run`` itself when it is a checkpoint.

    Args:
        passed_over: called with what is wrong with each newer one, which was damaged or cut off while it was written.

    Raises:
        CheckpointError: there is none.
    """
    if not run.exists():
        raise CheckpointError(f"There is no folder {run}; give the --output folder of a run.")
    if (run / _MANIFEST).is_file():
        return run
    for folder in reversed(_entries(run)):
        try:
            if folder.suffix == ".partial":
                raise CheckpointError(f"{folder} was cut off while it was written.")
            verify(folder)
            return folder
        except CheckpointError as error:
            passed_over(str(error))
    raise CheckpointError(f"{run} has no complete training checkpoint; give the --output folder of a run.")


def run_of(folder: Path) -> Path:
    """The folder of the run that ``folder`` is a checkpoint of, or ``folder`` itself when it is not one."""
    return folder.absolute().parent.parent if (folder / _MANIFEST).is_file() else folder


def _entries(run: Path) -> list[Path]:
    """The folders of checkpoints, complete or not, in the order of their steps."""
    folder = run / FOLDER
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)) if folder.is_dir() else []


class _Loader(Section):
    """Where the loaders of all processes stand, and on what data."""

    model_config = ConfigDict(strict=True)

    position: Whole
    skipped: Annotated[list[Whole], Field(min_length=1)]  # of each process
    examples: Whole | None = None  # these two are not there in older checkpoints
    fingerprint: str | None = None


class _Described(Section):
    """What ``run.json`` has to hold."""

    model_config = ConfigDict(strict=True)

    step: Annotated[int, Field(ge=0, le=LAST_STEP)]
    loader: _Loader
    recipe: dict[str, Any]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _one_batch_a_step(self) -> _Described:
        if self.loader.position != self.step:
            raise ValueError(f"the loader stands at {self.loader.position} after step {self.step}")
        return self
