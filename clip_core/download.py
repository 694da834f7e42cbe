"""Fetching files over HTTP: whole and right, or not at all; what is cut off goes on later."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import platformdirs

from clip_core import files
from clip_core.errors import DownloadError
from clip_core.files import PIECE, beside, errors_about, locked_file, mode_of, publish, real_path, reason

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
    with errors_about(target, "written"):
        real = real_path(target)
        mode = mode_of(real)
        real.parent.mkdir(parents=True, exist_ok=True)
        if _is_wanted(real, digest, expected_size):
            return Path(target)
        key = digest or hashlib.sha256(url.encode()).hexdigest()
        path = beside(real, key[:16])
        with locked_file(path) as file:
            partial = _Partial(path, file)
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
    return digest is None or files.sha256(path) == digest


class _Partial:
    """A file that is being fetched, with the size and digest of what it holds so far."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.resumed = False  # whether its bytes come from several answers, which may be of different files
        self._file = file
        self.size, self.digest = 0, hashlib.sha256()
        file.seek(0)
        while piece := file.read(PIECE):
            self._count(piece)

    def append(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError as error:  # not to be taken for a fault of the network, which is tried again
            with suppress(OSError):
                self.restart()  # what filled the disk does not stay on it
            raise DownloadError(f"{self.path} cannot be written: {reason(error)}; make room for it.") from error
        self._count(piece)

    def restart(self) -> None:
        self._file.truncate(0)
        self.resumed = False
        self.size, self.digest = 0, hashlib.sha256()

    def publish(self, target: Path, mode: int | None) -> None:
        self._file.flush()
        self._let_go()
        publish(self.path, target, stat.S_IMODE(self.path.stat().st_mode) if mode is None else mode)

    def remove(self) -> None:
        self._let_go()
        self.path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if os.name == "nt":  # Windows renames and removes closed files only
            self._file.close()

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self.digest.update(piece)


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https, and from http to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is less safe; check the address.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Timely(io.RawIOBase):
    """The bytes of a connection until ``deadline``, a moment of ``time.monotonic`` that may be set anew."""

    def __init__(self, raw: Any, deadline: float):
        self._raw = raw
        self.deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self.deadline:
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
        self._timely = Timely(self.fp.detach(), time.monotonic() + TIMEOUT)
        self.fp = io.BufferedReader(self._timely)

    def read1(self, n: int = -1) -> bytes:
        self._timely.deadline = time.monotonic() + TIMEOUT
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
            met = f"it answers {answer}"
        except (http.client.InvalidURL, ValueError) as error:  # its host, or what it redirects to, cannot be an address
            raise DownloadError(f"{url} leads to an impossible address: {error}; check the address{remedy}.") from error
        except (OSError, http.client.HTTPException) as error:
            met = reason(error.reason if isinstance(error, urllib.error.URLError) else error)
    raise DownloadError(f"{url} could not be fetched in {ATTEMPTS} attempts: {met}; try again later{remedy}.")


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
        while piece := response.read1(PIECE):
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
