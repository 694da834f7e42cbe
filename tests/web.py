"""``clip web`` in a process of its own, and a client that asks as Gradio's own do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Web:
    """A page that is served."""

    process: subprocess.Popen[str]
    client: httpx.Client
    folder: Path  # the only one for temporary files
    errors: Path  # what it prints of errors

    @property
    def address(self) -> str:
        return str(self.client.base_url)

    def upload(self, content: bytes, name: str = "picture.png") -> dict[str, Any]:
        """A picture as questions name it."""
        (path,) = self.client.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status().json()
        return file(path)

    def ask(self, name: str, *data: object) -> Any:
        """The answer to a question: what it gives, or the text of its error event."""
        asked = self.client.post(f"/gradio_api/call/{name}", json={"data": data})
        if asked.status_code != 200:
            return asked.json()["error"]
        with self.client.stream("GET", f"/gradio_api/call/{name}/{asked.json()['event_id']}") as answer:
            event = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event in ("complete", "error"):
                    found = json.loads(line.removeprefix("data: "))
                    return found if event == "complete" else found["error"]
        raise AssertionError(f"{name} was not answered")

    def end(self) -> int:
        """Its exit code, once it has been told to end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


def file(path: object) -> dict[str, Any]:
    """A file as clients of Gradio name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def serving_page(folder: Path, *options: object, environment: dict[str, str] | None = None) -> Iterator[Web]:
    """``clip web`` with these options at a free port, in an empty folder of its own below ``folder``."""
    temporary, work, errors = folder / "temporary", folder / "work", folder / "errors"
    temporary.mkdir()
    work.mkdir()
    with open(errors, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "clip", "web", "--port", "0", *map(str, options)],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, errors.read_text()
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
            yield Web(process, client, temporary, errors)
    finally:
        process.terminate()
        process.wait(timeout=120)
        process.stdout.close()
