"""The only place that opens a file for writing: whole files or none, never a part of one under its final name."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import secrets
import shutil
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import platformdirs

from clip_core.errors import ClipError, DownloadError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at once spoil each other, and the digest tells
    fcntl = None  # type: ignore[assignment]

ATTEMPTS = 5
"""How often a download is tried before it is given up."""

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long."""

TIMEOUT = 30.0
"""Seconds that a server may take to connect or to send its next bytes."""

SLOWEST = 1024
"""Bytes per second, over `TIMEOUT`, below which a connection counts as broken."""

LONGEST = 24 * 3600.0
"""Seconds that one attempt may take."""

LARGEST = 64 << 30
"""Bytes of a download for which nobody states a size or a limit."""

LOCK = ".lock"
"""The file in a folder by which `exclusive` holds it; it stays."""

_PIECE = 1 << 20  # bytes read at once
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
    with _errors_about(target, "written"):
        real = _real_path(target)
        mode = _mode_of(real)
        temporary = _beside(real, secrets.token_hex(_TOKEN_BYTES))
        with _tidied(real):
            try:
                # The system applies the umask to 0o666; what replaces a private file is private from its first byte on.
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
                if mode is None:
                    mode = stat.S_IMODE(os.fstat(handle).st_mode)
                os.close(handle)
                yield temporary
                try:
                    _publish(temporary, real, mode, os.replace if replace else _add)
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
def set_aside(path: str | os.PathLike[str]) -> Iterator[None]:
    """Take a file away: when the block fails, it is put back, and when it ends well, it is gone.

    Whoever calls this is about to write the same file by `atomic_path`, which removes what a killed process has left.

    Raises:
        ClipError: it cannot be renamed.
    """
    with _errors_about(path, "written"):
        real = _real_path(path)
        aside = _beside(real, secrets.token_hex(_TOKEN_BYTES))
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
    with _errors_about(folder, "written"):
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
    with _errors_about(path, "written"):
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
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a folder, pipe, device or broken link is refused before anything is read.

    Raises:
        ClipError: there is no such file, it is not a regular file, or it cannot be opened or read.
    """
    with _errors_about(path, "read"):
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
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where fetched files are kept: ``$CLIP_CACHE``, else the cache folder of this user; it may not exist yet."""
    return Path(os.environ.get("CLIP_CACHE") or platformdirs.user_cache_dir("triclip", appauthor=False))


def download(
    url: str,
    target: str | os.PathLike[str],
    sha256: str | None,
    *,
    expected_size: int | None = None,
    limit: int = LARGEST,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Fetch ``url`` to ``target`` unless it is there already, and give the path of ``target``.

    Bytes gather in a partial file beside the target, which becomes the target in one rename once its length and digest
    are right. With a digest, a later call goes on where an earlier one was stopped. Two downloads of one file at once
    take turns, and the second finds the work done. Missing folders are made.

    Args:
        url: an http or https address; redirects are followed, but not from https to http.
        sha256: 64 hexadecimal digits. A target with another digest is fetched anew. When ``None``, a target of the
            expected size is taken as it is, and an interrupted download starts from the beginning.
        expected_size: bytes.
        limit: bytes that are taken at most where ``expected_size`` is not known.
        progress: called with the bytes present and the bytes in all, if known, whenever some have arrived.

    Raises:
        DownloadError: the server gives no such file or another one, `ATTEMPTS` attempts failed, or there is no space.
        ClipError: the target cannot be written.
    """
    _check_address(url)
    digest = sha256 and sha256.lower()
    with _errors_about(target, "written"):
        real = _real_path(target)
        mode = _mode_of(real)
        real.parent.mkdir(parents=True, exist_ok=True)
        if _is_wanted(real, digest, expected_size):
            return Path(target)
        key = digest or hashlib.sha256(url.encode()).hexdigest()
        with _locked(_beside(real, key[:16])) as partial:
            if _is_wanted(real, digest, expected_size):  # another download finished while this one waited
                partial.remove()
                return Path(target)
            try:
                if digest is None or partial.digest.hexdigest() != digest:
                    remedy = "" if digest is None else f", or put the file with SHA-256 {digest} at {real} yourself"
                    _fetch(url, partial, digest, expected_size, limit, progress, remedy)
                partial.publish(real, mode)
            except BaseException:
                if digest is None or partial.size == 0:
                    partial.remove()
                raise
    return Path(target)


def _is_wanted(path: Path, digest: str | None, size: int | None) -> bool:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return digest is None or sha256(path) == digest


class _Partial:
    """A file that is being fetched, with the size and digest of what it holds so far."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.resumed = False  # whether its bytes come from several answers, which may be of different files
        self._file = file
        self.size, self.digest = 0, hashlib.sha256()
        file.seek(0)
        while piece := file.read(_PIECE):
            self._count(piece)

    def append(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError as error:  # not to be taken for a fault of the network, which is tried again
            with suppress(OSError):
                self.restart()  # what filled the disk does not stay on it
            raise DownloadError(f"{self.path} cannot be written: {_reason(error)}; make room for it.") from error
        self._count(piece)

    def restart(self) -> None:
        self._file.truncate(0)
        self.resumed = False
        self.size, self.digest = 0, hashlib.sha256()

    def publish(self, target: Path, mode: int | None) -> None:
        self._file.flush()
        self._let_go()
        _publish(self.path, target, stat.S_IMODE(self.path.stat().st_mode) if mode is None else mode)

    def remove(self) -> None:
        self._let_go()
        self.path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if os.name == "nt":  # Windows renames and removes closed files only
            self._file.close()

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self.digest.update(piece)


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
    with _errors_about(folder, "written"):
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
def _locked(path: Path) -> Iterator[_Partial]:
    """The partial file at ``path``, made if absent, held against other downloads until the block ends or we die."""
    while True:
        with open(path, "a+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                still_there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                still_there = False
            if still_there:  # and not renamed or removed by whoever held it before
                yield _Partial(path, file)
                return


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https, and from http to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is less safe; check the address.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Timely(io.RawIOBase):
    """The bytes of a connection, until a moment that whoever reads them sets anew."""

    def __init__(self, raw: Any):
        self._raw = raw
        self.extend()

    def extend(self) -> None:
        self._deadline = time.monotonic() + TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the answer does not go on")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head, and then each piece of its body, come within `TIMEOUT`.

    The timeout of a connection is about its next byte alone: headers, or what stands between the chunks of a body,
    could go on for ever.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._timely = _Timely(self.fp.detach())
        self.fp = io.BufferedReader(self._timely)

    def read1(self, n: int = -1) -> bytes:
        self._timely.extend()
        return super().read1(n)


class _Connection(http.client.HTTPConnection):
    response_class = _Answer


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connections whose answers are of `_Answer`."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SafeConnection, req)


def _fetch(
    url: str,
    partial: _Partial,
    digest: str | None,
    expected_size: int | None,
    limit: int,
    progress: Callable[[int, int | None], None] | None,
    remedy: str,
) -> None:
    """Complete ``partial``, in several attempts if need be; ``remedy`` is what else can be done, for the message."""
    opener = urllib.request.build_opener(_HttpOnly, _Handler)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            return _fetch_rest(opener, url, partial, digest, expected_size, limit, progress)
        except urllib.error.HTTPError as error:
            error.close()
            answer = f"{error.code} {shorten(str(error.reason), 200)}"  # which goes over several lines for redirects
            if error.code == 416:  # we hold as many bytes as the file has, or more, and they are not the right ones
                partial.restart()
            elif error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{url} answers {answer}; check the address{remedy}.") from error
            reason = f"it answers {answer}"
        except (http.client.InvalidURL, ValueError) as error:  # its host, or what it redirects to, cannot be an address
            raise DownloadError(f"{url} leads to an impossible address: {error}; check the address{remedy}.") from error
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
    raise DownloadError(f"{url} could not be fetched in {ATTEMPTS} attempts: {reason}; try again later{remedy}.")


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not re.fullmatch("[!-~]+", url):
        raise DownloadError(f"{url!r} is not an address to fetch from; it must start with http:// or https://.")


def _fetch_rest(
    opener: urllib.request.OpenerDirector,
    url: str,
    partial: _Partial,
    digest: str | None,
    expected_size: int | None,
    limit: int,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Ask once for what ``partial`` lacks. An ``OSError`` or ``HTTPException`` means: try again."""
    if digest is None:  # nothing would tell that the parts are of different files
        partial.restart()
    headers = {"User-Agent": "triclip", "Accept-Encoding": "identity"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        stated = _accept(response, partial)
        if stated is not None and expected_size not in (None, stated):
            partial.restart()
            raise DownloadError(f"{url} has {stated} bytes, not {expected_size}; it is not the file asked for.")
        if stated is not None and expected_size is None and stated > limit:
            partial.restart()
            raise DownloadError(f"{url} has {stated} bytes, more than {limit}; it is not the file asked for.")
        total = stated if expected_size is None else expected_size
        if digest is None and total is None and not response.chunked:
            raise DownloadError(f"{url} states no length, so a cut could not be noticed; use another server.")
        free = shutil.disk_usage(partial.path.parent).free
        if total is not None and total - partial.size > free:
            raise DownloadError(
                f"{partial.path.parent} has {free} bytes free, and {total - partial.size} are needed for {url}; "
                "make room, or choose another folder."
            )
        most = limit if total is None else total
        started = since = time.monotonic()
        received = 0
        while piece := response.read1(_PIECE):
            partial.append(piece)
            if partial.size > most:
                partial.restart()
                raise DownloadError(f"{url} gives more than {most} bytes; it is not the file asked for.")
            if progress is not None:
                progress(partial.size, total)
            received += len(piece)
            elapsed = time.monotonic() - since
            if elapsed > TIMEOUT:
                if received < SLOWEST * elapsed:
                    raise TimeoutError(f"only {received} bytes came in {elapsed:.0f} seconds")
                since, received = time.monotonic(), 0
            if since - started > LONGEST:
                raise DownloadError(f"{url} did not come within {LONGEST / 3600:.0f} hours; try again later.")
    if total is not None and partial.size < total:
        raise ConnectionError(f"the connection ended after {partial.size} of {total} bytes")
    if digest is not None and partial.digest.hexdigest() != digest:
        found, resumed = partial.digest.hexdigest(), partial.resumed
        partial.restart()
        if resumed:
            raise ConnectionError("the parts do not make the file that was asked for")
        raise DownloadError(f"{url} has SHA-256 {found}, not {digest}; it is not the file asked for.")


def _accept(response: http.client.HTTPResponse, partial: _Partial) -> int | None:
    """Make ``partial`` what the answer continues; gives the size of the whole file where the server states it."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{response.url} is sent compressed although that was not asked for; use another address.")
    if response.status == 200:
        partial.restart()
        length = response.headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", stated)
    if response.status != 206 or not found or int(found[1]) != partial.size:
        asked = f"bytes from {partial.size}"
        partial.restart()
        raise ConnectionError(f"it answers {response.status} with Content-Range {stated!r} when asked for {asked}")
    partial.resumed = True
    return None if found[3] == "*" else int(found[3])


def _real_path(target: str | os.PathLike[str]) -> Path:
    """Follow links to where the file really is, so that writing it leaves the links as they are."""
    return Path(os.path.realpath(target))


def _mode_of(target: Path) -> int | None:
    """The permissions of the file at ``target``; ``None`` where there is none."""
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        kind = "a folder" if stat.S_ISDIR(found) else "not a regular file"
        raise ClipError(f"{target} is {kind}; give the name of a file to write.")
    return stat.S_IMODE(found)


def _beside(target: Path, key: str) -> Path:
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
                        if len(key) == 2 * _TOKEN_BYTES and path == _beside(target, key):
                            path.unlink()
                _share(folder)
        yield


def _share(folder: int) -> None:
    """Share the lock on ``folder``; who removes leftovers holds it alone, for a moment only."""
    for pause in (0, 0.01, 0.1, 1):
        time.sleep(pause)
        with suppress(BlockingIOError):
            return fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _publish(temporary: Path, target: Path, mode: int, rename: Callable[[Path, Path], None] = os.replace) -> None:
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
def _errors_about(path: str | os.PathLike[str], done: str) -> Iterator[None]:
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
        raise ClipError(f"{path} cannot be {done}: {_reason(error)}; check that {hint}.") from error


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(cause, "strerror", None) or str(cause)
