"""Servers of the test's own: official weights, pictures of strangers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from clip_core.architecture import Architecture
from clip_core.models import MODELS, NamedModel

Serve = Callable[..., list[str]]


class Served(NamedModel):
    """A named model whose file lies on a local server."""

    address = ""

    @property
    def url(self) -> str:
        return f"{self.address}/{self.file}"


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, which runs until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function that makes a name of the registry stand for a file on a server at 127.0.0.1.

    It takes the name, the file, the architecture and, unless it is to be the file's own, the SHA-256, and gives the
    list of paths that are asked for from then on. The servers stop and the registry is as before when the block ends.
    """
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as stack:

        def start(name: str, file: Path, architecture: Architecture, digest: str | None = None) -> list[str]:
            asked: list[str] = []

            class Handler(SimpleHTTPRequestHandler):
                def do_GET(self) -> None:
                    asked.append(self.path)
                    super().do_GET()

                def log_message(self, *_) -> None:
                    pass

            address = stack.enter_context(running(partial(Handler, directory=str(file.parent))))
            monkeypatch.setattr(Served, "address", address)
            served = Served(name, architecture, file.name, digest or sha256(file.read_bytes()).hexdigest())
            monkeypatch.setitem(MODELS, name, served)
            return asked

        yield start


class Pictures:
    """What a server of strangers answers: content by path, or a function that is given the request.

    Attributes:
        asked: the paths of all requests so far.
    """

    def __init__(self, answers: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]]):
        self.answers = answers
        self.asked: list[str] = []
        pictures = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pictures.asked.append(self.path)
                found = pictures.answers.get(self.path)
                if callable(found):
                    found(self)
                else:
                    answer(self, 404 if found is None else 200, found or b"")

            def log_message(self, *_) -> None:
                pass

        self.handler = Handler


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: object) -> None:
    """Answer with a body and headers, of which ``Content_Length`` may be another than the body's."""
    handler.close_connection = True
    handler.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)
