"""Each example script runs as its docstring says and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import converters
from clip_core.architecture import Architecture
from clip_core.initialize import initialize
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning_on_food101_in_paddle(tmp_path):
    food = tmp_path / "food-101"
    (food / "meta").mkdir(parents=True)
    classes = {"apple_pie": (200, 30, 30), "green_salad": (30, 180, 30), "blue_cheese": (40, 60, 220)}
    (food / "meta" / "classes.txt").write_text("\n".join(classes) + "\n")
    keys = [f"{name}/{number}" for number in range(2) for name in classes]
    (food / "meta" / "train.txt").write_text("\n".join(keys) + "\n")
    for key in keys:
        path = food / "images" / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), classes[key.split("/")[0]]).save(path)
    image, text = VisionTransformer(32, 16, 64, 1, 1), TextTransformer(77, 49408, 64, 1, 1)
    architecture = Architecture(16, image, text)
    weights = initialize(architecture, 0)
    converters.write(converters.ModelFile(weights, architecture), tmp_path / "tiny.pdparams", layout="passl")

    options = ("--steps", 30, "--batch-size", 3, "--learning-rate", 1e-3)
    out = run("finetune_food101_paddle.py", "tiny.pdparams", "food-101", *options, folder=tmp_path)
    losses = [float(value) for value in re.findall(r"loss (\S+),", out)]
    assert len(losses) == 30
    assert abs(losses[0] - 2 * np.log(3)) < 2  # the sum of two cross-entropies over three pairs, near chance
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    tuned = converters.read(tmp_path / "food101.pdparams")
    assert tuned.layout == "passl"
    assert (tuned.weights["visual.proj"] != weights["visual.proj"]).any()


@pytest.mark.needs("nnabla")
def test_a_linear_probe_in_nnabla(tmp_path):
    out = run("linear_probe_nnabla.py", "shapes", "--pictures", 4, folder=tmp_path)
    loss, accuracy = map(float, re.findall(r"\d\.\d+", out))
    assert loss < 0.5
    assert accuracy > 0.9


def test_a_search_in_torch(tmp_path):
    pictures = ROOT / "clip_core" / "resources" / "pictures"
    out = run("search_pictures_torch.py", "shapes", pictures, "a striped red star", folder=tmp_path)
    lines = out.splitlines()
    assert len(lines) == len(list(pictures.glob("*.png")))
    assert lines[0].endswith("a-large-striped-red-star.png")
    similarities = [float(line.split()[0]) for line in lines]
    assert similarities == sorted(similarities, reverse=True)
