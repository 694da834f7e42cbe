"""docs/search.md about indices: its commands and snippets run, one after the other, and its numbers are the code's."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from clip_core.search import clusters, duplicates, store

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "search.md").read_text().partition("\n## Index\n")[2].partition("\n## Serve\n")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_commands_and_snippets_run(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "clip_core").symlink_to(ROOT / "clip_core")
    (tmp_path / "labels.txt").write_text("circle\nstar\nheart\n")
    monkeypatch.chdir(tmp_path)
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    for kind, code in BLOCKS:
        if kind == "python":
            (tmp_path / "snippet.py").write_text(code)
            runpy.run_path(str(tmp_path / "snippet.py"))
            lines = capsys.readouterr().out.splitlines()
            assert lines[0].endswith("a-large-solid-red-circle.png")
            assert len(lines) == 3
            continue
        for line in code.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "clip"
            ended = run(*arguments)
            assert (ended.code, ended.err) == (0, ""), line
            if "red circle" in arguments:
                assert ended.out.splitlines()[1].endswith("a-large-solid-red-circle.png")
    made = {"out", "index.lance", "grid.png", "duplicates.csv", "clusters.csv", "clusters.png"}
    assert {path.name for path in tmp_path.iterdir()} == made | {"clip_core", "labels.txt", "snippet.py"}


@pytest.mark.parametrize(
    "part",
    [
        f"partitions of about {store.PARTITION:,}",
        f"looks into {store.PROBES} of them",
        f"{store.SAMPLE} stored vectors",
        f"Blocks of {duplicates.BLOCK:,} vectors",
        f"more than {clusters.SAMPLE:,} vectors",
        f"from {clusters.MANY:,} on",
        f"on {', '.join(f'`{name}`' for name in store.PICTURE_COLUMNS)}".replace(", `label`", " and `label`"),
    ],
)
def test_numbers(part):
    assert part in " ".join(TEXT.split())
