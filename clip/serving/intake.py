"""Bodies of requests: read whole, within limits of bytes and of time, before an application sees them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive

from clip.serving.limits import Limits
from clip.serving.refusals import Refusal, busy

_MOST_DISCARDED = 64 << 20  # bytes of a refused body that are read, since most clients read no answer before they end
_DISCARD_SECONDS = 2.0


@dataclass
class Received:
    """How far a body has come."""

    size: int = 0  # bytes
    received: bool = False  # whether no more of it is waited for


class Intake:
    """Reads the bodies of all requests, and knows what they take together.

    Whoever has read one takes its size off ``held`` when it is no longer needed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0  # bytes of bodies

    async def body(self, headers: Headers, receive: Receive, record: Received) -> bytes | None:
        """The body of a request; None if its client goes away.

        Raises:
            Refusal: its length is stated in two ways, it is larger than the limit, comes too slowly, or there is no
                room for it now.
        """
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy that goes by the other one would take the rest of the body for the request of another client.
            raise Refusal(400, "The request has both Content-Length and Transfer-Encoding; send one of them.")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "The body is compressed, which this server does not take; send it as it is.")
        if int(headers.get("content-length", "0")) > self._limits.body:  # which the protocol has checked to be a number
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._received(receive, record), self._limits.body_seconds)
        except asyncio.TimeoutError as error:
            record.received = True
            raise Refusal(408, f"The body did not end within {self._limits.body_seconds:g} seconds.") from error

    async def _received(self, receive: Receive, record: Received) -> bytes | None:
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


async def discard(headers: Headers, receive: Receive, record: Received) -> None:
    """Read what still comes of a body that is refused, within reason, and keep nothing of it."""
    if record.received or headers.get("expect", "").lower() == "100-continue":
        return

    async def read() -> None:
        size = 0
        while size <= _MOST_DISCARDED:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DISCARD_SECONDS)
