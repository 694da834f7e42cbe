"""The benchmarks run, and their contenders do the same work: their first losses or embeddings are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requested import FRAMEWORKS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "training.py"
INFERENCE = SCRIPT.with_name("inference.py")


@pytest.mark.slow
def test_contenders_start_from_the_same_loss(tmp_path):
    options = [
        "--model",
        "shapes",
        "--batch",
        "4",
        "--steps",
        "1",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "out.json"),
    ]
    asked = ["open_clip", *FRAMEWORKS, *(["nnabla native"] if "nnabla" in FRAMEWORKS else [])]
    command = [sys.executable, str(SCRIPT), *options, "--contenders", ",".join(asked)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=600)
    assert done.returncode == 0, done.stderr
    contenders = json.loads((tmp_path / "out.json").read_text())["contenders"]
    assert list(contenders) == asked
    for name, figures in contenders.items():
        assert figures["first_loss"] == pytest.approx(contenders["open_clip"]["first_loss"], rel=1e-5), name
        assert figures["samples_per_second"] > 0
    assert contenders["open_clip"]["ratio"] == 1.0


@pytest.mark.slow
def test_the_loader_is_measured_beside_torchvision():
    command = [sys.executable, str(SCRIPT), "--loader", "--model", "shapes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["clip_core", "torchvision"]


@pytest.mark.slow
def test_contenders_give_the_same_embeddings(tmp_path):
    frameworks = [name for name in FRAMEWORKS if name != "numpy"]
    asked = ["open_clip", *frameworks, "numpy", "onnxruntime", "openvino", "onnxruntime int8", "openvino int8"]
    asked += ["torchscript"]
    options = ["--model", "shapes", "--batch", "8", "--calls", "1", "--rounds", "1", "--json", tmp_path / "out.json"]
    command = [sys.executable, INFERENCE, *options, "--contenders", ",".join(asked)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    assert list(figures["contenders"]) == asked
    assert {"processor", "cores", "versions"} <= figures["machine"].keys()
    for name, contender in figures["contenders"].items():
        for kind in ("image", "text"):
            assert contender[kind]["difference"] < (0.1 if "int8" in name else 1e-5), (name, kind)
            assert contender[kind]["best"] >= contender[kind]["median"] > 0
        assert contender["peak_memory_mib"] > 0
    own = figures["contenders"]["open_clip"]["image"]
    assert (own["ratio_of_best"], own["ratio_of_median"], own["difference"]) == (1, 1, 0)


def test_a_contender_that_is_unknown():
    command = [sys.executable, str(INFERENCE), "--contenders", "torch,tensorrt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=60)
    assert done.returncode == 2
    assert "there are no contenders tensorrt; choose some of open_clip, torch" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "kinds", "contenders"),
    [
        ("tokenizer", ["--texts", "200"], ["captions", "prose"], ["open_clip", "clip"]),
        (
            "preprocessing",
            ["--sizes", "64x48,48x64", "--resolution", "32"],
            ["64x48", "48x64"],
            ["torchvision", "clip"],
        ),
        ("conversion", ["--model", "shapes"], ["shapes"], ["torch", ".h5", ".pdparams", ".safetensors", ".pt"]),
        (
            *("startup", ["--model", "shapes", "--backend", "numpy"], ["shapes"]),
            ["loading", "clip classify", "clip --help"],
        ),
    ],
)
def test_files_and_inputs_are_measured_beside_their_peers(script, options, kinds, contenders, tmp_path):
    options = [*options, "--rounds", "1", "--calls", "1", "--json", str(tmp_path / "out.json")]
    command = [sys.executable, str(SCRIPT.with_name(f"{script}.py")), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=300)
    assert done.returncode == 0, done.stderr
    works = json.loads((tmp_path / "out.json").read_text())["works"]
    assert list(works) == kinds
    for figures in works.values():
        assert list(figures) == contenders
        assert figures[contenders[0]]["ratio_of_best"] == 1
        assert all(row["best"] >= row["median"] > 0 for row in figures.values())


@pytest.mark.slow
def test_texts_give_the_same_embeddings(tmp_path):
    options = ["--classes", "1", "--calls", "1", "--rounds", "1", "--contenders", "open_clip,torch"]
    command = [sys.executable, str(SCRIPT.with_name("text.py")), *options, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], timeout=900)
    assert done.returncode == 0, done.stderr
    kinds = json.loads((tmp_path / "out.json").read_text())["kinds"]
    assert list(kinds) == ["short captions", "captions", "classifier"]
    for kind, rows in kinds.items():
        assert rows["torch"]["difference"] < 1e-5, kind
        assert rows["torch"]["best"] >= rows["torch"]["median"] > 0
        assert rows["open_clip"]["ratio_of_best"] == 1
