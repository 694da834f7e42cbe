"""Training checkpoints are complete or not there, and a changed byte is noticed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from clip_core.errors import CheckpointError, ClipError
from clip_core.training.checkpoint import Checkpoint, newest, read, write

STATE = {"weights/a.b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "updates": np.array(7, np.int64)}


def at(step: int) -> Checkpoint:
    return Checkpoint(step, STATE, {"position": step}, {"training": {"steps": 9}}, {"numpy": "1"})


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, at(7), keep=2)
    found = read(folder)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    assert {**vars(found), "trainer": None} == {**vars(at(7)), "trainer": None}
    for name, array in STATE.items():
        assert np.array_equal(found.trainer[name], array)
        assert found.trainer[name].dtype == array.dtype


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path):
    for step in (2, 10, 9, 30):
        write(tmp_path, at(step), keep=2)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000030"]
    assert read(newest(tmp_path)).step == 30
    assert newest(newest(tmp_path)) == newest(tmp_path)


def test_a_checkpoint_cut_off_while_writing_is_not_found(tmp_path):
    complete = write(tmp_path, at(1), keep=5)
    cut_off = tmp_path / "checkpoints" / "step-00000002.partial"
    cut_off.mkdir()
    (cut_off / "state.safetensors").write_bytes(b"half")
    without_manifest = tmp_path / "checkpoints" / "step-00000003"
    without_manifest.mkdir()
    assert newest(tmp_path) == complete
    write(tmp_path, at(2), keep=5)
    assert read(newest(tmp_path)).step == 2


def test_the_same_step_can_be_written_again(tmp_path):
    write(tmp_path, at(4), keep=1)
    assert read(write(tmp_path, at(4), keep=1)).step == 4


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        newest(tmp_path / "missing")


@pytest.mark.parametrize("name", ["state.safetensors", "run.json"])
def test_one_flipped_bit_is_noticed(tmp_path, name):
    folder = write(tmp_path, at(1), keep=1)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was written"):
        read(folder)


@pytest.mark.parametrize("manifest", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "sha256": {}}', "\xff"])
def test_a_damaged_manifest_is_refused(tmp_path, manifest):
    folder = write(tmp_path, at(1), keep=1)
    (folder / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        read(folder)


def test_a_later_format_is_refused(tmp_path):
    folder = write(tmp_path, at(1), keep=1)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="in checkpoint format 2; this version reads 1"):
        read(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    complete = write(tmp_path, at(1), keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClipError, match="No space left on device"):
        write(tmp_path, at(2), keep=1)
    monkeypatch.undo()
    assert newest(tmp_path) == complete
    assert read(complete).step == 1
