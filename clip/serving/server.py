"""A server from its socket to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clip.api import LoadedModel
from clip.search import Index
from clip.serving.access import Access, read_token
from clip.serving.app import application
from clip.serving.gate import Gate
from clip.serving.limits import Limits
from clip.serving.logs import log_as_json, log_event
from clip.serving.metrics import Metrics
from clip.serving.protocol import configuration
from clip.serving.service import Service
from clip.serving.sockets import Server, address_of, allow_connections, listening


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
        allow_connections(limits.connections)
        metrics = Metrics()
        service = Service(
            name, load, limits, metrics, fetch, index, failed=lambda: setattr(server, "should_exit", True)
        )
        gate = Gate(application(service, metrics), limits, Access(token), metrics)
        server = Server(configuration(gate, limits, lifespan="off"))
        metrics.watch(
            connections=lambda: len(server.server_state.connections),
            held=lambda: gate.intake.held,
            accepted=lambda: service.accepted,
            waiting=lambda: service.waiting,
        )
        log_event("listening", address=address_of(listener))
        service.start()
        try:
            server.run([listener])
        finally:
            service.close()
    if service.failure is not None:
        raise service.failure
    log_event("ended")
