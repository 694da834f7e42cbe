"""A thousand requests at once, between clients that are slow or broken: every one is answered, and rightly."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from urllib.parse import urlsplit

import numpy as np

from clip.api import open_model
from clip_core.similarity import normalize
from tests.server.running import Running, serving

REQUESTS, SLOW, BROKEN = 1000, 40, 100
TEXTS = [f"{count} {colour} stars" for count in ("two", "three", "four") for colour in ("red", "blue", "green")]


def test_nothing_is_lost_among_a_thousand_requests(tmp_path):
    model = open_model("shapes", backend="numpy").model
    expected = normalize(model.embed_text(model.tokenizer.tokenize(TEXTS)))
    with serving(tmp_path, "--backend", "numpy", "--max-queue", 2 * REQUESTS) as server:
        answers = asyncio.run(asyncio.wait_for(ask_all(server), 120))
        assert server.process.poll() is None
        assert server.metric("clip_inputs_accepted") == server.metric("clip_body_bytes") == 0
    assert Counter(status for status, _ in answers["whole"]) == {200: REQUESTS}
    assert Counter(status for status, _ in answers["slow"]) == {200: SLOW}
    assert Counter(status for status, _ in answers["broken"]) == {400: BROKEN}
    for kind in ("whole", "slow"):
        for place, (_, body) in enumerate(answers[kind]):
            found = np.array(json.loads(body)["data"][0]["embedding"])
            assert np.abs(found - expected[place % len(TEXTS)]).max() < 1e-5
    ended = Counter(line["status"] for line in server.log if line["event"] == "request")
    assert (ended[200] - 2, ended[400]) == (REQUESTS + SLOW, BROKEN)  # the metrics were asked for twice


async def ask_all(server: Running) -> dict[str, list[tuple[int, bytes]]]:
    """Status and body of each answer to the requests of each kind, all of which are sent at once."""
    parts = urlsplit(server.address)

    async def ask(content: bytes, pause: float = 0.0) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        request = server.request(content, "Connection: close", f"Content-Length: {len(content)}")
        for start in range(0, len(request), 40 if pause else len(request)):
            writer.write(request[start : start + 40] if pause else request)
            await writer.drain()
            await asyncio.sleep(pause)
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def content(place: int) -> bytes:
        return json.dumps({"model": "shapes", "input": TEXTS[place % len(TEXTS)]}).encode()

    whole = [ask(content(place)) for place in range(REQUESTS)]
    slow = [ask(content(place), 0.05) for place in range(SLOW)]
    broken = [ask(content(place)[: place % 20]) for place in range(BROKEN)]
    found = await asyncio.gather(*whole, *slow, *broken)
    return {"whole": found[:REQUESTS], "slow": found[REQUESTS : REQUESTS + SLOW], "broken": found[REQUESTS + SLOW :]}
