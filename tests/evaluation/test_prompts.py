"""Templates by name and from files, and the names of classes: those of open_clip and clip-benchmark, without a copy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from clip_core.errors import ClipError
from clip_core.evaluation import prompts
from clip_core.evaluation.prompts import openai_names, prompts_of, resolved


def of_benchmark(what: str) -> dict[str, list[str]]:
    found = find_spec("clip_benchmark")
    assert found is not None
    return json.loads((Path(str(found.origin)).parent / "datasets" / f"en_{what}.json").read_text())


@pytest.mark.parametrize("module", ["clip_benchmark", "open_clip"])
def test_imagenet_from_either_package(module, monkeypatch):
    folder = prompts._folder(module)
    monkeypatch.setattr(prompts, "_folder", lambda name: folder if name == module else None)
    found = prompts_of(["cat"], resolved("openai", "imagenet"))
    assert found == [[template("cat") for template in OPENAI_IMAGENET_TEMPLATES]]
    assert resolved("openai", "imagenetv2") == resolved("openai", "imagenet")
    assert openai_names("imagenet", 1000) == list(IMAGENET_CLASSNAMES)
    with pytest.raises(ClipError, match="has 1000 names for imagenet, which has 7 classes; give a file"):
        openai_names("imagenet", 7)


def test_simple_is_open_clips():
    assert prompts_of(["cat"], resolved("simple", "mnist")) == [
        [template("cat") for template in SIMPLE_IMAGENET_TEMPLATES]
    ]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "food101", "stl10", "mnist", "caltech101"])
def test_templates_of_other_sets_are_clip_benchmarks(kind):
    expected = [template.format(c="cat") for template in of_benchmark("zeroshot_classification_templates")[kind]]
    assert prompts_of(["cat"], resolved("openai", kind)) == [expected]


def test_names_of_other_sets_are_clip_benchmarks():
    assert openai_names("mnist", 10) == of_benchmark("classnames")["mnist"]
    with pytest.raises(ClipError, match=r"of stl10 .* are not found there; give a file of names\.$"):
        openai_names("stl10", 10)


def test_our_own_need_no_package(monkeypatch):
    monkeypatch.setattr(prompts, "_folder", lambda name: None)
    found = resolved("low-resource", "wds")
    assert len(found) == len(set(found)) == 18
    assert {"a photo of a {}.", "a black and white photo of the {}.", "a photo of the big {}."} < set(found)
    assert resolved("simple-clip", "wds") == ("a photo of a {}.",)
    assert resolved(None, "wds") == ()
    assert resolved(("a {}",), "wds") == ("a {}",)
    with pytest.raises(ClipError) as caught:
        resolved("openai", "cifar10")
    assert str(caught.value) == (
        "The templates openai for cifar10 are read from clip-benchmark or open_clip, and are not found there; run pip "
        "install clip-benchmark open_clip_torch, or choose low-resource or simple-clip, or a file."
    )


def test_templates_of_a_file(tmp_path):
    path = tmp_path / "templates"
    path.write_text("a {}\n\nthe {}!\n", encoding="utf-8-sig")
    assert prompts_of(["cat", "{}"], resolved(str(path), "wds")) == [["a cat", "the cat!"], ["a {}", "the {}!"]]
    for content, message in (
        ("", "has no templates; write one"),
        ("a {}\na", "has the template 'a'; write {} once"),
        ("{} {}", "'{} {}'; write"),
    ):
        path.write_text(content)
        with pytest.raises(ClipError, match=message):
            resolved(str(path), "wds")
    with pytest.raises(
        ClipError, match="'opnai' are neither a file nor one of openai, simple, low-resource, simple-clip"
    ):
        resolved("opnai", "wds")


def test_nothing_of_the_packages_is_imported():
    code = """
import sys
from clip_core.evaluation.prompts import openai_names, resolved
assert len(resolved("openai", "imagenet")) == 80 and len(resolved("simple", "imagenet")) == 7
openai_names("imagenet", 1000)
print(sorted({"torch", "open_clip", "clip_benchmark"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
