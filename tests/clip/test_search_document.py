"""docs/search.md about embeddings, labels and indices: its commands and snippets run, one after the other, and its
numbers are those of the code."""

from __future__ import annotations

import re
import runpy
import shlex
import tarfile
from pathlib import Path

import pytest

from clip import samples
from clip_core.embedding.parts import Parts
from clip_core.search import clusters, duplicates, store

ROOT = Path(__file__).parents[2]
EMBEDDING, _, REST = (ROOT / "docs" / "search.md").read_text().partition("\n## Index\n")
TEXT = REST.partition("\n## Serve\n")[0]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)


@pytest.mark.needs("torch")
def test_embedding_and_labelling(run, tmp_path, monkeypatch):
    """With the embedded model in place of a large one."""
    monkeypatch.chdir(tmp_path)
    pictures = list(samples.pictures().values())[:3]
    for folder in ("photos", "shards"):
        Path(folder).mkdir()
    for place, picture in enumerate(pictures):
        Path("photos", f"{place}.png").write_bytes(picture.read_bytes())
    Path("cat.png").write_bytes(pictures[0].read_bytes())
    with tarfile.open("shards/0.tar", "w") as shard:
        shard.add(pictures[1], "0.png")
    Path("captions.txt").write_text("a red circle\na star\n")
    Path("labels.txt").write_text("blue circle\nred circle\n")
    for kind, code in BLOCK.findall(EMBEDDING):
        if kind == "python":
            found = runpy.run_path(str(write("snippet.py", code)))["found"]
            assert found.array.shape == (4, 128)
            continue
        for line in code.splitlines():
            ended = run(*shlex.split(line.replace("ViT-B/32", "shapes"))[1:])
            assert (ended.code, ended.err) == (0, ""), line
    assert [len(Parts(folder)) for folder in ("out", "from-shards", "of-texts")] == [3, 1, 2]
    assert Path("labels.csv").read_text().splitlines()[2].startswith("photos/1.png,1,blue circle,")


def write(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


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
