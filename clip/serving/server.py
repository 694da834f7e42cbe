"""A server from its socket to its end."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn

from clip.api import LoadedModel
from clip.search import Index
from clip.serving.access import Access, read_token
from clip.serving.app import application
from clip.serving.gate import Gate
from clip.serving.limits import Limits
from clip.serving.logs import log_as_json, log_event
from clip.serving.metrics import Metrics
from clip.serving.protocol import Patient
from clip.serving.service import Service
from clip_core.errors import ClipError
from clip_core.files import reason

BACKLOG = 2048  # connections that the system keeps until they are accepted

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


def run(
    name: str,
    load: Callable[[], LoadedModel],
    host: str,
    port: int,
    limits: Limits,
    token_file: Path | None = None,
    fetch: bool = False,
    index: Index | None = None,
) -> None:
    """Serve a model until a signal ends this process; requests that are there by then are answered.

    Args:
        name: of the model, or its file.
        load: opens it, once the socket is open.
        port: 0 takes a free one; the log says which.
        token_file: with the token that requests need.
        fetch: whether pictures at addresses are fetched.
        index: to search in.

    Raises:
        ClipError: the port or the token cannot be used, others could ask without a token, or the model cannot be
            loaded.
    """
    token = None if token_file is None else read_token(token_file)
    with listening(host, port, alone=token is None) as listener:
        log_as_json()
        _allow_connections(limits.connections)
        metrics = Metrics()
        service = Service(
            name, load, limits, metrics, fetch, index, failed=lambda: setattr(server, "should_exit", True)
        )
        gate = Gate(application(service, metrics), limits, Access(token), metrics)
        server = _Server(
            uvicorn.Config(
                gate,
                http=partial(Patient, limits),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=limits.drain_seconds,
            )
        )
        metrics.watch(
            connections=lambda: len(server.server_state.connections),
            held=lambda: gate.held,
            accepted=lambda: service.accepted,
            waiting=lambda: service.waiting,
        )
        log_event("listening", address=_address(listener))
        service.start()
        try:
            server.run([listener])
        finally:
            service.close()
    if service.failure is not None:
        raise service.failure
    log_event("ended")


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


class _Server(uvicorn.Server):
    """Ends well by a signal, as a server is meant to; uvicorn's drains, and then lets the signal end the process."""

    def handle_exit(self, number: int, _: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT  # Ctrl-C for the second time
        self.should_exit = True


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_connections(most: int) -> None:
    """Raise the number of files that this process may open, which many systems set to 1,024 at first."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * most if hard == resource.RLIM_INFINITY else min(2 * most, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
