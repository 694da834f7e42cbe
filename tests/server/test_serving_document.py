"""The section of docs/search.md about serving: its snippets and commands run, and its numbers are those of the code."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import httpx

from clip import samples
from clip.embedding import embed_into
from clip.search import Index
from clip.serving.limits import MOST_LABELS, MOST_MATCHES, Limits
from clip.serving.metrics import Metrics
from tests.server.running import ROOT, serving

SECTION = (ROOT / "docs" / "search.md").read_text().partition("\n## Serve\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", SECTION, re.DOTALL)
PORT = "127.0.0.1:8000"


def test_snippets_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    asked = [command for command in commands if command.startswith("curl ")]
    assert commands[0] == "clip serve --model shapes --port 8000"
    assert len(asked) == 3
    pictures = list(map(str, samples.pictures().values()))
    embed_into(tmp_path / "embeddings", pictures, backend="numpy", workers=0)
    Index.build(tmp_path / "embeddings", tmp_path / "index.lance")
    with serving(tmp_path, "--backend", "numpy", "--index", tmp_path / "index.lance") as server:
        address = server.address.removeprefix("http://")
        embeddings, labels, matches = (answered(command.replace(PORT, address)) for command in asked)
        assert len(embeddings["data"][0]["embedding"]) == 128
        assert labels["probabilities"]["a red circle"] > 0.9
        assert matches["results"][0]["path"].endswith("a-large-solid-red-circle.png")
        assert len(matches["results"]) == 5
        for kind, text in BLOCKS:
            if kind == "python":
                snippet = tmp_path / "snippet.py"
                snippet.write_text(text.replace(PORT, address))
                names = runpy.run_path(str(snippet))
                names["client"].close()
        assert capsys.readouterr().out == "128 10\n"
        assert len(names["answer"].data[0].embedding) == 128


def answered(command: str) -> Any:
    """What a server answers to curl, which need not be installed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("curl")
    parser.add_argument("address")
    parser.add_argument("-d", dest="body")
    parser.add_argument("-F", dest="fields", action="append", default=[])
    given = parser.parse_args(shlex.split(command))
    form = [
        (name, (None, value) if value[0] != "@" else (value, Path(value[1:]).read_bytes()))
        for name, _, value in (field.partition("=") for field in given.fields)
    ]
    answer = httpx.post(given.address, content=given.body, files=form or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_numbers_and_names():
    assert MOST_LABELS == MOST_MATCHES
    limits, flat = Limits(), SECTION.replace(",", "").replace("\n", " ")
    for sentence in (
        f"`--max-batch` ({limits.batch})",
        f"`--max-wait` ({1000 * limits.wait:g}) milliseconds",
        f"`--max-queue` ({limits.queue})",
        f"up to {limits.index >> 20} MiB (`--index-memory`)",
        f"{limits.bodies >> 20} MiB of bodies",
        f"| body of a request | {limits.body >> 20} MiB",
        f"client_max_body_size {limits.body >> 20}m",
        f"| texts or pictures of a request | {limits.request_inputs} or",
        f"| labels and results of a search | {MOST_LABELS} |",
        f"| pixels of a picture before it is decoded | {limits.pixels} |",
        f"| connections | {limits.connections} else",
        f"end of the body | {limits.head_seconds:g} and {limits.body_seconds:g} else",
        f"| seconds to the answer | {limits.seconds:g} else",
        f"may stay unread | {limits.unread_seconds:g} |",
        f"stay open for {limits.idle_seconds} seconds",
        f"answered within {limits.drain_seconds} seconds",
    ):
        assert sentence in flat, sentence
    metrics = set(re.findall(r"# HELP (\w+)", Metrics().text().decode()))
    assert set(re.findall(r"`(clip_(?!core)\w+)`", SECTION)) == metrics
