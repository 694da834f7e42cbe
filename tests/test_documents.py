"""Every command and snippet of README.md and of the guides that start from a checkout runs, one after the other as they
stand there; what a command prints stands in blocks without a kind. Other documents have tests of their own."""

from __future__ import annotations

import configparser
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import backends
import clip
import converters
from clip.command import main
from clip_core.training.recipe import Recipe
from converters import ModelFile
from tests.models import VIT, sample_weights
from tests.requested import BACKENDS, load_backend
from tests.serving import serving

with warnings.catch_warnings():
    # What the frameworks say of the machine while they are imported is not about this project.
    warnings.simplefilter("ignore")
    for name in {*BACKENDS, *backends.available()}:  # commands use all that is installed
        load_backend(name)

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("frameworks", "convert", "parity", "train", "moving", "attention")),
)

# Commands that another test runs in full.
ELSEWHERE = {"clip demo": "tests/clip/test_commands.py"}

# What a command gets besides, so that it ends in seconds, and the test that runs it in full.
SHORTENED = {
    "clip evaluate shapes --backends all": ["--pictures-per-class", "1", "--limit", "20"],
    "clip train -c configs/shapes.yaml": ["--steps", "1"],  # tests/clip/test_torch_train.py trains, stops and resumes
    # tests/clip/test_train_anywhere.py trains in one framework and resumes in another.
    "clip train -c configs/shapes.yaml --backend paddle --steps 20 --output runs/paddle": ["--steps", "1"],
    "clip train -c configs/shapes.yaml --backend nnabla --steps 40 --resume runs/paddle": ["--steps", "2"],
}


def test_the_table_of_models_is_that_of_the_command(capsys, monkeypatch):
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- clip models --markdown -->\n")[2].partition("<!-- end -->")[0]
    check_command(["clip", "models", "--markdown"], monkeypatch)
    assert table == capsys.readouterr().out


def needed(code: str) -> set[str]:
    """The frameworks that a piece of Python imports."""
    return {name for name in backends.NAMES if re.search(rf"^(import|from) .*\b{name}\b", code, re.MULTILINE)}


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that looks like a checkout, to read from and to write into; nothing of this user's cache is seen."""
    for name in ("clip_core", "configs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip.api, "_current", None)
    monkeypatch.delenv("CLIP_BACKEND", raising=False)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    if "nnabla" in BACKENDS:
        import nnabla

        nnabla.clear_parameters()


def blocks(document: str) -> list[tuple[str, str]]:
    """Each block of code: its kind and its text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def test_blocks_are_found():
    found = [block for document in DOCUMENTS for block in blocks(document)]
    assert {kind for kind, _ in found} == {"sh", "python", "yaml", ""}
    assert {name for kind, text in found if kind == "python" for name in needed(text)} == {"torch", "paddle", "nnabla"}
    for command, path in ELSEWHERE.items():
        assert any(command in text for _, text in found)
        assert f'"{command.split()[1]}"' in (ROOT / path).read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_from_top_to_bottom(document, checkout, monkeypatch, capsys):
    served = checkout / "served" / "ViT-B-32.pt"
    served.parent.mkdir()
    converters.write(ModelFile(sample_weights(VIT), VIT), served)
    printed: list[np.ndarray] = []
    with serving(monkeypatch) as serve:
        serve("ViT-B/32", served, VIT)
        for kind, text in blocks(document):
            if kind == "sh":
                for line in text.splitlines():
                    words = shlex.split(line, comments=True)
                    if words and set(re.findall(r"--backend (\w+)", line)) <= set(BACKENDS):
                        check_command(words, monkeypatch)
            elif kind == "python" and needed(text) <= set(BACKENDS):
                printed.append(check_snippet(text, checkout, capsys))
            elif kind == "yaml":
                check_part_of_a_recipe(text)
    assert "Traceback" not in capsys.readouterr().err
    if document == "docs/moving.md":  # the snippets are pairs, before and after the move
        assert printed or "torch" not in BACKENDS
        for before, after in zip(printed[::2], printed[1::2], strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


def check_snippet(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> np.ndarray:
    """Run it; the decimal numbers that it prints."""
    script = folder / "snippet.py"
    script.write_text(text)
    capsys.readouterr()
    found = runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert printed.count("\n") >= 1
    if "logits_per_image" in found:  # of a red circle: the first label names it
        logits = backends.get(found["model"].backend).to_array(found["logits_per_image"])
        assert np.argmax(logits, axis=-1).tolist() == [0]
    return np.array([float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", printed)])


def check_part_of_a_recipe(text: str) -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "shapes.yaml").read_text()) | yaml.safe_load(text)
    assert Recipe.parse(recipe) != Recipe.read(ROOT / "configs" / "shapes.yaml")


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "clip":
        if shlex.join(words) in ELSEWHERE:
            return
        extra = SHORTENED.get(shlex.join(words), [])
        monkeypatch.setattr(sys, "argv", [*words, *extra])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, shlex.join(words)
    elif program == "make":  # the continuous integration runs the targets themselves
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), shlex.join(words)
    elif words[:3] == ["pip", "install", "-e"]:  # `make` installs, so only the names are left to check
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        (extras,) = re.findall(r"^\.(?:\[([\w,-]+)\])?$", words[3])
        assert set(filter(None, extras.split(","))) <= set(setup["options.extras_require"])
    else:
        pytest.fail(f"A document has a command that no test runs: {shlex.join(words)}")
