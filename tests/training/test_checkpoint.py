"""Training checkpoints are complete or not there, and a changed byte is noticed."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import clip_core.safetensors
from clip_core.errors import CheckpointError, ClipError
from clip_core.files import write_bytes
from clip_core.training import checkpoint as checkpoints
from clip_core.training.checkpoint import TrainingCheckpoint, Writer, newest, read, run_of, write

STATE = {"weights/a.b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "updates": np.array(7, np.int64)}


def at(step: int) -> TrainingCheckpoint:
    return TrainingCheckpoint(
        step, STATE, {"position": step, "skipped": [0]}, {"training": {"steps": 9}}, {"numpy": "1"}
    )


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, at(7), keep=2)
    found = read(folder)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    assert {**vars(found), "trainer": None} == {**vars(at(7)), "trainer": None}
    for name, array in STATE.items():
        assert np.array_equal(found.trainer[name], array)
        assert found.trainer[name].dtype == array.dtype


def test_the_library_of_safetensors_reads_and_writes_the_same_state(tmp_path):
    """Older checkpoints were written by it."""
    theirs = safetensors.numpy.save({name: array.copy(order="C") for name, array in STATE.items()})
    theirs_read_here = clip_core.safetensors.read(theirs).tensors
    ours_read_there = safetensors.numpy.load_file(write(tmp_path, at(7), keep=2) / "state.safetensors")
    for found in (theirs_read_here, ours_read_there):
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in STATE.items()
        }


def test_the_vocabulary_is_kept_beside_and_checked(tmp_path):
    folder = write(tmp_path, replace(at(7), vocabulary="#version\nz e\n"), keep=2)
    assert read(folder).vocabulary == "#version\nz e\n"
    (folder / "vocabulary.txt").write_text("#version\ne z\n")
    with pytest.raises(CheckpointError, match=r"vocabulary\.txt has changed since it was written"):
        read(folder)


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path):
    for step in (2, 9, 10, 30):
        write(tmp_path, at(step), keep=2)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000030"]
    assert read(newest(tmp_path)).step == 30
    assert newest(newest(tmp_path)) == newest(tmp_path)


def names(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def test_a_run_that_is_taken_up_earlier_keeps_what_it_writes(tmp_path):
    for step in (4, 8, 12):
        write(tmp_path, at(step), keep=3)
    write(tmp_path, at(5), keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_cut_off_while_writing_is_not_found(tmp_path):
    complete = write(tmp_path, at(1), keep=5)
    cut_off = tmp_path / "checkpoints" / "step-00000002.partial"
    cut_off.mkdir()
    (cut_off / "state.safetensors").write_bytes(b"half")
    without_manifest = tmp_path / "checkpoints" / "step-00000003"
    without_manifest.mkdir()
    passed_over: list[str] = []
    assert newest(tmp_path, passed_over.append) == complete
    assert [sentence.split(":")[0] for sentence in passed_over] == [
        f"{without_manifest} is not a complete training checkpoint",
        f"{cut_off} was cut off while it was written.",
    ]
    write(tmp_path, at(2), keep=5)
    assert read(newest(tmp_path)).step == 2


def test_the_same_step_can_be_written_again(tmp_path):
    write(tmp_path, at(4), keep=1)
    assert read(write(tmp_path, at(4), keep=1)).step == 4
    assert names(tmp_path) == ["step-00000004"]


def test_the_same_step_is_there_at_every_moment_of_being_written_again(tmp_path, monkeypatch):
    write(tmp_path, at(4), keep=1)
    rename = os.rename
    found = []

    def watched(source, target):
        rename(source, target)
        found.append(read(newest(tmp_path)).step)

    monkeypatch.setattr(os, "rename", watched)
    write(tmp_path, at(4), keep=1)
    assert found == [4, 4]


def test_the_newest_that_is_not_damaged_is_found(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, at(step), keep=3)
    (tmp_path / "checkpoints" / "step-00000003" / "run.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-00000002" / "state.safetensors").unlink()
    passed_over: list[str] = []
    assert newest(tmp_path, passed_over.append).name == "step-00000001"
    assert ["step-00000003" in passed_over[0], "step-00000002" in passed_over[1]] == [True, True]
    (tmp_path / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        newest(tmp_path)


def test_a_damaged_write_removes_no_older_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, at(step), keep=2)

    def failing_disk(path: Path, content: bytes) -> None:
        write_bytes(path, content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".safetensors" else content)

    monkeypatch.setattr(checkpoints, "write_bytes", failing_disk)
    with pytest.raises(ClipError, match=r"written is damaged: .*state\.safetensors has changed since it was written"):
        write(tmp_path, at(3), keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert read(newest(tmp_path)).step == 2


def test_the_folder_of_the_run_of_a_checkpoint(tmp_path):
    assert run_of(write(tmp_path, at(1), keep=1)) == run_of(tmp_path) == tmp_path


@pytest.mark.parametrize("background", [False, True])
def test_a_writer_writes_one_after_the_other(tmp_path, monkeypatch, background):
    at_work, together = threading.Lock(), []

    def slow(run: Path, checkpoint: TrainingCheckpoint, keep: int) -> Path:
        together.append(not at_work.acquire(blocking=False))
        time.sleep(0.05)
        at_work.release()
        return write(run, checkpoint, keep)

    monkeypatch.setattr(checkpoints, "write", slow)
    with Writer(tmp_path, keep=3, background=background) as writer:
        for step in (1, 2, 3):
            writer.write(at(step))
            assert ("step-00000003" in names_or_none(tmp_path)) == (step == 3 and not background)
    assert together == [False] * 3
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    assert writer.last_good() == tmp_path / "checkpoints" / "step-00000003"


def names_or_none(run: Path) -> list[str]:
    return names(run) if (run / "checkpoints").exists() else []


def test_a_writer_tells_of_a_fault_when_it_is_asked(tmp_path, monkeypatch):
    with Writer(tmp_path, keep=2, background=True) as writer:
        writer.write(at(1))
        writer.wait()
        monkeypatch.setattr(os, "fsync", full)
        writer.write(at(2))
        with pytest.raises(ClipError, match=r"step 2 cannot .*No space left.*good checkpoint is .*step-00000001\."):
            check_for_ten_seconds(writer)
        writer.check()  # once
    assert names(tmp_path) == ["step-00000001"]


def check_for_ten_seconds(writer: Writer) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        writer.check()


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no folder .*missing; give the --output folder of a run\."):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "1"}, "step is '1': input should be a valid integer"),
        ({"step": True}, "step is True"),
        ({"step": -1}, "step is -1"),
        ({"step": 10**8}, "step is 100000000"),
        ({"step": 2}, "the loader stands at 1 after step 2"),
        ({"loader": []}, "loader is []"),
        ({"loader": {"position": 1}}, "the key loader.skipped is missing"),
        ({"loader": {"position": 1.5, "skipped": [0]}}, "loader.position is 1.5"),
        ({"loader": {"position": 1, "skipped": [-3]}}, "loader.skipped.0 is -3"),
        ({"loader": {"position": 1, "skipped": []}}, "loader.skipped is []"),
        ({"loader": {"position": 1, "skipped": [0], "fingerprint": 5}}, "loader.fingerprint is 5"),
        ({"recipe": None}, "recipe is None"),
        ({"versions": {"numpy": 2}}, "versions.numpy is 2"),
        ({"steps": 1}, "there is no key steps; did you mean step?"),
    ],
    ids=str,
)
def test_a_description_of_other_types_is_refused(tmp_path, change, message):
    folder = write(tmp_path, at(1), keep=1)
    described = (json.dumps(json.loads((folder / "run.json").read_text()) | change)).encode()
    (folder / "run.json").write_bytes(described)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["run.json"] = sha256(described).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder / 'run.json'} cannot be used: ")
    assert message in str(caught.value)


def test_a_later_format_is_refused(tmp_path):
    folder = write(tmp_path, at(1), keep=1)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="in checkpoint format 2; this version reads 1"):
        read(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    complete = write(tmp_path, at(1), keep=1)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClipError, match="No space left on device"):
        write(tmp_path, at(2), keep=1)
    monkeypatch.undo()
    assert newest(tmp_path) == complete
    assert read(complete).step == 1
    assert names(tmp_path) == ["step-00000001"]  # what was begun takes no room
