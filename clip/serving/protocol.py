"""HTTP/1.1 by uvicorn and h11, with an end to the patience for clients that send or read nothing."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any, Literal

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clip.serving.limits import Limits
from clip.serving.refusals import RETRY_SECONDS
from clip.serving.sockets import BACKLOG


class Patient(H11Protocol):
    """A connection, which is closed when its client keeps the server waiting."""

    def __init__(self, limits: Limits, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            sentence = f"The server has {self.limits.connections} connections, and takes no more; come again."
            self._refuse(503, sentence, [(b"retry-after", str(RETRY_SECONDS).encode())])
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting_for_head()
        elif self._head_timer is None:  # a part of the next request's headers
            self._wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting_for_head()
        self.resume_writing()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def send_400_response(self, message: str) -> None:
        """The answer to what is not HTTP."""
        self._refuse(400, "The request is not valid HTTP/1.1.", [])

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._end_waiting_for_head)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_waiting_for_head(self) -> None:
        self._refuse(408, f"The headers did not end within {self.limits.head_seconds:g} seconds.", [])

    def _refuse(self, status: int, sentence: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer without a request, as far as an answer is still possible, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": sentence}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *headers,
            ]
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def configuration(application: Any, limits: Limits, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    """How uvicorn runs an ASGI application behind `Patient`: without websockets, logs of its own, or trust in proxies.

    Args:
        lifespan: whether the application is told of the server's start and end.
    """
    return uvicorn.Config(
        application,
        http=partial(Patient, limits),  # type: ignore[arg-type]
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
    )
