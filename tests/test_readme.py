"""Every command and every piece of Python in README.md runs; what a command prints stands in blocks without a kind."""

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
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind in ("sh", "bash")]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
YAML = [text for kind, text in BLOCKS if kind == "yaml"]

# What a command gets besides, so that it ends in seconds, and the test that runs it in full.
SHORTENED = {
    "clip evaluate shapes --backends all": ["--pictures-per-class", "1", "--limit", "20"],
    "clip evaluate shapes --output report": ["--pictures-per-class", "1", "--limit", "20"],
    "clip evaluate typographic --limit 50 --plot typographic.png": ["--limit", "20"],
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


def test_blocks_are_found():
    assert {kind for kind, _ in BLOCKS} <= {"sh", "bash", "python", "yaml", ""}
    assert len(SHELL) >= 3
    assert YAML
    assert {name for code in PYTHON for name in needed(code)} == {"torch", "paddle", "nnabla"}


@pytest.mark.parametrize("code", [code for code in PYTHON if needed(code) <= set(BACKENDS)])
def test_python(code, checkout, capsys):
    script = checkout / "snippet.py"
    script.write_text(code)
    found = runpy.run_path(str(script))
    assert capsys.readouterr().out.count("\n") >= 1
    if "logits_per_image" in found:  # of a red circle: the first label names it
        model = found["model"]
        values = backends.get(model.backend).to_array(found["logits_per_image"])
        assert values.shape == (1, 3)
        assert np.argmax(values) == 0


@pytest.mark.parametrize("block", YAML)
def test_parts_of_recipes(block):
    recipe = yaml.safe_load((ROOT / "configs" / "shapes.yaml").read_text()) | yaml.safe_load(block)
    assert Recipe.parse(recipe) != Recipe.read(ROOT / "configs" / "shapes.yaml")


@pytest.mark.parametrize("block", SHELL)
def test_commands(block, checkout, monkeypatch, capsys):
    served = checkout / "served" / "ViT-B-32.pt"
    served.parent.mkdir()
    converters.write(ModelFile(sample_weights(VIT), VIT), served)
    with serving(monkeypatch) as serve:
        serve("ViT-B/32", served, VIT)
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and set(re.findall(r"--backend (\w+)", line)) <= set(BACKENDS):
                check_command(words, monkeypatch)
    assert "Traceback" not in capsys.readouterr().err


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "clip":
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
        (extras,) = re.findall(r"^\.\[([\w,-]+)\]$", words[3])
        assert set(extras.split(",")) <= set(setup["options.extras_require"])
    else:
        pytest.fail(f"README.md has a command that no test runs: {shlex.join(words)}")
