"""What every request passes before its route, and every answer behind it: access, limits, metrics, logs."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip.serving.access import Access
from clip.serving.intake import Intake, Received, discard
from clip.serving.limits import Limits
from clip.serving.logs import log_event, log_failure
from clip.serving.metrics import Metrics
from clip.serving.refusals import Refusal, busy

GONE = 499  # the status that logs and metrics have of a client that went away
RECORD = "clip.record"
"""The key of a request's `Record` in its scope."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass
class Record(Received):
    """What is known of a request, for logs and metrics; nothing of it is a client's own text."""

    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    status: int = 0  # of the answer, once it has begun
    complete: bool = False  # whether it has ended
    inputs: int = 0  # texts and pictures


class Gate:
    """The application behind all that a server asks of requests.

    A body is read whole before the application sees it; while that computes, a client that goes away ends it.
    """

    def __init__(self, application: ASGIApp, limits: Limits, access: Access, metrics: Metrics) -> None:
        self._application, self._limits, self._access, self._metrics = application, limits, access, metrics
        self.intake = Intake(limits)

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
            self.intake.held -= record.size
            self._note(scope, record, perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        headers = Headers(scope=scope)
        try:
            self._access.check(scope["path"], headers)
            body = await self.intake.body(headers, receive, record)
        except Refusal as refusal:
            await discard(headers, receive, record)
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
