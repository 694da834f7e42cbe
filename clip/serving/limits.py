"""All that bounds what clients can ask of a server, in one place."""

from __future__ import annotations

from dataclasses import dataclass

MOST_LABELS = 1000  # of one classification
MOST_MATCHES = 1000  # of one search


@dataclass(frozen=True)
class Limits:
    """Counts, bytes, pixels and seconds; together they bound the memory and the time that a server needs."""

    batch: int = 32  # inputs (texts or pictures) of one forward pass
    wait: float = 0.005  # seconds for which an input waits for others at most
    queue: int = 1024  # inputs that have been accepted and not answered
    request_inputs: int = 2048  # of one request; OpenAI's own limit

    body: int = 32 << 20  # bytes of one request
    bodies: int = 256 << 20  # bytes of all requests at once
    index: int = 1 << 30  # bytes of vectors, up to which an exact index is held in memory
    pixels: int = 32 << 20  # of one picture, which takes 4 bytes for each while it is decoded
    connections: int = 4096

    head_seconds: float = 10.0  # from the first byte of a request, or from connecting, to the end of its headers
    body_seconds: float = 30.0  # to the end of its body
    seconds: float = 60.0  # from there to the end of the answer
    unread_seconds: float = 30.0  # for which a client may leave what it is sent unread
    idle_seconds: int = 75  # for which a connection is kept between requests; proxies give up after 60
    drain_seconds: int = 30  # for answers to requests that are there when the server is told to end
    fetch_seconds: float = 10.0  # for a picture at an address

    @property
    def most_inputs(self) -> int:
        """The inputs of one request, which all have to fit into the queue."""
        return min(self.request_inputs, self.queue)
