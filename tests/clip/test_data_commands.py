"""``clip data`` and docs/data.md: every command of the page runs, from a dump and a server to trainings."""

from __future__ import annotations

import bz2
import glob
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from clip.command import app
from clip_core.data.collection.downloads import Plan
from clip_core.data.collection.fetching import Limits
from tests.clip.running import assert_refused, metrics
from tests.data.numbered import picture
from tests.serving import Pictures, running

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
COLOURS = "red orange yellow green turquoise blue purple pink white black brown grey".split()  # noqa: SIM905


@pytest.fixture
def web(tmp_path, monkeypatch) -> None:
    """What the page speaks of: a dump, the answers of a search, the published list, a recipe, and the pictures."""
    monkeypatch.chdir(tmp_path)
    pictures = Pictures({})
    for number in range(len(COLOURS)):
        picture(number, 112 if number else 111).save("picture.png")
        pictures.answers[f"/{number}.png"] = Path("picture.png").read_bytes()
    pages = "<page><ns>0</ns><revision><text>zebra crossing</text></revision></page>" * 100
    dump = bz2.compress(b"<mediawiki>") + bz2.compress(pages.encode()) + bz2.compress(b"</mediawiki>")
    Path("enwiki-latest-pages-articles-multistream.xml.bz2").write_bytes(dump)
    Path("training.yaml").write_text(RECIPE)
    with running(pictures.handler) as address:
        answers = [
            {"query": f"a {colour} picture, all {colour}", "image": f"{address}/{number}.png"}
            for number, colour in enumerate(COLOURS)
        ]
        gone = {"query": "gone", "image": f"{address}/gone.png"}
        Path("answers-00.json").write_text(json.dumps([*answers[:8], gone, {"query": None, "image": "x"}]))
        Path("answers-01.json").write_text(json.dumps(answers[6:]))
        Path("cc3m.tsv").write_text("".join(f"{each['query']}\t{each['image']}\n" for each in answers[:2]))
        yield


@pytest.mark.needs("torch")
def test_every_command_of_the_document(web, run):
    results = {}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "clip"
        arguments = [found for word in arguments for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        if arguments[:2] == ["data", "download"]:
            arguments.append("--private")
        more = {"data": ["--json"], "train": ["-o", "data.workers=0", "--backend", "torch"]}.get(arguments[0], [])
        result = run(*arguments, *more)
        assert result.code == 0, result.err
        results[" ".join(arguments[:2] + arguments[2:4] * (arguments[1] == "download"))] = result
    assert results["data words"].json == {"path": "words.tsv", "articles": 100, "words": 2}
    assert Path("words.tsv").read_text() == "word\ttimes\ncrossing\t100\nzebra\t100\n"
    joined = {"path": "pairs.csv", "rows": 16, "kept": 13, "incomplete": 1, "repeated": 2}
    assert results["data join"].json == joined
    fetched = {"rows": 13, "pictures": 12, "faults": 1, "fault_list": "pictures/faults.jsonl"}
    source = {"kind": "table", "file": "pictures/images.csv", "separator": ","}
    assert results["data download pairs.csv pictures"].json == fetched | {"source": source}
    shards = {"kind": "webdataset", "shards": "shards/{00000..00000}.tar"}
    assert results["data download pairs.csv shards"].json["source"] == shards
    assert results["data download cc3m.tsv cc3m"].json["pictures"] == 2
    indexed = results["data index"].json
    assert [indexed[key] for key in ("rows", "kept", "small", "unusable", "fault")] == [12, 11, 1, 0, None]
    assert indexed["source"].items() >= {"kind": "table", "file": "training.csv", "images": "pictures"}.items()
    assert Path("corpus.txt").read_text().count("\n") == 11
    runs = [folder for folder in Path("runs").iterdir() if (folder / "metrics.jsonl").exists()]
    assert len(runs) == 2
    assert [len(metrics(folder)) for folder in runs] == [2, 2]


def test_the_defaults_in_the_document():
    for option, value in (
        ("timeout", f"{Limits.seconds:.0f}"),
        ("attempts", Limits.attempts),
        ("per-host", f"{Limits.requests_per_second:.0f}"),
        ("threads", 20),
        ("max-bytes", f"({Limits.size >> 20} MiB)"),
    ):
        assert f"`--{option}` {value}" in DOCUMENT
    assert f"--part {Plan.part}" in DOCUMENT
    commands = typer.main.get_command(app).commands["data"].commands
    assert sorted(commands) == ["corpus", "download", "index", "join", "words"]
    options = {option for command in commands.values() for each in command.params for option in each.opts}
    assert set(re.findall(r"`(--[\w-]+)`", DOCUMENT)) <= options | {"--json"}


def test_refusals(web, run, tmp_path):
    """One sentence, and nothing is written."""
    before = sorted(tmp_path.iterdir())
    assert_refused(run("data", "words", "training.yaml", "-o", "words.tsv"), "training.yaml is no bz2 file")
    assert_refused(run("data", "words", "training.yaml", "-o", "cc3m.tsv"), "cc3m.tsv is there already")
    assert_refused(
        run("data", "join", "answers-00.json", "-o", "answers-00.json"), "is a file that is read here itself"
    )
    assert_refused(run("data", "corpus", "training.yaml", "-o", "corpus.txt"), "is no list of pictures by its name")
    assert_refused(
        run("data", "index", ".", "-o", "a.csv", "--min-side", 1), "has no images.csv: it is none of clip data"
    )
    assert sorted(tmp_path.iterdir()) == before
    private = run("data", "download", "cc3m.tsv", "out")
    assert_refused(private, "None of the 2 pictures of cc3m.tsv could be fetched", "leads to 127.0.0.1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "download.json", "images"]


def test_words_for_people(web, run):
    result = run("data", "join", "answers-00.json", "-o", "pairs.csv")
    assert result.out == "path        pairs.csv\nrows        10\nkept        9\nincomplete  1\nrepeated    0\n"
