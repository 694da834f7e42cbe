"""Bytes from an address that a stranger wrote: from the public internet, within limits, or not at all.

Such an address may name a machine in the network of whoever runs this, or redirect to one. So a host's name is resolved
once, everything that it resolves to has to be public, and the connection is made to the address that was checked: a
name server that answers differently the next time leads nowhere else. Each redirect is checked in the same way. Proxies
that the environment names are not used, since they resolve names themselves.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from clip_core.download import Timely
from clip_core.errors import ClipError, DownloadError
from clip_core.files import reason

MOST_REDIRECTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long."""

LONGEST_PAUSE = 30.0
"""Seconds that a server may ask to wait."""

_PIECE = 1 << 16
_SHOWN = 200  # characters of an address in a message
_REMEMBERED_HOSTS = 10_000

# By IANA's registries of special-purpose addresses; Python's own `is_global` differs from version to version.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
            # Of 2000::/3: tunnels that carry an IPv4 address (Teredo, 6to4), benchmarks, documentation.
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
_UNICAST = ip_network("2000::/3")
_TRANSLATED = ip_network("64:ff9b::/96")  # NAT64, by which networks without IPv4 reach its addresses


@dataclass(frozen=True)
class Limits:
    """What a server may give, and how it is asked."""

    seconds: float = 30.0  # that one attempt may take, with redirects
    size: int = 16 << 20  # bytes of one answer
    attempts: int = 3
    requests_per_second: float = 20.0  # to one host
    private: bool = False  # whether addresses that are not public are asked too

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.requests_per_second > 0):  # as of NaN, too
            raise ClipError("Seconds and requests per second must be numbers above 0.")


class Stopped(Exception):
    """The work was given up while an address was being fetched."""


class NotPublic(DownloadError):
    """An address that leads to none of the public internet; the sentence tells where."""


class Address(NamedTuple):
    """The parts of an http or https address."""

    scheme: str
    host: str
    port: int
    target: str  # path and query


class Fetcher:
    """Fetches addresses, from any number of threads; after `stop`, each of them raises `Stopped` soon."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._stopped = threading.Event()
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._turns: dict[str, float] = {}  # host -> when it may be asked next
        self._open: set[_Connection] = set()

    def stop(self) -> None:
        self._stopped.set()
        with self._lock:
            for connection in self._open:
                connection.interrupt()

    def fetch(self, url: str) -> bytes:
        """What the address gives, whole.

        Raises:
            NotPublic: it leads to an address that is not public.
            DownloadError: it is no http or https address, gives more than the limit, or every attempt failed.
        """
        shown = url[:_SHOWN]
        for attempt in range(self._limits.attempts):
            try:
                return self._attempt(url)
            except _Busy as error:
                pause, met = error.pause, str(error)
            except ssl.SSLCertVerificationError as error:
                raise DownloadError(f"{shown} has no valid certificate: {error.verify_message.rstrip('.')}.") from error
            except (OSError, http.client.HTTPException) as error:
                pause, met = 0.0, reason(error) or type(error).__name__
            if attempt + 1 < self._limits.attempts:
                self._rest(max(pause, FIRST_PAUSE * 2**attempt))
        raise DownloadError(f"{shown} could not be fetched in {self._limits.attempts} attempts: {met}.")

    def _attempt(self, url: str) -> bytes:
        deadline = time.monotonic() + self._limits.seconds
        for _ in range(MOST_REDIRECTS + 1):
            address = parse_address(url)
            self._take_turn(address.host)
            with self._connection(url, address, deadline) as connection:
                connection.request("GET", address.target, headers={"User-Agent": "triclip", "Accept": "image/*"})
                with connection.getresponse() as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return self._body(url, answer)
                    found = answer.headers.get("Location", "")
                    with suppress(ValueError):  # it is no address
                        found = urljoin(url, found)
                if address.scheme == "https" and not found.startswith("https:"):
                    raise DownloadError(f"{url[:_SHOWN]} redirects to {found[:_SHOWN]}, which is less safe.")
                url = found
        raise DownloadError(f"{url[:_SHOWN]} was reached by {MOST_REDIRECTS} redirects and redirects again.")

    @contextmanager
    def _connection(self, url: str, address: Address, deadline: float) -> Iterator[_Connection]:
        """A connection to one of the addresses of the host, after all of them have been checked."""
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise
            raise DownloadError(f"{url[:_SHOWN]} names a host that is not known.") from error
        numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = [] if self._limits.private else [number for number in numbers if not is_public(number)]
        if refused:
            raise NotPublic(f"{url[:_SHOWN]} leads to {refused[0]}, which is not an address of the public internet.")
        tls = self._tls if address.scheme == "https" else None
        connection = _Connection(address, numbers, deadline, tls)
        with self._lock:
            self._open.add(connection)
            if self._stopped.is_set():  # which may have been too early for this one
                connection.interrupt()
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _body(self, url: str, answer: http.client.HTTPResponse) -> bytes:
        shown, size = url[:_SHOWN], self._limits.size
        if answer.status in (408, 429) or answer.status >= 500:
            raise _Busy(f"it answers {answer.status}", answer.headers.get("Retry-After", ""))
        if answer.status != 200:
            raise DownloadError(f"{shown} answers {answer.status}.")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{shown} is sent compressed although that was not asked for.")
        stated = answer.length
        if stated is not None and stated > size:
            raise DownloadError(f"{shown} has {stated} bytes, and at most {size} are taken.")
        data = bytearray()
        while piece := answer.read(min(_PIECE, size + 1 - len(data))):
            data += piece
            if len(data) > size:
                raise DownloadError(f"{shown} gives more than {size} bytes.")
            if self._stopped.is_set():
                raise Stopped
        if stated is not None and len(data) < stated:
            raise ConnectionError(f"the connection ended after {len(data)} of {stated} bytes")
        return bytes(data)

    def _take_turn(self, host: str) -> None:
        """Wait until the host may be asked again."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._turns.get(host, now))
            self._turns[host] = turn + 1 / self._limits.requests_per_second
            if len(self._turns) > _REMEMBERED_HOSTS:
                self._turns = {name: at for name, at in self._turns.items() if at > now}
        self._rest(turn - now)

    def _rest(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped


class _Busy(Exception):
    """An answer that asks to come again, perhaps after so many seconds."""

    def __init__(self, sentence: str, retry_after: str):
        super().__init__(sentence)
        stated = retry_after.strip()
        self.pause = min(float(stated), LONGEST_PAUSE) if stated.isascii() and stated[:9].isdigit() else 0.0


class _Answer(http.client.HTTPResponse):
    """An answer that comes whole before a deadline."""

    def __init__(self, *arguments: Any, deadline: float, **options: Any):
        super().__init__(*arguments, **options)
        self.fp = io.BufferedReader(Timely(self.fp.detach(), deadline))

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # by which Python 3.10 to 3.13 would read whatever comes, beyond any limit
            raise ValueError(f"a chunk has {size} bytes")
        return size


class _Connection(http.client.HTTPConnection):
    """A connection to a host at one of these numeric addresses, with TLS if it is given."""

    def __init__(self, address: Address, numbers: list[str], deadline: float, tls: ssl.SSLContext | None):
        super().__init__(address.host, address.port)
        self.default_port = 443 if tls else 80
        self.response_class = partial(_Answer, deadline=deadline)  # type: ignore[assignment]
        self._numbers, self._deadline, self._tls = numbers, deadline, tls
        self._interrupted = False

    def connect(self) -> None:
        for place, number in enumerate(self._numbers, 1):
            try:
                self.sock = socket.create_connection((number, self.port), self._left())
                break
            except OSError:
                if place == len(self._numbers):
                    raise
        self.sock.settimeout(self._left())
        if self._interrupted:
            raise ConnectionAbortedError("the work was given up")
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def interrupt(self) -> None:
        """End a wait for the server, now or later, from another thread."""
        self._interrupted = True
        if self.sock is not None:
            with suppress(OSError):  # it is not connected yet, or no longer
                self.sock.shutdown(socket.SHUT_RDWR)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server takes too long")
        return left


def is_public(number: str) -> bool:
    """Whether a numeric address, IPv4 or IPv6, is one of the public internet."""
    found: IPv4Address | IPv6Address = ip_address(number.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None and found not in _TRANSLATED:
            return found in _UNICAST and not any(found in network for network in _NOT_PUBLIC)
        found = IPv4Address(int(found) & 0xFFFFFFFF)
    return not any(found in network for network in _NOT_PUBLIC)


def parse_address(url: str) -> Address:
    """The parts of an address; what its path has beyond ASCII is escaped as browsers do.

    Raises:
        DownloadError: it is none of http or https.
    """
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        query = f"?{parts.query}" if parts.query else ""
        target = quote((parts.path or "/") + query, safe=string.punctuation)
    except (KeyError, ValueError):
        host = ""
    if not host or set(host) & set(string.whitespace):
        raise DownloadError(f"{url[:_SHOWN]!r} is not an http or https address.")
    return Address(parts.scheme, host, port, target)
