"""Whatever happens while a file is written, its name holds the old file or the new one, whole."""

from __future__ import annotations

import json
import mmap
import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoint_attacks import child, small_checkpoint
from safetensors.numpy import save_file

from clip_core import safetensors
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.files import atomic_open
from clip_core.initialize import initialize
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, convert, hdf5, pdparams, read, torch_archive, write

FORMATS = {".pt": torch_archive, ".safetensors": safetensors, ".h5": hdf5, ".pdparams": pdparams}


def other_checkpoint() -> ModelFile:
    checkpoint = small_checkpoint()
    return ModelFile({name: array + 1 for name, array in checkpoint.weights.items()}, checkpoint.architecture)


@pytest.mark.parametrize("suffix", FORMATS)
def test_killed_at_every_call(suffix, tmp_path):
    """A converter is killed at calls that touch the disk, before and after them: at twenty places over the whole of its
    work and at each of the last twelve, which publish the file."""
    write(other_checkpoint(), tmp_path / f"old{suffix}")
    write(small_checkpoint(), tmp_path / "source.safetensors")
    found = child(
        f"""
        import os, shutil, signal, sys
        from converters import convert, read
        folder, suffix = {str(tmp_path)!r}, {suffix!r}
        source, target = f"{{folder}}/source.safetensors", f"{{folder}}/target{{suffix}}"
        old = read(f"{{folder}}/old{{suffix}}").weights
        new = read(source).weights
        calls = {{"write", "flush", "close", "replace", "rename", "fsync", "chmod", "unlink", "open", "mkstemp"}}

        def run_and_die(at):
            # The number of calls, when it was not killed before.
            count = 0

            def watch(frame, event, function):
                nonlocal count
                ours = event in ("c_call", "c_return") and function.__name__ in calls
                if ours or (event == "call" and frame.f_code.co_name == "create_dataset"):
                    if count == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1

            sys.setprofile(watch)
            convert(source, target, force=True)
            sys.setprofile(None)
            return count

        total = run_and_die(None)
        outcomes = []
        for at in sorted({{*range(0, total, max(total // 20, 1)), *range(total - 12, total), total}}):
            shutil.copy(f"{{folder}}/old{{suffix}}", target)
            pid = os.fork()
            if pid == 0:
                run_and_die(at)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            weights = read(target).weights
            outcomes.append("old" if weights["logit_scale"] == old["logit_scale"] else "new")
            expected = old if outcomes[-1] == "old" else new
            assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected), at
            if at == total:
                assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            else:
                assert os.WTERMSIG(status) == signal.SIGKILL
        print(outcomes.count("old"), outcomes.count("new"), outcomes == sorted(outcomes, reverse=True))
        """
    )
    old, new, in_order = found.split()
    assert int(old) > 10
    assert int(new) > 1  # killed after the rename, and not killed at all
    assert in_order == "True"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk(suffix, tmp_path):
    """The system refuses every byte after the first four thousand."""
    write(other_checkpoint(), tmp_path / f"a{suffix}")
    before = (tmp_path / f"a{suffix}").read_bytes()
    found = child(
        f"""
        import resource, signal
        from checkpoint_attacks import small_checkpoint
        from clip_core.errors import ClipError
        from converters import write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for size in (0, 1, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            try:
                write(small_checkpoint(), {str(tmp_path / ("a" + suffix))!r}, force=True)
            except ClipError as error:
                print(error)
        """
    )
    lines = found.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{tmp_path / ('a' + suffix)} cannot be written: ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    assert (tmp_path / f"a{suffix}").read_bytes() == before


def test_targets_are_refused_before_the_work(tmp_path):
    """The source does not even exist, and the error is about the target."""
    (tmp_path / "folder.pt").mkdir()
    for target in (tmp_path / "missing" / "a.pt", tmp_path / "folder.pt", tmp_path / f"{'x' * 300}.pt"):
        with pytest.raises(ClipError) as caught:
            convert(tmp_path / "nothing.pt", target)
        assert str(caught.value).startswith(str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """Tests may run as root, who may write anywhere: the system's answer is given here."""
    real = os.open

    def denied(path, flags, *arguments, **options):
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ClipError, match=r"cannot be written: [Pp]ermission denied"):
        convert(tmp_path / "nothing.pt", tmp_path / "a.pt")


def test_what_is_there_is_replaced_by_force_only(tmp_path):
    write(small_checkpoint(), tmp_path / "a.pt")
    write(other_checkpoint(), tmp_path / "b.h5")
    before = (tmp_path / "b.h5").read_bytes()
    for refused in (partial(convert, tmp_path / "a.pt"), partial(write, small_checkpoint())):
        with pytest.raises(ClipError) as caught:
            refused(tmp_path / "b.h5")
        what = "is there already; give another name, or --force (force=True) to replace it."
        assert str(caught.value) == f"{tmp_path / 'b.h5'} {what}"
        assert (tmp_path / "b.h5").read_bytes() == before
    convert(tmp_path / "a.pt", tmp_path / "b.h5", force=True)
    assert read(tmp_path / "b.h5").weights["logit_scale"] == small_checkpoint().weights["logit_scale"]


def test_an_architecture_that_nobody_could_read_is_not_written(tmp_path):
    checkpoint = small_checkpoint()
    blind = replace(checkpoint.architecture, text=replace(checkpoint.architecture.text, epsilon=0.0))
    with pytest.raises(ClipError, match=r"The architecture's text\.epsilon is 0\.0"):
        write(ModelFile(checkpoint.weights, blind), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_not_overwritten(tmp_path):
    path = tmp_path / "a.pt"
    write(small_checkpoint(), path)
    os.link(path, tmp_path / "hard.pt")
    os.symlink(path, tmp_path / "soft.pt")
    before = path.read_bytes()
    for target in (path, tmp_path / "hard.pt", tmp_path / "soft.pt", tmp_path / "." / "a.pt"):
        with pytest.raises(ClipError, match="is a file that is read here itself; give another name"):
            convert(path, target, dtype="float16", force=True)
    assert path.read_bytes() == before


def test_no_file_that_is_read_is_overwritten(tmp_path):
    """Neither one of the files of a cut model, nor its index, nor the file that it should be like."""
    folder = tmp_path / "cut"
    folder.mkdir()
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    weights = sorted(small_checkpoint().weights.items())
    cut = dict(zip(names, (dict(weights[:9]), dict(weights[9:]))))
    for name, part in cut.items():
        save_file(part, folder / name)
    weight_map = {key: name for name, part in cut.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    like = tmp_path / "like.safetensors"
    write(small_checkpoint(), like)
    before = {path: path.read_bytes() for path in (*folder.iterdir(), like)}
    for source in (folder, folder / names[0]):
        for target in (*(folder / name for name in names), like):
            with pytest.raises(ClipError, match=f"{target} is a file that is read here itself; give another name"):
                convert(source, target, like=like, force=True)
    assert {path: path.read_bytes() for path in before} == before
    convert(folder, tmp_path / "whole.safetensors", like=like)


def test_of_two_writers_of_a_new_name_one_succeeds(tmp_path, monkeypatch):
    """The second one finds the name free, too, and is refused when it has written its file."""
    path = tmp_path / "a.safetensors"
    publish = os.link

    def overtaken(temporary, target):
        monkeypatch.setattr(os, "link", publish)
        write(other_checkpoint(), path)
        return publish(temporary, target)

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(ClipError, match=r"a\.safetensors is there already; give another name, or --force"):
        write(small_checkpoint(), path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert read(path).weights["logit_scale"] == other_checkpoint().weights["logit_scale"]
    assert path.stat().st_nlink == 1


def test_a_new_name_without_links(tmp_path, monkeypatch):
    """As on FAT: what is there stays, and what is not is written whole."""

    def impossible(temporary, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", impossible)
    with atomic_open(tmp_path / "a.bin", replace=False) as file:
        file.write(b"one")
    with pytest.raises(ClipError, match=r"a\.bin is there already"), atomic_open(tmp_path / "a.bin", False) as file:
        file.write(b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"one")]


@pytest.mark.parametrize("suffix", FORMATS)
def test_old_readers_keep_the_old_bytes(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    write(small_checkpoint(), path)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    before = bytes(mapped)
    write(other_checkpoint(), path, force=True)
    assert bytes(mapped) == before != path.read_bytes()


def test_two_converters_at_once(tmp_path):
    write(small_checkpoint(), tmp_path / "a.pt")
    write(other_checkpoint(), tmp_path / "b.pt")
    child(
        f"""
        import os
        from converters import convert
        children = []
        for name in "abab":
            pid = os.fork()
            if pid == 0:
                for _ in range(10):
                    convert(f"{tmp_path}/{{name}}.pt", "{tmp_path}/c.safetensors", force=True)
                os._exit(0)
            children.append(pid)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
        """
    )
    found = read(tmp_path / "c.safetensors")
    assert found.source_sha256 in {read(tmp_path / f"{name}.pt").sha256 for name in "ab"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "c.safetensors"]


def test_the_mode(tmp_path):
    path = tmp_path / "a.h5"
    old = os.umask(0o027)
    try:
        write(small_checkpoint(), path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write(other_checkpoint(), path, force=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_a_link_stays_a_link(tmp_path):
    write(small_checkpoint(), tmp_path / "a.pt")
    os.symlink("a.pt", tmp_path / "latest.pt")
    write(other_checkpoint(), tmp_path / "latest.pt", force=True)
    assert (tmp_path / "latest.pt").is_symlink()
    assert read(tmp_path / "a.pt").weights["logit_scale"] == other_checkpoint().weights["logit_scale"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupt_leaves_nothing(suffix, tmp_path, monkeypatch):
    write(small_checkpoint(), tmp_path / f"a{suffix}")
    before = (tmp_path / f"a{suffix}").read_bytes()
    module = FORMATS[suffix]
    real = module.write

    def interrupted(path: Path, *arguments) -> None:
        real(path, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(other_checkpoint(), tmp_path / f"a{suffix}", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    assert (tmp_path / f"a{suffix}").read_bytes() == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_stores_something_else(suffix, tmp_path, monkeypatch):
    """One bit of one weight changes on its way to the disk: the file is read back, and never published."""
    module = FORMATS[suffix]
    real = module.write

    def corrupting(path: Path, *arguments) -> None:
        real(path, *arguments)
        data = bytearray(path.read_bytes())
        data[data.index(small_checkpoint().weights["ln_final.bias"].tobytes())] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(module, "write", corrupting)
    what = "does not match its CRC-32" if suffix == ".pt" else r"read back differs .* ln_final\.bias has other values"
    with pytest.raises(CheckpointError, match=what):
        write(small_checkpoint(), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda tensors, manifest: (tensors, manifest + " "), "its manifest"),
        (lambda tensors, manifest: ({k: v for k, v in tensors.items() if k != "ln_final.bias"}, manifest), "the names"),
        (
            lambda tensors, manifest: (
                tensors | {"ln_final.bias": type(tensors["ln_final.bias"])(np.zeros(8), np.dtype(np.float64))},
                manifest,
            ),
            r"ln_final\.bias is float64 \(8,\), expected float32 \(8,\)",
        ),
    ],
)
def test_a_writer_that_writes_something_else(change, what, tmp_path, monkeypatch):
    real = safetensors.write
    monkeypatch.setattr(safetensors, "write", lambda path, *arguments: real(path, *change(*arguments)))
    with pytest.raises(CheckpointError, match=what):
        write(small_checkpoint(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded(tmp_path):
    """Half precision to float32, whose target is twice the source: at most 2.5 times the source in memory."""
    architecture = Architecture(512, VisionTransformer(32, 16, 512, 4, 8), TextTransformer(77, 1000, 512, 4, 8))
    weights = {name: array.astype(np.float16) for name, array in initialize(architecture, 0).items()}
    write(ModelFile(weights, architecture), tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    assert size > 50 << 20
    for suffix in FORMATS:
        peak = child(
            f"""
            from converters import convert
            def resident(field):
                with open("/proc/self/status") as status:
                    return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))
            before = resident("VmRSS")
            convert({str(tmp_path / "a.pt")!r}, {str(tmp_path / ("b" + suffix))!r}, dtype="float32")
            print(resident("VmHWM") - before)
            """
        )
        assert int(peak) < 2.5 * size, suffix
