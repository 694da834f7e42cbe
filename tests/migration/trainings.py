"""``clip train`` in this process, what its trainer was given and what it gave."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, exp, pi
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from backends.numpy import CLIP as Reference
from clip.command import app
from clip_core import similarity
from clip_core.architecture import Architecture
from clip_core.similarity import normalize
from clip_core.training.recipe import Recipe
from tests.migration.datasets import TINY, caption_in, filled, number_in

BASE = {
    "model": {"architecture": TINY},
    "training": {"steps": 2, "seed": 1},
    "data": {"source": "shapes", "examples": 16, "batch_size": 4},
}


def merged(*settings: dict[str, Any]) -> dict[str, Any]:
    """Sections with the keys of all; of one key the last value."""
    result: dict[str, Any] = {}
    for of_one in settings:
        for section, keys in of_one.items():
            result[section] = result.get(section, {}) | keys
    return result


@dataclass(frozen=True)
class Step:
    pixels: np.ndarray
    tokens: np.ndarray
    rate: float
    result: Any  # StepResult
    before: dict[str, np.ndarray]  # the trainer's state
    after: dict[str, np.ndarray]

    @property
    def pairs(self) -> list[tuple[int, str]]:
        return [(number_in(pixels), caption_in(tokens)) for pixels, tokens in zip(self.pixels, self.tokens)]


@dataclass(frozen=True)
class Run:
    folder: Path
    err: str
    steps: list[Step] = field(default_factory=list)
    out: str = ""

    @property
    def recipe(self) -> Recipe:
        return Recipe.read(self.folder / "recipe.yaml")

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def column(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines()]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


class Trainings:
    """``clip train`` in this process, and what the trainer was given and gave; equal runs are made once."""

    def __init__(self, data: Path, root: Path) -> None:
        self.data, self._root = data, root
        self._done: dict[str, Run] = {}
        self.commands: dict[str, Run] = {}
        self.steps: list[Step] = []
        self.asked = 0  # how many trainings and recipes so far

    def __call__(self, *settings: dict[str, Any], options: str = "", number: int = 2, cached: bool = True) -> Run:
        """Train by all ``settings`` together, over `BASE`; N is ``number``."""
        self.asked += 1
        given = merged(*settings)
        base = merged(BASE)
        if given.get("training", {}).get("epochs"):
            del base["training"]["steps"]
        if given.get("data", {}).get("source", "shapes") != "shapes":
            del base["data"]["examples"]
        recipe = filled(merged(base, given), self.data, number)
        config = self.folder() / "recipe.yaml"
        config.parent.mkdir()
        config.write_text(yaml.safe_dump(recipe))
        key = json.dumps([recipe, options])
        if not cached or key not in self._done:
            self._done[key] = self.command(f"train -c {config} --output {config.parent / 'run'} {options}")
        return self._done[key]

    def folder(self) -> Path:
        return self._root / str(len(list(self._root.iterdir())))

    def command(self, words: str, output: Path | None = None) -> Run:
        """A command line without its ``clip``, in the folder of the data."""
        self.asked += 1
        arguments = shlex.split(words)
        self.steps = []
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None:
            raise result.exception
        if output is None and "--output" in arguments:
            output = Path(arguments[arguments.index("--output") + 1])
        return Run(output or self.data, result.stderr, self.steps, result.stdout)

    def recipe(self, *settings: dict[str, Any]) -> Recipe:
        """All ``settings`` together over `BASE`, without a training."""
        self.asked += 1
        return Recipe.parse(merged(BASE, *settings))

    @contextmanager
    def asked_for(self) -> Iterator[None]:
        """Fail if the block neither trains nor parses a recipe."""
        before = self.asked
        yield
        assert self.asked > before, "nothing was run"


def features(weights: dict[str, np.ndarray], pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of both towers [n, d] at length 1 in float64; ``weights`` is a trainer's state."""
    own = {name.removeprefix("weights/"): array for name, array in weights.items() if name.startswith("weights/")}
    architecture = Architecture.from_dict(TINY | {"logit_bias": "logit_bias" in own})
    judge = Reference(architecture, own, precision="fp64")
    return normalize(judge.encode_image(pixels)), normalize(judge.encode_text(tokens))


def contrastive_loss(step: Step) -> float:
    """The mean of both directions, before the update."""
    images, texts = features(step.before, step.pixels, step.tokens)
    return similarity.contrastive_loss(similarity.logits(images, texts, exp(step.before["weights/logit_scale"])))[0]


def update_of(step: Step, name: str) -> np.ndarray:
    return step.after[f"weights/{name}"].astype(np.float64) - step.before[f"weights/{name}"]


def half_cosine(highest: float, step: int, total: int, final: float = 0.0) -> float:
    return final + (highest - final) * (1 + cos(pi * step / total)) / 2
