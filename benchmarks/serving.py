"""Latency and throughput of `clip serve` for 1, 8 and 64 clients at once, beside calling the model directly.

    python benchmarks/serving.py --model ViT-B/32 --rounds 3

The contenders take turns, each in a process of its own. ``direct`` tokenizes or decodes, and computes, one input after
the other; ``direct batches`` computes 32 at once, which no server can beat. A client sends one input a request, waits
for the answer, and sends the next; it shares the machine with the server. Reported are answers per second, their ratio
to ``direct``, and the 50th and 99th percentile of the time that one answer takes. The weights are random.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np

from clip.api import LoadedModel, open_model
from clip_core.batching import embed_texts
from clip_core.data.shapes import training_example
from clip_core.image import open_image
from clip_core.models import MODELS
from clip_core.preprocess import resize

KINDS = ("texts", "pictures")
CLIENTS = (1, 8, 64)
CONTENDERS = ("direct", "direct batches", *(f"{clients} clients" for clients in CLIENTS))
BATCH = 32  # as that of the server
INPUTS = 256  # different ones
SIDE = 320  # pixels along a side of a picture


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--model", default="shapes", choices=list(MODELS))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--seconds", type=float, default=3.0, help="that each contender is timed for in each round")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        compare(arguments)


def compare(arguments: Any) -> None:
    """Run every contender in turn, round by round, and print a table for each kind of inputs."""
    options = {key: getattr(arguments, key) for key in ("model", "backend", "seconds")}
    names, left_out = harness.chosen(CONTENDERS, arguments.contenders, {})
    found = harness.in_rounds(__file__, names, arguments.rounds, arguments.threads, options)
    facts = harness.machine()
    print(f"{arguments.model}, {arguments.backend}, {arguments.threads} threads, {facts['processor']}")
    works: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        works[kind] = {name: figures([each[kind] for each in rounds]) for name, rounds in found.items()}
        print(f"\n{kind:16}{'best/s':>10}{'ratio':>8}{'median/s':>10}{'ratio':>8}{'p50 ms':>10}{'p99 ms':>10}")
        for name, row in works[kind].items():
            row |= {f"ratio_of_{key}": row[key] / works[kind][names[0]][key] for key in ("best", "median")}
            print(
                f"{name:16}{row['best']:10.1f}{row['ratio_of_best']:8.2f}{row['median']:10.1f}"
                f"{row['ratio_of_median']:8.2f}{row['p50_ms']:10.2f}{row['p99_ms']:10.2f}"
            )
    if arguments.json:
        settings = options | {"rounds": arguments.rounds, "threads": arguments.threads, "unit": "answers"}
        result = {"settings": settings, "machine": facts, "left_out": left_out, "works": works}
        arguments.json.write_text(json.dumps(result, indent=2))


def figures(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Answers per second in the best and in the median round, and percentiles of the latencies of all rounds."""
    speeds = [each["answers"] / each["seconds"] for each in rounds]
    latencies = list(chain.from_iterable(each["latencies"] for each in rounds))
    p50, p99 = (1000 * float(value) for value in np.percentile(latencies, (50, 99)))
    return {"best": max(speeds), "median": statistics.median(speeds), "p50_ms": p50, "p99_ms": p99}


def measure(arguments: Any) -> dict[str, dict[str, Any]]:
    """Of each kind of inputs: answers, the seconds that they took together, and the seconds of each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        harness.save_model(arguments.model, file)
        if arguments.contender.startswith("direct"):
            loaded = open_model(file, backend=arguments.backend)
            size = BATCH if arguments.contender == "direct batches" else 1
            return {kind: directly(loaded, kind, size, arguments.seconds) for kind in KINDS}
        clients = int(arguments.contender.split()[0])
        with served(file, arguments.backend) as address:
            return {kind: asyncio.run(by_clients(address, kind, clients, arguments.seconds)) for kind in KINDS}


def inputs(kind: str) -> list[str] | list[bytes]:
    """Captions, or JPEG files of the pictures that they describe."""
    examples = [training_example(0, index) for index in range(INPUTS)]
    if kind == "texts":
        return [example.caption for example in examples]
    found = []
    for example in examples:
        file = io.BytesIO()
        resize(example.picture, (SIDE, SIDE)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def directly(loaded: LoadedModel, kind: str, size: int, seconds: float) -> dict[str, Any]:
    """Embed so many inputs at once, again and again."""
    given, model = inputs(kind), loaded.model

    def embed(part: list[Any]) -> np.ndarray:
        if kind == "texts":
            return embed_texts(model, model.tokenizer.tokenize(part, model.architecture.text.context_length))
        return model.embed_image(np.stack([loaded.preprocess.pixels(open_image(each)) for each in part]))

    embed(given[:size])
    latencies = []
    started = perf_counter()
    while (begun := perf_counter()) < started + seconds:
        place = len(latencies) * size % INPUTS
        embed(given[place : place + size])
        latencies.append(perf_counter() - begun)
    return {"answers": len(latencies) * size, "seconds": perf_counter() - started, "latencies": latencies}


@contextmanager
def served(file: Path, backend: str) -> Iterator[str]:
    """The address of ``clip serve``, which runs until the block ends."""
    command = [sys.executable, "-m", "clip", "serve", "--model", str(file), "--backend", backend, "--port", "0"]
    with open(file.with_name("log.jsonl"), "w+") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            while "ready" not in (text := file.with_name("log.jsonl").read_text()):
                if server.poll() is not None:
                    sys.exit(text)
            yield json.loads(text.splitlines()[0])["address"]
        finally:
            server.terminate()


async def by_clients(address: str, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """Let so many clients ask for one embedding after the other."""
    parts = urlsplit(address)
    requests = [request(each) for each in inputs(kind)]
    latencies: list[float] = []

    async def ask(place: int, end: float) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for each in islice(cycle(requests), place, None):
            begun = perf_counter()
            if begun >= end:
                break
            writer.write(each)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                sys.exit(answer.decode())
            latencies.append(perf_counter() - begun)
        writer.close()

    async def ask_together(seconds: float) -> float:
        started = perf_counter()
        await asyncio.gather(*(ask(client * INPUTS // clients, started + seconds) for client in range(clients)))
        return perf_counter() - started

    await ask_together(0.5)
    latencies.clear()
    took = await ask_together(seconds)
    return {"answers": len(latencies), "seconds": took, "latencies": latencies}


def request(given: str | bytes) -> bytes:
    """A request for the embedding of a text or a picture."""
    if isinstance(given, bytes):
        body = {"model": "model.safetensors", "input": base64.b64encode(given).decode(), "modality": "image"}
    else:
        body = {"model": "model.safetensors", "input": given}
    content = json.dumps(body | {"encoding_format": "base64"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


if __name__ == "__main__":
    main()
