"""What every request passes before its route, and every answer behind it: access, limits, metrics, logs."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip.serving.access import Access
from clip.serving.limits import Limits
from clip.serving.logs import log_event, log_failure
from clip.serving.metrics import Metrics
from clip.serving.refusals import Refusal, busy

GONE = 499  # the status that logs and metrics have of a client that went away
RECORD = "clip.record"
"""The key of a request's `Record` in its scope."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MOST_DISCARDED = 64 << 20  # bytes of a refused body that are read, since most clients read no answer before they end
_DISCARD_SECONDS = 2.0


@dataclass
class Record:
    """What is known of a request, for logs and metrics; nothing of it is a client's own text."""

    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    status: int = 0  # of the answer, once it has begun
    complete: bool = False  # whether it has ended
    size: int = 0  # bytes of the body that have come
    received: bool = False  # whether no more of the body is waited for
    inputs: int = 0  # texts and pictures


class Gate:
    """The application behind all that a server asks of requests.

    A body is read whole before the application sees it; while that computes, a client that goes away ends it.
    """

    def __init__(self, application: ASGIApp, limits: Limits, access: Access, metrics: Metrics) -> None:
        self._application, self._limits, self._access, self._metrics = application, limits, access, metrics
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope[RECORD] = Record()
        started = perf_counter()

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.identity
            record.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            with self._metrics.in_flight.track_inprogress():
                await self._answer(scope, receive, recorded, record)
        except Refusal as refusal:
            await refusal.answer(scope["path"])(scope, receive, recorded)
        finally:
            self.held -= record.size
            self._note(scope, record, perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        headers = Headers(scope=scope)
        try:
            self._access.check(scope["path"], headers)
            body = await self._body(headers, receive, record)
        except Refusal as refusal:
            if not record.received and headers.get("expect", "").lower() != "100-continue":
                await _discard(receive)
            refusal.headers["Connection"] = "close"
            raise
        if body is None:
            record.status = GONE
            return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            for message in given:
                return message
            return await asyncio.Future()  # the application need not look after the client

        answering = asyncio.ensure_future(self._application(scope, replay, send))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answering, leaving}, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or record.complete:
                await answering
            elif leaving.done():
                record.status = GONE
            elif not record.status:
                raise busy(f"The answer took longer than {self._limits.seconds:g} seconds; come again.")
        except Refusal:
            raise
        except Exception as error:
            log_failure(error, id=record.identity)
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _body(self, headers: Headers, receive: Receive, record: Record) -> bytes | None:
        """The body of a request; None if its client goes away.

        Raises:
            Refusal: it is larger than the limit, comes too slowly, or there is no room for it now.
        """
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "The body is compressed, which this server does not take; send it as it is.")
        if int(headers.get("content-length", "0")) > self._limits.body:  # which the protocol has checked to be a number
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._received(receive, record), self._limits.body_seconds)
        except asyncio.TimeoutError as error:
            record.received = True
            raise Refusal(408, f"The body did not end within {self._limits.body_seconds:g} seconds.") from error

    async def _received(self, receive: Receive, record: Record) -> bytes | None:
        pieces = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            record.received = not message.get("more_body", False)
            piece = message.get("body", b"")
            record.size += len(piece)
            self.held += len(piece)
            if record.size > self._limits.body:
                raise self._too_large()
            if self.held > self._limits.bodies:
                raise busy("The server holds as many bytes of requests as it may; come again.")
            pieces.append(piece)
            if record.received:
                return b"".join(pieces)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body has more than {self._limits.body} bytes; send less in each request.")

    def _note(self, scope: Scope, record: Record, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(record.status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log_event(
            "request",
            id=record.identity,
            method=scope["method"] if scope["method"] in _METHODS else "other",
            route=route,
            status=record.status,
            seconds=round(seconds, 4),
            bytes=record.size,
            inputs=record.inputs,
        )


async def _discard(receive: Receive) -> None:
    """Read what still comes of a body, within reason, and keep nothing of it."""

    async def read() -> None:
        size = 0
        while size <= _MOST_DISCARDED:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DISCARD_SECONDS)
