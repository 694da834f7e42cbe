"""Sockets to serve from, and a server that ends well."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import suppress
from ipaddress import ip_address
from types import FrameType

import uvicorn

from clip_core.errors import ClipError
from clip_core.files import reason

BACKLOG = 2048  # connections that the system keeps until they are accepted

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


def listening(host: str, port: int, alone: bool) -> socket.socket:
    """A socket that is bound to a port.

    Args:
        alone: whether only this machine may be able to reach it.

    Raises:
        ClipError: the host is not known or not of this machine, can be reached by others although ``alone``, or the
            port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ClipError(f"--host {host} is no name or address of a machine: {reason(error)}.") from error
    family, kind, number, _, address = found[0]
    if alone and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ClipError(
            f"--host {host} can be reached by other machines, and there is no token that they would need; give a file "
            "with one by --token-file, or leave out --host to serve this machine only."
        )
    listener = socket.socket(family, kind, number)
    try:
        if os.name == "posix":  # on Windows it would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} of {host} is in use by another program; stop that one, or give another --port"
        else:
            what = f"port {port} of {host} cannot be used: {reason(error)}; give another --port or --host"
        raise ClipError(f"{what[0].upper()}{what[1:]}.") from error
    return listener


class Server(uvicorn.Server):
    """Ends well by a signal, as a server is meant to; uvicorn's drains, and then lets the signal end the process."""

    def handle_exit(self, number: int, _: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT  # Ctrl-C for the second time
        self.should_exit = True


def address_of(listener: socket.socket) -> str:
    """What a browser calls the place where a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(most: int) -> None:
    """Raise the number of files that this process may open, which many systems set to 1,024 at first."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * most if hard == resource.RLIM_INFINITY else min(2 * most, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
