"""The only place that opens a file for writing: whole files or none, never a part of one under its final name."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clip_core.errors import ClipError


@contextmanager
def atomic_path(target: str | os.PathLike[str], verify: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``target``; when the block ends well, it becomes ``target`` in one rename.

    The temporary file is on the same file system, flushed to the disk before the rename and the folder after it, so a
    reader sees the old file or the new one, also after a power cut. On any error, also Ctrl-C, it is removed and the
    old file is untouched. The mode follows the replaced file, else the umask.

    Args:
        verify: called with the finished temporary file before it is published; what it raises stops the publication.

    Raises:
        ClipError: the target cannot be written.
    """
    target = Path(target)
    if target.is_dir():
        raise ClipError(f"{target} is a folder; give the name of a file to write.")
    try:
        # Follow a link to where the file really is, so that the link stays a link.
        target = Path(os.path.realpath(target))
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".partial")
        os.close(handle)
    except (OSError, ValueError) as error:
        raise ClipError(f"{target} cannot be written: {_reason(error)}; choose a folder you may write to.") from error
    temporary = Path(name)
    try:
        yield temporary
        if verify is not None:
            verify(temporary)
        os.chmod(temporary, _mode_for(target))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ClipError(f"{target} cannot be written: {_reason(error)}; the old file, if any, is as it was.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_open(target: str | os.PathLike[str], verify: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the temporary file already open for writing bytes."""
    with atomic_path(target, verify) as path, open(path, "wb") as file:
        yield file
        file.flush()


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``target``, whole or not at all."""
    with atomic_open(target) as file:
        file.write(data)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``target``, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The bytes of a regular file, read once.

    Raises:
        ClipError: there is no such file, it is not a regular file, it is larger than ``limit`` bytes, or reading fails.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ClipError(f"{path} has {size} bytes; at most {limit} are read here.")
        try:
            return file.read()
        except OSError as error:
            raise ClipError(f"{path} cannot be read: {_reason(error)}.") from error


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a folder, pipe, device or broken link is refused before anything is read.

    Raises:
        ClipError: there is no such file, it is not a regular file, or it cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ClipError(f"{path} cannot be opened: {_reason(error)}.") from error
    with os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else _refuse(handle, path) as file:
        yield file


def _refuse(handle: int, path: str | os.PathLike[str]) -> BinaryIO:
    os.close(handle)
    raise ClipError(f"{path} is not a regular file; give the name of a file.")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a regular file as 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _mode_for(target: Path) -> int:
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
