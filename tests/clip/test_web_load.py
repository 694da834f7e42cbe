"""A thousand questions to the page at once: each is answered or refused, and the page stays as it was."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import httpx
import pytest

from clip import samples
from clip.serving.sockets import allow_connections
from tests.web import Web, serving_page

pytestmark = pytest.mark.slow

CIRCLE = samples.pictures()["a large solid red circle"].read_bytes()
QUESTION = ("", "red circle\nblue circle", "{}", "shapes", "numpy")  # but for its picture
GONE, REFUSED = "gone", "Queue is full."
MOST_GROWTH = 64 << 20  # bytes of memory, once a first wave has come


def test_a_thousand_questions_at_once(tmp_path):
    allow_connections(4096)
    with serving_page(tmp_path, "--backend", "numpy") as web:
        picture = web.upload(CIRCLE)
        assert wave(web, picture, 900, 100) == {"red circle": 900, GONE: 100}
        before = memory(web)
        for _ in range(2):
            assert wave(web, picture, 900, 100) == {"red circle": 900, GONE: 100}
        more = wave(web, picture, 1500, 0)
        assert more.keys() <= {"red circle", REFUSED}
        assert more.total() == 1500
        assert more["red circle"] >= 1000
        assert memory(web) - before < MOST_GROWTH
        label, _ = web.ask("classify", picture, *QUESTION)
        assert label["label"] == "red circle"
        assert web.end() == 0
    assert web.errors.read_text() == ""


def memory(web: Web) -> int:
    """Bytes of the page's process that are in memory."""
    return int(Path(f"/proc/{web.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wave(web: Web, picture: object, staying: int, leaving: int) -> Counter[str]:
    """Questions that are asked at the same time, of which some clients do not wait for the answer, by what they got."""

    async def ask(client: httpx.AsyncClient, stays: bool) -> str:
        asked = await client.post("/gradio_api/call/classify", json={"data": [picture, *QUESTION]})
        if asked.status_code != 200:
            assert (asked.status_code, asked.json()["detail"][: len(REFUSED)]) == (503, REFUSED)
            return REFUSED
        if not stays:
            return GONE
        async with client.stream("GET", f"/gradio_api/call/classify/{asked.json()['event_id']}") as answer:
            lines = [line async for line in answer.aiter_lines()]
        assert "event: complete" in lines, lines
        label, _ = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
        return str(label["label"])

    async def ask_all() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=web.address, timeout=600, limits=limits, trust_env=False) as client:
            return await asyncio.gather(
                *(ask(client, True) for _ in range(staying)), *(ask(client, False) for _ in range(leaving))
            )

    return Counter(asyncio.run(ask_all()))
