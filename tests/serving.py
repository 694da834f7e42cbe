"""Official weights from a server of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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

            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(file.parent)))
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            monkeypatch.setattr(Served, "address", f"http://127.0.0.1:{server.server_port}")
            served = Served(name, architecture, file.name, digest or sha256(file.read_bytes()).hexdigest())
            monkeypatch.setitem(MODELS, name, served)
            return asked

        yield start
