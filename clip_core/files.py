"""The only place that opens a file for writing: whole files or none, never a part of one under its final name."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from clip_core.errors import ClipError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at once spoil each other, and the digest tells
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a folder by which `exclusive` holds it; it stays."""

PIECE = 1 << 20  # bytes read at once
_TOKEN_BYTES = 4  # of the name of a file that is being written; that of a download, which is resumed, has twice as many


def check_target(
    target: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = (), force: bool = False
) -> None:
    """Refuse to write ``target`` where that would cost a file; to be asked before the work.

    Args:
        inputs: files that are read, which are never replaced.
        force: replace any other file that is there.

    Raises:
        ClipError: the target is one of the inputs, also through a link, or a file is there already.
    """
    for path in inputs:
        with suppress(OSError, ValueError):  # one of them is not there, or cannot be
            if os.path.samefile(path, target):
                raise ClipError(f"{target} is a file that is read here itself; give another name for the result.")
    if not force and os.path.isfile(target):
        raise _taken(target)


def _taken(target: str | os.PathLike[str]) -> ClipError:
    return ClipError(f"{target} is there already; give another name, or --force (force=True) to replace it.")


@contextmanager
def atomic_path(target: str | os.PathLike[str], replace: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``target``; when the block ends well, it becomes ``target`` in one rename.

    The temporary file is on the same file system, flushed to the disk before the rename and the folder after it, so a
    reader sees the old file or the new one, also after a power cut. On any error, also Ctrl-C, it is removed and the
    old file is untouched. What a writer of ``target`` that was killed could not remove, the next one removes. The mode
    follows the replaced file, else the umask; a link stays a link.

    Args:
        replace: whether a file that is there is replaced; if not, one of two writers at once is refused in the end.

    Raises:
        ClipError: the target is something other than a regular file, is there and not to be replaced, or cannot be
            written.
    """
    with errors_about(target, "written"):
        real = real_path(target)
        mode = mode_of(real)
        temporary = beside(real, secrets.token_hex(_TOKEN_BYTES))
        with _tidied(real):
            try:
                # The system applies the umask to 0o666; what replaces a private file is private from its first byte on.
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
                if mode is None:
                    mode = stat.S_IMODE(os.fstat(handle).st_mode)
                os.close(handle)
                yield temporary
                try:
                    publish(temporary, real, mode, os.replace if replace else _add)
                except FileExistsError:
                    raise _taken(target) from None
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


@contextmanager
def atomic_open(target: str | os.PathLike[str], replace: bool = True) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the temporary file already open for writing bytes."""
    with atomic_path(target, replace) as path, open(path, "wb") as file:
        yield file


@contextmanager
def atomic_folder(
    target: str | os.PathLike[str], last: str, owned: Iterable[str] = (), replace: bool = True
) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; when the block ends well, its files appear in ``target``.

    Where that is not there, in one rename. Else ``last``, a file that tells of the others, goes first and its new
    version comes after them, so that it never stands beside files that it does not tell of. On any error, also Ctrl-C,
    the temporary folder is removed and ``target`` is untouched.

    Args:
        owned: names of files that are parts of an older version, and removed where the new one does not have them;
            asked for when the files are about to appear.
        replace: whether files that are there are replaced.

    Raises:
        ClipError: the target is something other than a folder, has one of the files and it is not to be replaced, or
            cannot be written.
    """
    with errors_about(target, "written"):
        real = real_path(target)
        if real == real.parent or (real.exists() and not real.is_dir()):
            raise ClipError(f"{target} cannot be the folder of the files; give the name of another one.")
        temporary = beside(real, secrets.token_hex(_TOKEN_BYTES))
        with _tidied(real):
            try:
                temporary.mkdir()
                yield temporary
                names = sorted((path.name for path in temporary.iterdir()), key=last.__eq__)
                for name in names:
                    with open(temporary / name, "rb") as file:
                        os.fsync(file.fileno())
                sync_folder(temporary)
                if real.exists():
                    _replace_files(temporary, real, names, owned, replace)
                else:
                    os.rename(temporary, real)
                sync_folder(real.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _replace_files(source: Path, target: Path, names: list[str], owned: Iterable[str], replace: bool) -> None:
    """Move files into a folder, the last of them as the last."""
    for name in names:
        check_target(target / name, force=replace)
        mode_of(target / name)  # which refuses a folder of that name
    left = set(owned) - set(names)
    (target / names[-1]).unlink(missing_ok=True)
    sync_folder(target)
    for name in left:
        (target / name).unlink(missing_ok=True)
    for name in names:
        os.replace(source / name, target / name)
    sync_folder(target)


@contextmanager
def atomic_tree(target: str | os.PathLike[str], replace: bool = True) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; when the block ends well, it becomes ``target``, with all below it.

    A folder that is there is put aside first, and back if the rename fails. Killed between the two renames, there is
    none. On any error, also Ctrl-C, the temporary folder is removed and ``target`` is as it was.

    Args:
        replace: whether a folder that is there is replaced.

    Raises:
        ClipError: the target is something other than a folder, is there and not to be replaced, or cannot be written.
    """
    with errors_about(target, "written"):
        real = real_path(target)
        if real == real.parent or (os.path.lexists(real) and not real.is_dir()):
            raise ClipError(f"{target} cannot be the folder of the files; give the name of another one.")
        if real.exists() and not replace:
            raise _taken(target)
        temporary, aside = (beside(real, secrets.token_hex(_TOKEN_BYTES)) for _ in range(2))
        with _tidied(real):
            try:
                temporary.mkdir()
                yield temporary
                _sync_tree(temporary)
                if real.exists():
                    if not replace:
                        raise _taken(target)
                    os.rename(real, aside)
                try:
                    os.rename(temporary, real)
                except OSError:
                    if aside.exists():
                        os.rename(aside, real)
                    raise
                sync_folder(real.parent)
            finally:
                for folder in (temporary, aside):
                    shutil.rmtree(folder, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Put all files below ``folder``, and their names, on the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


@contextmanager
def set_aside(path: str | os.PathLike[str]) -> Iterator[None]:
    """Take a file away: when the block fails, it is put back, and when it ends well, it is gone.

    Whoever calls this is about to write the same file by `atomic_path`, which removes what a killed process has left.

    Raises:
        ClipError: it cannot be renamed.
    """
    with errors_about(path, "written"):
        real = real_path(path)
        aside = beside(real, secrets.token_hex(_TOKEN_BYTES))
        os.replace(real, aside)
        sync_folder(real.parent)
    try:
        yield
    except BaseException:
        os.replace(aside, real)
        raise
    with suppress(OSError):
        aside.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` where it is absent; when the block fails, it is removed again.

    Raises:
        ClipError: it cannot be made.
    """
    with errors_about(folder, "written"):
        made = not folder.is_dir()
        if made:
            folder.mkdir()
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):  # someone else has put something into it
                folder.rmdir()
        raise


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``target``, whole or not at all."""
    with atomic_open(target) as file:
        file.write(data)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``target``, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


class Appender:
    """A log that records are added to, each of them whole or not at all."""

    def __init__(self, file: io.FileIO):
        self._file = file

    def write(self, record: bytes) -> None:
        """Add ``record``; on an ``OSError``, as when the disk is full, what was written of it is taken back."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(end)
            raise


@contextmanager
def appending(path: str | os.PathLike[str]) -> Iterator[Appender]:
    """A log to add whole records to; after a crash its last one may be cut off, and its readers leave that out.

    Raises:
        ClipError: the file cannot be opened.
    """
    with errors_about(path, "written"):
        file = open(path, "ab", buffering=0)  # noqa: SIM115
    # Outside the block above: a log stays open for hours, and not every error of that time is about it.
    with file:
        yield Appender(file)


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The bytes of a regular file, read once.

    Raises:
        ClipError: there is no such file, it is not a regular file, it is larger than ``limit`` bytes, or reading fails.
    """
    with open_regular(path) as file:
        # Piece by piece: the stated size says little about a file that grows or that the system makes up, and asking
        # for the whole limit at once would take that much memory for a small file.
        data = bytearray()
        while piece := file.read(1 << 20 if limit is None else min(1 << 20, limit + 1 - len(data))):
            data += piece
            if limit is not None and len(data) > limit:
                size = max(len(data), os.fstat(file.fileno()).st_size)
                raise ClipError(f"{path} has {size} bytes; at most {limit} are read here, so give a smaller file.")
        return bytes(data)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; a folder, pipe, device or broken link is refused before anything is read.

    Raises:
        ClipError: there is no such file, it is not a regular file, or it cannot be opened or read.
    """
    with errors_about(path, "read"):
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ClipError(f"{path} is not a regular file; give the name of a file.")
        with os.fdopen(handle, "rb") as file:
            yield file


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a regular file as 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk, so that a rename in it outlives a power cut."""
    if os.name == "posix":  # Windows cannot open a folder
        with suppress(OSError):  # nor can some file systems sync one; the files themselves are in place and safe
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Hold ``folder``, made if absent, for this process until the block ends or the process does.

    Raises:
        ClipError: another process holds it; ``what`` says what for, in the message.
    """
    with errors_about(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+b")  # noqa: SIM115 - it is closed, and let go, below
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ClipError(
                    f"{folder} is in use by another {what}; wait for it, or give another folder."
                ) from error
        yield


@contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """The file at ``path``, made if absent, to read and append to, held against others until the block or we end."""
    while True:
        with open(path, "a+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                still_there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                still_there = False
            if still_there:  # and not renamed or removed by whoever held it before
                yield file
                return


def real_path(target: str | os.PathLike[str]) -> Path:
    """Follow links to where the file really is, so that writing it leaves the links as they are."""
    return Path(os.path.realpath(target))


def mode_of(target: Path) -> int | None:
    """The permissions of the file at ``target``; ``None`` where there is none."""
    try:
        found = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found):
        kind = "a folder" if stat.S_ISDIR(found) else "not a regular file"
        raise ClipError(f"{target} is {kind}; give the name of a file to write.")
    return stat.S_IMODE(found)


def beside(target: Path, key: str) -> Path:
    """Where what will become ``target`` is written; ``key`` tells it from other such files."""
    # Most file systems allow 255 bytes; 40 characters are at most 160.
    return target.with_name(f".{target.name[:40]}.{key}.partial")


@contextmanager
def _tidied(target: Path) -> Iterator[None]:
    """Remove what killed writers of ``target`` have left, and keep other processes from doing that to this one's file.

    Whoever writes a file shares a lock on its folder, so whoever gets that lock alone knows that nobody is writing.
    """
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):  # there is no such folder, it may not be listed, or has no locks
                folder = os.open(target.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                with suppress(BlockingIOError):
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for path in target.parent.iterdir():
                        key = path.stem.rpartition(".")[2]
                        if len(key) == 2 * _TOKEN_BYTES and path == beside(target, key):
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
                _share(folder)
        yield


def _share(folder: int) -> None:
    """Share the lock on ``folder``; who removes leftovers holds it alone, for a moment only."""
    for pause in (0, 0.01, 0.1, 1):
        time.sleep(pause)
        with suppress(BlockingIOError):
            return fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)


def publish(temporary: Path, target: Path, mode: int, rename: Callable[[Path, Path], None] = os.replace) -> None:
    """Let a whole file become ``target``, with these permissions, once it is on the disk."""
    with open(temporary, "r+b") as file:
        os.chmod(temporary, mode)
        os.fsync(file.fileno())
    rename(temporary, target)
    sync_folder(target.parent)


def _add(temporary: Path, target: Path) -> None:
    """Rename a file to a name that is free.

    Raises:
        FileExistsError: it is not.
    """
    if os.name == "nt":
        os.rename(temporary, target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # the file system has no links, so an empty file takes the name for a moment
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(temporary, target)
    else:
        temporary.unlink()


@contextmanager
def errors_about(path: str | os.PathLike[str], done: str) -> Iterator[None]:
    """Turn an ``OSError``, or a name that no file can have, into one sentence."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ClipError(f"{path!r} cannot be {done}: no file can have this name; give another one.")
    try:
        yield
    except OSError as error:
        hint = (
            "its folder exists, may be written to and has space" if done == "written" else "it exists and may be read"
        )
        raise ClipError(f"{path} cannot be {done}: {reason(error)}; check that {hint}.") from error


def reason(error: BaseException | str) -> str:
    """What the system says of an error, without its number and its path."""
    return getattr(error, "strerror", None) or str(error)
