"""A file is written whole or not at all, and nothing but a regular file is read."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core import files
from clip_core.download import cache_folder
from clip_core.errors import ClipError

ROOT = Path(__file__).parents[2]


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


# Writing --------------------------------------------------------------------------------------------------------------


def test_write_and_replace(tmp_path):
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"one")
    assert target.read_bytes() == b"one"
    files.write_text(str(target), "zwei ü\n")
    assert target.read_bytes() == "zwei ü\n".encode()
    assert only(tmp_path) == ["a.bin"]


def test_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_bytes("a.bin", b"one")
    assert (tmp_path / "a.bin").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["x" * 255, "語" * 85, "🤗" * 63])
def test_longest_names(tmp_path, name):
    files.write_bytes(tmp_path / name, b"one")
    assert only(tmp_path) == [name]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_of_a_new_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "a.bin", b"one")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o755])
def test_mode_of_a_replaced_file_is_kept(tmp_path, mode):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    target.chmod(mode)
    with files.atomic_path(target) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600  # private while it grows
        path.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_mode_does_not_depend_on_how_the_block_writes(tmp_path):
    """Some libraries replace the temporary file by one of their own."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with files.atomic_path(target) as path:
        path.unlink()
        path.write_bytes(b"new")
        path.chmod(0o600)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", 0o640)


def test_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/file")
    for data in (b"through a dangling link", b"through a good one"):
        files.write_bytes(link, data)
        assert link.is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == data
    assert only(tmp_path) == ["folder", "link"]
    assert only(tmp_path / "folder") == ["file"]


def test_the_disk_has_the_bytes_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_size)
        fsync(handle)

    def recording_replace(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    files.write_bytes(tmp_path / "a.bin", b"12345")
    assert calls == [5, "rename", "folder"]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def refusing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    files.write_bytes(tmp_path / "a.bin", b"one")
    assert (tmp_path / "a.bin").read_bytes() == b"one"


# Faults while writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), ClipError("mine")])
def test_any_error_in_the_block_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write_half() -> None:
        with files.atomic_open(target) as file:
            file.write(b"half of the ne")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


def write_folder(folder: Path, texts: dict[str, str], replace: bool = True) -> None:
    with files.atomic_folder(folder, "report", owned=["one", "two"], replace=replace) as temporary:
        for name, text in texts.items():
            files.write_text(temporary / name, text)


def texts_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_appears_whole_and_is_replaced_file_by_file(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    write_folder(folder, {"report": "r", "one": "1", "two": "2"}, replace=False)
    assert texts_of(folder) == {"report": "r", "one": "1", "two": "2"}
    files.write_text(folder / "mine", "m")
    with pytest.raises(ClipError, match=f"{folder / 'one'} is there already"):
        write_folder(folder, {"one": "x", "report": "x"}, replace=False)
    order = []
    rename = os.replace

    def noting(source: Path, target: Path) -> None:
        if target.parent == folder:
            order.append((target.name, sorted(texts_of(folder))))
        rename(source, target)

    monkeypatch.setattr(os, "replace", noting)
    write_folder(folder, {"report": "s", "one": "3"})
    assert texts_of(folder) == {"report": "s", "one": "3", "mine": "m"}
    assert order == [("one", ["mine", "one"]), ("report", ["mine", "one"])], "the report goes first and comes last"
    (folder / "two").mkdir()
    with pytest.raises(ClipError, match=f"{folder / 'two'} is a folder; give the name of a file to write"):
        write_folder(folder, {"report": "t", "one": "4", "two": "5"})
    assert (folder / "report").read_text() == "s"
    assert (folder / "one").read_text() == "3"
    assert only(tmp_path) == ["a"]


def test_a_folder_that_fails_is_not_there(tmp_path):
    with pytest.raises(AttributeError):
        write_folder(tmp_path / "a", {"one": "1", "report": None})
    assert only(tmp_path) == []
    left = tmp_path / ".a.0123abcd.partial"  # by a writer that was killed
    left.mkdir()
    (left / "one").write_text("1")
    write_folder(tmp_path / "a", {"report": "r"})
    assert only(tmp_path) == ["a"]
    with pytest.raises(ClipError, match="report cannot be the folder of the files; give the name of another one"):
        write_folder(tmp_path / "a" / "report", {"report": "x"})
    with pytest.raises(ClipError, match="cannot be written: No such file or directory"):
        write_folder(tmp_path / "b" / "c", {"report": "x"})


def test_a_new_folder_goes_again_when_what_is_written_into_it_fails(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), files.new_folder(folder), files.atomic_open(folder / "a.bin"):
        raise KeyboardInterrupt
    assert only(tmp_path) == []
    with files.new_folder(folder):
        files.write_bytes(folder / "a.bin", b"new")
    with pytest.raises(KeyboardInterrupt), files.new_folder(folder):
        raise KeyboardInterrupt
    assert only(folder) == ["a.bin"]
    missing = "b cannot be written: No such file or directory"
    with pytest.raises(ClipError, match=missing), files.new_folder(tmp_path / "a" / "b"):
        pytest.fail("there is no folder to write into")


FILL = """
import resource, signal, sys
from clip_core import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    files.write_bytes(sys.argv[1], b"x" * 1_000_000)
except files.ClipError as error:
    print(error)
"""


def test_no_room(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    child = run_child(FILL, target)
    assert child.stdout.startswith(f"{target} cannot be written: File too large; check that its folder exists"), child
    assert target.read_bytes() == b"old"
    assert only(tmp_path) == ["a.bin"]


KILLED = """
import os, signal, sys
from clip_core import files
with files.atomic_open(sys.argv[1]) as file:
    file.write(b"x" * 1_000_000)
    file.flush()
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_while_writing(tmp_path, name):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    child = run_child(KILLED, target, name)
    assert child.returncode == -getattr(signal, name)
    assert target.read_bytes() == b"old"
    left = [entry for entry in only(tmp_path) if entry != "a.bin"]
    if name == "SIGINT":
        assert left == []
    else:  # nothing can tidy up after this; what is left does not look like a result, and the next writer removes it
        assert len(left) == 1
        assert left[0].startswith(".a.bin.")
        assert left[0].endswith(".partial")
        files.write_bytes(target, b"new")
        assert only(tmp_path) == ["a.bin"]


def test_what_others_write_and_what_downloads_go_on_from_is_not_removed(tmp_path):
    kept = [".a.bin.0123456789abcdef.partial", ".b.bin.01234567.partial", ".a.bin.01234567", "a.bin.01234567.partial"]
    for name in kept:
        (tmp_path / name).write_bytes(b"part")
    (tmp_path / ".a.bin.01234567.partial").write_bytes(b"part")
    files.write_bytes(tmp_path / "a.bin", b"one")
    assert only(tmp_path) == sorted(["a.bin", *kept])

    with files.atomic_path(tmp_path / "c.bin") as first:
        first.write_bytes(b"first")
        files.write_bytes(tmp_path / "c.bin", b"second")
        assert first.exists()  # although it is of the same name as what a killed writer leaves
        child = run_child(
            "import sys; from clip_core import files; files.write_bytes(*sys.argv[1:2], b'third')", tmp_path / "c.bin"
        )
        assert (child.returncode, first.exists()) == (0, True)
    assert (tmp_path / "c.bin").read_bytes() == b"first"


def test_a_folder_that_another_program_has_locked(tmp_path):
    """As in ``flock FOLDER clip convert ...``."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    files.write_bytes(tmp_path / "a.bin", b"one")
    os.close(handle)
    assert only(tmp_path) == ["a.bin"]


def test_unwritable_folder(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is made up."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ClipError, match=r"a\.bin cannot be written: Permission denied; check that its folder exists"):
        files.write_bytes(tmp_path / "a.bin", b"one")
    monkeypatch.undo()
    assert only(tmp_path) == []


def test_rename_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ClipError, match="cannot be written: Invalid cross-device link"):
        files.write_bytes(tmp_path / "a.bin", b"one")
    assert only(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a folder; give the name of a file to write"),
        ("missing/a.bin", "cannot be written: No such file or directory"),
        ("file/a.bin", "cannot be written: Not a directory"),
        ("a\0b", "cannot be written: no file can have this name"),
        ("a\ud800b", "cannot be written: no file can have this name"),
        ("x" * 256, "cannot be written: File name too long"),
        ("loop", "cannot be written: Too many levels of symbolic links"),
        ("pipe", "is not a regular file; give the name of a file to write"),
    ],
)
def test_impossible_targets(tmp_path, name, sentence):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = only(tmp_path)
    with pytest.raises(ClipError, match=sentence):
        files.write_bytes(os.path.join(tmp_path, name), b"one")
    assert only(tmp_path) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_not_replaced():
    with pytest.raises(ClipError, match="/dev/null is not a regular file"):
        files.write_bytes("/dev/null", b"one")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# Logs -----------------------------------------------------------------------------------------------------------------


def test_appending(tmp_path):
    for line in (b"one\n", b"two\n"):
        with files.appending(tmp_path / "log") as file:
            file.write(line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_appending_speaks_of_the_log_only_when_it_is_the_log(tmp_path):
    with pytest.raises(ClipError, match="cannot be written: No such file or directory"):
        files.appending(tmp_path / "missing" / "log").__enter__()
    with pytest.raises(TimeoutError), files.appending(tmp_path / "log"):
        raise TimeoutError


# Reading --------------------------------------------------------------------------------------------------------------


def test_read(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert files.read_regular(path) == files.read_regular(tmp_path / "link") == files.read_regular(path, 5) == b"12345"
    assert files.sha256(path) == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"


def test_read_too_much(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    with pytest.raises(ClipError, match=r"a\.bin has 5 bytes; at most 4 are read here"):
        files.read_regular(path, 4)


def test_limit_holds_where_the_system_states_no_size():
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(ClipError, match="/proc/self/maps has 101 bytes; at most 100 are read here"):
        files.read_regular("/proc/self/maps", 100)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "cannot be read: No such file or directory; check that it exists and may be read"),
        ("broken", "cannot be read: No such file or directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("folder", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("a\0b", "cannot be read: no file can have this name"),
        ("a\ud800b", "cannot be read: no file can have this name"),
        ("x" * 256, "cannot be read: File name too long"),
    ],
)
def test_only_regular_files_are_read(tmp_path, name, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for read in (files.read_regular, files.sha256):
        with pytest.raises(ClipError, match=sentence):
            read(os.path.join(tmp_path, name))


def test_refused_files_are_closed(tmp_path):
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        with pytest.raises(ClipError):
            files.read_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_disk_that_fails_while_reading(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"one")
    sentence = r"a\.bin cannot be read: Input/output error"
    with pytest.raises(ClipError, match=sentence), files.open_regular(tmp_path / "a.bin"):
        raise OSError(errno.EIO, "Input/output error")


# The cache folder -----------------------------------------------------------------------------------------------------


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")
    monkeypatch.setenv("CLIP_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.cache")
    assert cache_folder() == Path("/home/me/.cache/triclip")
