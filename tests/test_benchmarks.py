"""The benchmarks run, and their contenders do the same work: their first losses or embeddings are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requested import FRAMEWORKS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ONCE = ["--rounds", "1", "--calls", "1"]


def run(script: str, *options: object, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent, timeout=timeout)


def works_of(tmp_path: Path, script: str, *options: object) -> dict[str, dict[str, dict[str, float]]]:
    """{kind of work: {contender: figures}} of a script that is run once, which has to end well."""
    done = run(script, *ONCE, *options, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    assert {"processor", "cores", "versions"} <= figures["machine"].keys()
    return figures["works"]


@pytest.mark.slow
def test_contenders_start_from_the_same_loss(tmp_path):
    asked = ["open_clip", *FRAMEWORKS, *(["nnabla native"] if "nnabla" in FRAMEWORKS else [])]
    works = works_of(tmp_path, "training.py", "--model", "shapes", "--batch", 4, "--contenders", ",".join(asked))
    rows = works["training step"]
    assert list(rows) == asked
    for name, row in rows.items():
        assert row["difference"] < 1e-4, name
        assert row["best"] > 0
    assert (rows["open_clip"]["ratio_of_best"], rows["open_clip"]["ratio_of_median"]) == (1, 1)


@pytest.mark.slow
def test_contenders_give_the_same_embeddings(tmp_path):
    frameworks = [name for name in FRAMEWORKS if name != "numpy"]
    asked = ["open_clip", "transformers", *frameworks, "numpy", "onnxruntime", "openvino", "onnxruntime int8"]
    asked += ["openvino int8", "torchscript", "torch compiled"]
    works = works_of(tmp_path, "inference.py", "--model", "shapes", "--batches", "8,1", "--contenders", ",".join(asked))
    assert list(works) == ["image, batch 8", "image, batch 1", "text, batch 8", "text, batch 1"]
    for kind, rows in works.items():
        assert list(rows) == asked
        for name, row in rows.items():
            assert row["difference"] < (0.1 if "int8" in name else 1e-5), (name, kind)
            assert row["best"] >= row["median"] > 0
            assert row["peak_memory_mib"] > 0
            assert ("compilation_seconds" in row) == (name == "torch compiled")
        own = rows["open_clip"]
        assert (own["ratio_of_best"], own["ratio_of_median"], own["difference"]) == (1, 1, 0)


def test_a_contender_that_is_unknown():
    done = run("inference.py", "--contenders", "torch,tensorrt", timeout=60)
    assert done.returncode == 1
    assert "there are no contenders tensorrt; choose some of open_clip, transformers, torch" in done.stderr


def test_the_page_keeps_the_figures_of_other_subjects(tmp_path):
    rows = {
        "open_clip": {"best": 20.0, "median": 18.0, "ratio_of_best": 1, "ratio_of_median": 1},
        "torch": {"best": 30.0, "median": 22.5, "ratio_of_best": 1.5, "ratio_of_median": 1.25},
    }
    kept = {
        "measured": "2026-01-02",
        "took_seconds": 3,
        "settings": {"batches": "16", "unit": "inputs"},
        "machine": {"processor": "P", "cores": 2, "system": "S", "python": "3.10.1", "versions": {"torch": "2.4.0"}},
        "left_out": {"nnabla": "nnabla"},
        "works": {"image, batch 16": rows},
    }
    (tmp_path / "benchmarks.json").write_text(json.dumps({"image": kept}))
    options = ["--only", "growth", "--folder", tmp_path, "--model", "shapes", "--contenders", "numpy"]
    done = run("run.py", *options, *ONCE, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "benchmarks.json").read_text())
    assert list(figures) == ["image", "growth"]
    assert figures["image"] == kept
    assert list(figures["growth"]["works"]) == ["batch", "texts", "patches"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert (
        "|  | open_clip, inputs/s | torch |\n| --- | --- | --- |\n| image, batch 16 | 20 | **1.50** (1.25) |\n" in page
    )
    assert "nnabla is left out, since nnabla was not installed." in page
    assert f"| batch, numpy | **{figures['growth']['works']['batch']['numpy']['slope']:.2f}** | 1: " in page
    assert "| image | 2026-01-02 | 3 s | P | 2 | S | 3.10.1 |" in page
    assert (tmp_path / "benchmarks.svg").read_text().startswith("<?xml")


def test_a_subject_that_is_unknown(tmp_path):
    done = run("run.py", "--only", "image,sound", "--folder", tmp_path, timeout=60)
    assert done.returncode == 2
    assert "there are no subjects sound; choose some of image, image-bf16, text" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "kinds", "contenders"),
    [
        (
            *("tokenizer.py", ["--texts", "200", "--contenders", "open_clip,transformers,clip"]),
            *(["captions", "prose"], ["open_clip", "transformers", "clip"]),
        ),
        (
            "preprocessing.py",
            ["--sizes", "64x48,48x64", "--resolution", "32", "--contenders", "torchvision,transformers,clip"],
            ["64x48", "48x64"],
            ["torchvision", "transformers", "clip"],
        ),
        (
            *("search.py", ["--rows", "2000", "--dimension", "16", "--contenders", "numpy,clip on disk"]),
            *(["1 query", "8 queries"], ["numpy", "clip on disk"]),
        ),
        ("conversion.py", ["--model", "shapes"], ["shapes"], ["torch", ".h5", ".pdparams", ".safetensors", ".pt"]),
        (
            *("startup.py", ["--model", "shapes", "--backend", "numpy"], ["shapes"]),
            ["loading", "clip classify", "clip --help"],
        ),
    ],
)
def test_files_and_inputs_are_measured_beside_their_peers(script, options, kinds, contenders, tmp_path):
    works = works_of(tmp_path, script, *options)
    assert list(works) == kinds
    for rows in works.values():
        assert list(rows) == contenders
        assert rows[contenders[0]]["ratio_of_best"] == 1
        assert all(row["best"] >= row["median"] > 0 for row in rows.values())


@pytest.mark.slow
def test_a_server_is_measured_beside_its_model(tmp_path):
    works = works_of(tmp_path, "serving.py", "--backend", "numpy", "--seconds", 0.3)
    assert list(works) == ["texts", "pictures"]
    for rows in works.values():
        assert list(rows) == ["direct", "direct batches", "1 clients", "8 clients", "64 clients"]
        assert rows["direct"]["ratio_of_best"] == 1
        assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values())


@pytest.mark.slow
def test_the_memory_of_loading_and_converting(tmp_path):
    asked = ["numpy .safetensors", ".pt to .h5"]
    options = ["--model", "ViT-B/32", "--contenders", ",".join(asked), "--json", tmp_path / "out.json"]
    done = run("memory.py", *options)
    assert done.returncode == 0, done.stderr
    works = json.loads((tmp_path / "out.json").read_text())["works"]
    assert list(works) == asked
    assert all(0.5 < row["ratio"] < 2 for row in works.values())


@pytest.mark.slow
def test_texts_give_the_same_embeddings(tmp_path):
    works = works_of(tmp_path, "text.py", "--classes", 1, "--contenders", "open_clip,transformers,torch")
    assert list(works) == ["short captions", "captions", "classifier"]
    for kind, rows in works.items():
        for name, row in rows.items():
            assert row["difference"] < 1e-5, (kind, name)
            assert row["best"] >= row["median"] > 0
        assert rows["open_clip"]["ratio_of_best"] == 1


def test_time_and_cost_of_a_cluster_follow_from_the_rates(tmp_path):
    rates = ("--decode", 200, "--machines", 100, "--cpus", 16, "--price", 0.5, "--json", tmp_path / "out.json")
    for options, rate in ((("--embed", 50), 640), (("--embed", 9000, "--gpus", 1), 3200)):
        done = run("cluster.py", *rates, *options)
        assert done.returncode == 0, done.stderr
        works = json.loads((tmp_path / "out.json").read_text())["works"]
        assert works["embedded by a machine, pictures/s"] == pytest.approx(rate)
        assert works["hours of the cluster"] == pytest.approx(1e9 / rate / 100 / 3600)
        assert works["cost"] == pytest.approx(1e9 / rate / 3600 * 0.5)
        assert works["GB of parts"] == pytest.approx(1224)
