"""The benchmark of training runs, and its contenders do the same work: their first losses are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requested import FRAMEWORKS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "training.py"


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
