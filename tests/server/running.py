"""Servers of `clip.serving` in processes of their own, and clients that break the rules."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).parents[2]
LIMITED = """
import json, sys, time
from dataclasses import replace
from clip.api import open_model
from clip.serving import server
from clip.serving.limits import Limits

class Slow:
    def __init__(self, model):
        self.model = model
    def __getattr__(self, name):
        return getattr(self.model, name)
    def embed_text(self, tokens):
        time.sleep(options["pass_seconds"])
        return self.model.embed_text(tokens)

def load():
    loaded = open_model("shapes", backend="numpy")
    return replace(loaded, model=Slow(loaded.model))

options = json.loads(sys.argv[1])
server.run("shapes", load, "127.0.0.1", 0, Limits(**options["limits"]))
"""
"""A server with other limits than those of the command, whose forward passes of texts take a while."""


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    address: str
    log_file: Path
    client: httpx.Client

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def embed(self, *texts: str) -> httpx.Response:
        return self.client.post("/v1/embeddings", json={"model": "shapes", "input": list(texts)})

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        found = re.search(rf"^{name} (.*)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def connect(self) -> socket.socket:
        parts = urlsplit(self.address)
        return socket.create_connection((parts.hostname, parts.port), timeout=30)

    def say(self, *pieces: bytes) -> bytes:
        """All that the server answers to these bytes, until it closes the connection."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def request(self, body: bytes, *headers: str) -> bytes:
        """A request for embeddings, to be sent as it is."""
        lines = ["POST /v1/embeddings HTTP/1.1", "Host: 127.0.0.1", *(headers or [f"Content-Length: {len(body)}"])]
        return "\r\n".join([*lines, "", ""]).encode() + body


def within_seconds(seconds: float, holds: Any) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[Running]:
    """``clip serve`` with these options at a free port."""
    with _started(folder, ["-m", "clip", "serve", "--port", "0", *map(str, options)]) as running:
        yield running


@contextmanager
def serving_slowly(folder: Path, pass_seconds: float, **limits: float) -> Iterator[Running]:
    """A server with these limits, whose forward passes of texts take so many seconds."""
    options = json.dumps({"pass_seconds": pass_seconds, "limits": limits})
    with _started(folder, ["-c", LIMITED, options]) as running:
        yield running


@contextmanager
def _started(folder: Path, arguments: list[str]) -> Iterator[Running]:
    log = folder / "log.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, *arguments], env=environment, stderr=file)
    try:
        within_seconds(60, lambda: '"ready"' in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        address = json.loads(log.read_text().splitlines()[0])["address"]
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            yield Running(process, address, log, client)
    finally:
        process.terminate()
        process.wait(60)
