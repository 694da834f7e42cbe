"""A thousand questions to the page at once: each is answered or refused, and the page stays as it was."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clip import samples
from clip.serving.sockets import allow_connections
from tests.web import Web, serving_page

pytestmark = pytest.mark.slow

CIRCLE = samples.pictures()["a large solid red circle"].read_bytes()
QUESTION = ("", "red circle\nblue circle", "{}", "shapes", "numpy")  # but for its picture
RIGHT, GONE, REFUSED = "red circle", "gone", "refused"
MOST_GROWTH = 16 << 20  # bytes of memory by 300 questions, of which Gradio would keep 25 MB


def test_a_thousand_questions_at_once(tmp_path):
    allow_connections(2048)
    with serving_page(tmp_path, "--backend", "numpy") as web:
        picture = web.upload(CIRCLE)
        after = []
        for staying, leaving in ((1000, 100), (200, 0), (300, 0)):  # the first are more than may wait
            found = wave(web, picture, staying, leaving)
            assert found.keys() <= {RIGHT, GONE, REFUSED}  # a busy machine may refuse some because of the time
            assert found[RIGHT] > 0
            after.append(memory(web))
        assert after[-1] - after[-2] < MOST_GROWTH
        label, _ = web.ask("classify", picture, *QUESTION)
        assert label["label"] == RIGHT
        assert web.end() == 0
    assert web.errors.read_text() == ""


def memory(web: Web) -> int:
    """Bytes of the page's process that are in memory."""
    return int(Path(f"/proc/{web.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wave(web: Web, picture: object, staying: int, leaving: int) -> Counter[str]:
    """What questions get that are asked at the same time, of which some clients do not wait for the answer."""
    parts = urlsplit(web.address)
    question = json.dumps({"data": [picture, *QUESTION]}).encode()

    async def exchange(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"{method} /gradio_api/call/classify{path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + body)
        answer, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(answer.split()[1]), content

    async def ask(stays: bool) -> str:
        status, content = await exchange("POST", "", question)
        if status != 200:
            (sentence,) = json.loads(content).values()
            assert (status, sentence[-1]) in ((408, "."), (503, ".")), content
            return REFUSED
        if not stays:
            return GONE
        _, content = await exchange("GET", f"/{json.loads(content)['event_id']}")
        event, data = content.decode().split("\n\n")[-2].split("\n")
        assert event == "event: complete", content
        return str(json.loads(data.removeprefix("data: "))[0]["label"])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(True) for _ in range(staying)), *(ask(False) for _ in range(leaving)))

    return Counter(asyncio.run(ask_all()))
