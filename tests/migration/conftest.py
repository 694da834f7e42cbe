"""Small trainings for the rows of docs/migrating.md, and a ViT-B/32 of full size for the snippets of other projects."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import backends
import clip
import converters
from backends.numpy import CLIP as Reference
from clip_core.initialize import initialize
from clip_core.models import MODELS
from clip_core.naming import Weights
from clip_core.training import loop
from converters import ModelFile
from tests.migration.datasets import write_data
from tests.migration.trainings import Step, Trainings
from tests.requested import BACKENDS, FRAMEWORKS, load_backend

with warnings.catch_warnings():
    # What the frameworks say of the machine while they are imported is not about this project.
    warnings.simplefilter("ignore")
    for name in BACKENDS:
        load_backend(name)

ARCHITECTURE = MODELS["ViT-B/32"].architecture


@pytest.fixture(scope="session")
def trainings(tmp_path_factory) -> Trainings:
    """What equal rows share: the data, and the runs so far."""
    data = tmp_path_factory.mktemp("data")
    write_data(data)
    return Trainings(data, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def train(trainings, monkeypatch) -> Iterator[Trainings]:
    """`trainings` in the folder of the data, with every step recorded. A test that asks for none of them fails."""
    monkeypatch.chdir(trainings.data)
    monkeypatch.setattr(loop, "plot", lambda run: None)  # takes longer than most of these runs
    for backend in FRAMEWORKS:
        trainer = backends.get(backend).Trainer

        def step(self, pixels, tokens, rate, own=trainer.step):
            states = len(trainings.steps) < 2  # of later steps no check asks
            before = self.state() if states else {}
            result = own(self, pixels, tokens, rate)
            trainings.steps.append(Step(pixels, tokens, rate, result, before, self.state() if states else {}))
            return result

        monkeypatch.setattr(trainer, "step", step)
    with trainings.asked_for():
        yield trainings


@pytest.fixture(scope="session")
def weights() -> Weights:
    """Numbers that half precision holds, as OpenAI's files do, with a trained model's logit scale."""
    drawn = initialize(ARCHITECTURE, seed=0)
    drawn["logit_scale"] = np.array(np.log(100), np.float32)
    return {name: array.astype(np.float16).astype(np.float32) for name, array in drawn.items()}


@pytest.fixture(scope="session")
def convert(weights, tmp_path_factory) -> Callable[..., Path]:
    """Write the model into a file of that name in a folder of its own."""

    def write(name: str, **options: Any) -> Path:
        target = tmp_path_factory.mktemp("converted") / name
        report = converters.write(ModelFile(weights, ARCHITECTURE), target, **options)
        assert (report.parameters, report.max_abs_difference) == (151277313, 0.0)
        return target

    return write


@pytest.fixture(scope="session")
def judge(weights) -> Reference:
    return Reference(ARCHITECTURE, weights, precision="fp64")


@pytest.fixture
def run_snippet(tmp_path, monkeypatch) -> Callable[[str], dict[str, Any]]:
    """Run code as a script of its own in the test's folder, beside CLIP.png; gives its variables."""
    monkeypatch.setattr(clip.api, "_current", None)
    monkeypatch.delenv("CLIP_BACKEND", raising=False)
    monkeypatch.chdir(tmp_path)
    draw_diagram().save("CLIP.png")

    def run(code: str) -> dict[str, Any]:
        Path("snippet.py").write_text(dedent(code))
        return runpy.run_path("snippet.py")

    return run


def draw_diagram() -> Image.Image:
    """Boxes and arrows on a transparent ground, in the size and mode of the picture that the snippets open."""
    image = Image.new("RGBA", (2162, 762), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for row in range(3):
        for column in range(5):
            left, top = 60 + 420 * column, 40 + 240 * row
            colour = (250 - 40 * column, 120 + 50 * row, 90 + 30 * column, 255 - 60 * row)
            draw.rounded_rectangle((left, top, left + 300, top + 160), 30, colour, (20, 20, 20, 255), 4)
            draw.line((left + 300, top + 80, left + 420, top + 80), (40, 40, 40, 255), 6)
            draw.ellipse((left + 40, top + 30, left + 140, top + 130), (255, 255, 255, 120))
    return image
