"""What every request passes before Gradio sees it: its route, its origin, its size, and the files that it names."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip.serving.access import LOCAL_NAMES, host_of
from clip.serving.intake import Intake, Received, discard
from clip.serving.limits import Limits
from clip.serving.refusals import Refusal, busy

LIMITS = Limits(body=64 << 20, body_seconds=60)  # a body may hold several pictures
MOST_JSON = 1 << 20  # bytes of a question, whose pictures were sent before
MOST_KEPT = 2 << 30  # bytes of all uploads that are on the disk

_API = "/gradio_api"
_FILE = f"{_API}/file="
_UPLOAD = f"{_API}/upload"
# Those that the page and Gradio's clients need. Others of Gradio's skip its queue, fetch addresses, or take files.
_ROUTES = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?"
    r"|/(assets|static|svelte)/.+"
    rf"|{_API}/(info|app_id|theme\.css|upload|upload_progress|cancel|reset|queue/(join|data|status))"
    rf"|{_API}/(call|heartbeat)/.+|{_API}/run/predict"  # the latter for presets and examples, which compute nothing
    rf"|{re.escape(_FILE)}.+"
)
_PAGE_POLICY = "; ".join(  # Gradio's scripts and styles stand within its page, and it makes functions of texts
    (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_FILE_POLICY = "default-src 'none'; sandbox"


class Guard:
    """Gradio's application behind all that is asked of requests.

    Args:
        folder: of uploads and of pictures that the page shows, outside which no request may name a file.
        local: whether the page is for this machine only: requests for other names, under which a page of another site
            may have made a browser reach it, are then refused.
        kept_seconds: for which an upload stays on the disk.
    """

    def __init__(self, application: ASGIApp, folder: Path, local: bool, kept_seconds: float) -> None:
        self._application, self._folder, self._local = application, os.path.realpath(folder), local
        self._kept_seconds = kept_seconds
        self._intake = Intake(LIMITS)
        self._uploads: deque[tuple[float, int]] = deque()  # when each is deleted, and its bytes
        self._answers: set[asyncio.Task[None]] = set()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        answer = asyncio.current_task()
        assert answer is not None
        self._answers.add(answer)
        state = ""  # of the answer: begun, then whole

        async def guarded(message: Message) -> None:
            nonlocal state
            if message["type"] == "http.response.start":
                state = "begun"
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = _FILE_POLICY if scope["path"].startswith(_FILE) else _PAGE_POLICY
            elif not message.get("more_body", False):
                state = "whole"
            await send(message)

        received = Received()
        try:
            await self._answer(scope, receive, guarded, received)
        except Refusal as refusal:
            await refusal.answer(scope["path"])(scope, receive, guarded)
        except asyncio.CancelledError:
            if not self._ended:
                raise
            if state == "begun":
                await send({"type": "http.response.body", "body": b""})
            elif not state:
                await busy("The page is closed.").answer(scope["path"])(scope, receive, send)
        finally:
            self._intake.held -= received.size
            self._answers.discard(answer)

    def end(self) -> None:
        """End all answers, of which some would go on as long as a browser shows the page."""
        self._ended = True
        for answer in self._answers:
            answer.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, received: Received) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_route(scope["path"])
            self._check_names(headers)
            body = await self._intake.body(headers, receive, received)
            if body is None:
                return
            if scope["path"].startswith(_UPLOAD):
                self._take_room(len(body))
            elif body:
                self._check_question(body)
        except Refusal as refusal:
            await discard(headers, receive, received)
            refusal.headers["Connection"] = "close"
            raise
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            for message in given:
                return message
            return await receive()  # which tells when the client goes away

        await self._application(scope, replay, send)

    def _check_route(self, path: str) -> None:
        if not _ROUTES.fullmatch(path):
            raise Refusal(404, "There is nothing at this address.")
        if path.startswith(_FILE) and not self._holds(path.removeprefix(_FILE)):
            raise Refusal(403, "This page gives no such file.")

    def _check_names(self, headers: Headers) -> None:
        """Refuse what a page of another site asks, and, of a local page, what is asked under another name."""
        host = host_of(f"//{headers.get('host', '')}")
        if self._local and host not in LOCAL_NAMES:
            raise Refusal(
                403, "The request is for another host; this page answers to localhost, 127.0.0.1 and ::1 only."
            )
        # A proxy tells by which name it was reached; a page of another site cannot send that header.
        names = {host, host_of(f"//{headers.get('x-forwarded-host', '')}")} | set(LOCAL_NAMES if self._local else ())
        if "origin" in headers and host_of(headers["origin"]) not in names - {None}:
            raise Refusal(403, "The request comes from a web page of another site, which this page does not answer.")

    def _take_room(self, size: int) -> None:
        now = time.monotonic()
        while self._uploads and self._uploads[0][0] < now:
            self._uploads.popleft()
        if size + sum(each for _, each in self._uploads) > MOST_KEPT:
            raise busy("The page holds as many pictures as it may; come again in some minutes.")
        self._uploads.append((now + self._kept_seconds, size))

    def _check_question(self, body: bytes) -> None:
        if len(body) > MOST_JSON:
            raise Refusal(
                413, f"The question has {len(body)} bytes; at most {MOST_JSON} are read, so send fewer texts."
            )
        try:
            json.loads(body, object_hook=self._check_file)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "The question is not JSON.") from error

    def _check_file(self, part: dict[str, Any]) -> dict[str, Any]:
        """An object of a question, if it names no file but uploads; Gradio would fetch addresses."""
        path = part.get("path")
        if path is not None and not (isinstance(path, str) and self._holds(path)):
            raise Refusal(403, "The question names a file that was not uploaded to this page.")
        return part

    def _holds(self, path: str) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self._folder)
