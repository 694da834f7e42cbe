"""Every row of docs/migrating.md, run: what stands on its right has the effect that stands on its left.

Keys, values, options and commands are taken from the document. Only what is too large for a test is replaced: the
model, the number of processes, and intervals and batches of thousands.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import cos, exp, pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import pyarrow
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import backends
import converters
from clip.command import app
from clip.command import train as train_command
from clip_core import similarity
from clip_core.architecture import Architecture
from clip_core.data import loader
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.models import MODELS
from clip_core.naming import parameters
from clip_core.preprocess import preprocess
from clip_core.reference import CLIP as Reference
from clip_core.similarity import normalize
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import HEADER
from clip_core.towers.parts import DEVIATION, MEAN
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training import loop
from clip_core.training.recipe import Data, Recipe
from converters import ModelFile
from tests.data.numbered import save, shard
from tests.requested import FRAMEWORKS

ROOT = Path(__file__).parents[2]
PICTURES = 256
TOKENIZER = BytePairTokenizer(HEADER)  # letter by letter
TINY = {
    "embed_dim": 16,
    "image": {"kind": "vit", "resolution": 32, "patch": 32, "width": 64, "layers": 1, "heads": 1},
    "text": {"context_length": 32, "vocabulary_size": 514, "width": 64, "layers": 1, "heads": 1},
    "activation": "quick_gelu",
}
BASE = {
    "model": {"architecture": TINY},
    "training": {"steps": 2, "seed": 1},
    "data": {"source": "shapes", "examples": 16, "batch_size": 4},
}


# The document


class Row(NamedTuple):
    seed: str
    theirs: str
    here: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.here)

    @property
    def fragments(self) -> list[dict[str, Any]]:
        """The codes that are keys of a recipe, as its sections."""
        found = []
        for code in self.codes:
            if re.match(rf"({'|'.join(Recipe.model_fields)})(\.\w+)?: ", code):
                ((place, value),) = yaml.safe_load(code).items()
                section, _, key = place.partition(".")
                found.append({section: {key: value} if key else value})
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """All of them together."""
        assert self.fragments, "the row names no key of a recipe"
        return merged(*self.fragments)

    @property
    def command(self) -> str:
        return next(code for code in self.codes if re.search(r"\bclip\)? ", code))


def merged(*settings: dict[str, Any]) -> dict[str, Any]:
    """Sections with the keys of all; of one key the last value."""
    result: dict[str, Any] = {}
    for of_one in settings:
        for section, keys in of_one.items():
            result[section] = result.get(section, {}) | keys
    return result


def read_document() -> list[Row]:
    rows, seed = [], ""
    for line in (ROOT / "docs" / "migrating.md").read_text().splitlines():
        if line.startswith("## "):
            seed = line[3:]
        elif line.startswith("|") and not line.startswith(("| theirs |", "| --- |")):
            theirs, here = line.strip("| ").split(" | ")
            rows.append(Row(seed, theirs.replace("`", ""), here))
    return rows


# Data in the seeds' layouts, all of the same pictures; each picture and its caption tell their number


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (16 * (number % 16) + 8, 16 * (number // 16) + 8, 128))


def ramp(width: int) -> Image.Image:
    """32 rows of pixels that tell their column by red and their row by green."""
    rows, columns = np.mgrid[:32, :width]
    return Image.fromarray(np.stack([4 * columns, 4 * rows, 0 * rows], axis=-1).astype(np.uint8))


def number_in(pixels: np.ndarray) -> int:
    """Of normalised pixels [3, r, r]."""
    red, green, _ = (pixels.mean(axis=(1, 2)) * DEVIATION + MEAN) * 255
    return round((red - 8) / 16) + 16 * round((green - 8) / 16)


def caption_in(tokens: np.ndarray) -> str:
    return TOKENIZER.decode(tokens[1 : tokens.tolist().index(TOKENIZER.end)]).replace(" ", "")


def table(columns: tuple[str, str], rows: list[tuple[str, str]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in [columns, *rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    encoded = []
    for number in range(PICTURES):
        stream = io.BytesIO()
        picture(number).save(stream, "JPEG", quality=95)
        encoded.append(stream.getvalue())
    for folder in ("pictures", "classes/one", "classes/two"):
        (root / folder).mkdir(parents=True)
    for number, bytes_ in enumerate(encoded):
        (root / "pictures" / f"{number}.jpg").write_bytes(bytes_)
        (root / "pictures" / f"{number}.txt").write_text(f"n{number}\n")
    for number in range(8):
        (root / "classes" / ("one", "two")[number % 2] / f"{number}.jpg").write_bytes(encoded[number])
    (root / "names.txt").write_text("tench\ngoldfish\n")

    numbers, names = range(PICTURES), [f"{number}.jpg" for number in range(PICTURES)]
    rows = [(name, f"n{number}") for number, name in enumerate(names)]
    turned = [(text, name) for name, text in rows]
    (root / "listed").mkdir()
    for name in names:
        (root / "listed" / name).symlink_to(root / "pictures" / name)
    (root / "listed" / "cc.csv").write_text(table(("filepath", "title"), rows, "\t"))
    (root / "WKIT_local.csv").write_text(table(("Q", "IMG"), turned, ","))
    (root / "query.csv").write_text(table(("query", "image"), turned, ","))

    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    texts = [{"image_id": number, "caption": f"n{number}"} for number in numbers]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": texts}))
    entries = [{"image_id": str(number), "caption_str": f"n{number}"} for number in numbers]
    (root / "textcaps.json").write_text(json.dumps({"data": entries}))
    lists = {"urls": [f"http://static.example/{name}" for name in names], "captions": [text for _, text in rows]}
    for kind, lines in lists.items():
        (root / f"SBU_captioned_photo_dataset_{kind}.txt").write_text("\n".join(lines) + "\n")

    labels = [f"n{number}" for number in numbers]
    stored = [[base64.b64encode(bytes_).decode()] for bytes_ in encoded]
    save(root / "m3it" / "train", [pyarrow.table({"image_base64_str": stored, "outputs": labels})])
    stored = [{"bytes": bytes_, "path": None} for bytes_ in encoded]
    save(root / "saved" / "train", [pyarrow.table({"image": stored, "caption": labels})])
    for folder in ("m3it", "saved"):
        (root / folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    for number in range(2):
        members = []
        for own in numbers[number::2]:
            metadata = json.dumps({"caption": f"n{own}"}).encode()
            members += [(f"{own:09}.jpg", encoded[own]), (f"{own:09}.txt", f"n{own}".encode())]
            members += [(f"{own:09}.json", metadata)]
        shard(root / f"{number:05}.tar", members)
    for folder, width in (("wide", 48), ("square", 32)):
        (root / folder).mkdir()
        for number in range(8):
            ramp(width).save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"n{number}\n")
    rows[7] = ("7.jpg", "")
    (root / "one-fault.csv").write_text(table(("filepath", "title"), rows, "\t"))
    rows[8:16] = [("8.jpg", "")] * 8
    (root / "many-faults.csv").write_text(table(("filepath", "title"), rows, "\t"))

    (root / "configs").symlink_to(ROOT / "configs")
    weights = initialize(Architecture.from_dict(TINY), 99)
    weights["logit_scale"] = np.array(np.log(20.0), np.float32)
    for name in ("ViT-B-32.h5", "ViT-B-32.pdparams", "weights.safetensors"):
        converters.write(ModelFile(weights, Architecture.from_dict(TINY), vocabulary=HEADER), root / name)
    return root


def places(data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Where FILE and DIR are for a source, or for pictures with classes."""
    tables = {"title": data / "listed" / "cc.csv", "Q": data / "WKIT_local.csv", "query": data / "query.csv"}
    folder = {"m3it": data / "m3it", "saved": data / "saved", "sbu": data, "paired": data / "pictures"}
    source = settings.get("source", "folders")
    return {
        "file": tables.get(settings.get("caption_column", "title")),
        "annotations": data / f"{source}.json",
        "images": data / "pictures",
        "folder": folder.get(source, data / "classes"),
        "names": data / "names.txt",
        "shards": data,
    }


def filled(settings: Any, data: Path, number: int) -> Any:
    """The same with something in place of FILE, DIR and N."""
    if isinstance(settings, list):
        return [filled(item, data, number) for item in settings]
    if not isinstance(settings, dict):
        return number if settings == "N" else settings
    found = {key: filled(value, data, number) for key, value in settings.items()}
    for key, place in places(data, settings).items():
        if isinstance(found.get(key), str):
            found[key] = re.sub(r"\b(FILE|DIR)\b", str(place), found[key])
    return found


# Runs


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

    def __call__(self, *settings: dict[str, Any], options: str = "", number: int = 2, cached: bool = True) -> Run:
        """Train by all ``settings`` together, over `BASE`; N is ``number``."""
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
        arguments = shlex.split(words)
        self.steps = []
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None:
            raise result.exception
        if output is None and "--output" in arguments:
            output = Path(arguments[arguments.index("--output") + 1])
        return Run(output or self.data, result.stderr, self.steps)


@pytest.fixture(scope="module")
def train(data, tmp_path_factory) -> Iterator[Trainings]:
    trainings = Trainings(data, tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        patch.setattr(loop, "plot", lambda run: None)  # takes longer than most of these runs
        for backend in FRAMEWORKS:
            trainer = backends.get(backend).Trainer

            def step(self, pixels, tokens, rate, own=trainer.step):
                states = len(trainings.steps) < 2  # of later steps no check asks
                before = self.state() if states else {}
                result = own(self, pixels, tokens, rate)
                trainings.steps.append(Step(pixels, tokens, rate, result, before, self.state() if states else {}))
                return result

            patch.setattr(trainer, "step", step)
        yield trainings


Check = Callable[[Row, Trainings], None]


# Checks that several rows share


def none(row: Row, train: Trainings) -> None:
    """There is no counterpart, and the row says why."""
    assert row.here.startswith("none: ")
    assert not row.fragments


def half_cosine(highest: float, step: int, total: int, final: float = 0.0) -> float:
    return final + (highest - final) * (1 + cos(pi * step / total)) / 2


def batch(size: int) -> Check:
    def check(row: Row, train: Trainings) -> None:
        drawn = size > PICTURES
        source = {"source": "shapes", "examples": size} if drawn else {"source": "paired", "folder": "DIR"}
        run = train({"data": source, "training": {"steps": 1}}, row.settings)
        assert [len(step.pixels) for step in run.steps] == [size]

    return check


def epochs(count: int) -> Check:
    """Sixteen examples in batches of four are four steps an epoch."""

    def check(row: Row, train: Trainings) -> None:
        run = train(row.fragments[0], options="--steps 1")
        assert run.column("learning_rate") == [pytest.approx(half_cosine(5e-4, 1, 4 * count + 1))]

    return check


def steps(row: Row, train: Trainings) -> None:
    assert len(train(row.settings, number=3).steps) == 3


def seed(value: int) -> Check:
    """The initial weights are the seed's."""

    def check(row: Row, train: Trainings) -> None:
        expected = initialize(Architecture.from_dict(TINY), value)["visual.proj"]
        found = [train(row.settings)]
        found += [train(options=code) for code in row.codes if code.startswith("--seed")]
        for run in found:
            np.testing.assert_array_equal(run.steps[0].before["weights/visual.proj"], expected)
            assert run.recipe.training.seed == value

    return check


def rate(highest: float) -> Check:
    def check(row: Row, train: Trainings) -> None:
        run = train(row.fragments[0])
        assert run.column("learning_rate") == [pytest.approx(half_cosine(highest, step, 3)) for step in (1, 2)]

    return check


def warm_up(count: int) -> Check:
    def check(row: Row, train: Trainings) -> None:
        run = train(row.settings)
        assert run.column("learning_rate") == [pytest.approx(5e-4 * min(step / count, 1)) for step in (1, 2)]

    return check


def final_rate(highest: float, lowest: float) -> Check:
    """The step after the last would have the lowest rate."""

    def check(row: Row, train: Trainings) -> None:
        run = train({"optimizer": {"learning_rate": highest}}, *row.fragments)
        assert run.column("learning_rate") == [pytest.approx(half_cosine(highest, s, 3, lowest)) for s in (1, 2)]

    return check


def moments(one: float, two: float) -> Check:
    """After one step (1 - beta_1) of the gradient and (1 - beta_2) of its square are there."""

    def check(row: Row, train: Trainings) -> None:
        state = train({"optimizer": {"weight_decay": 0.0}}, row.settings).steps[0].after
        gradient = state["first_moment/visual.proj"].astype(np.float64) / (1 - one)
        np.testing.assert_allclose(state["second_moment/visual.proj"], (1 - two) * gradient**2, rtol=1e-4, atol=1e-14)
        assert np.abs(gradient).max() > 1e-4

    return check


def update_of(step: Step, name: str) -> np.ndarray:
    return step.after[f"weights/{name}"].astype(np.float64) - step.before[f"weights/{name}"]


def epsilon(value: float) -> Check:
    """The bias of the keys has no gradient but rounding, of the size of an epsilon."""

    def check(row: Row, train: Trainings) -> None:
        optimizer = {"betas": [0.5, 0.5], "learning_rate": 1.0, "weight_decay": 0.0}
        run = train({"optimizer": optimizer | row.settings["optimizer"] | {"betas": [0.5, 0.5]}})
        name, keys = "transformer.resblocks.0.attn.in_proj_bias", slice(64, 128)
        gradient = 2 * run.steps[0].after[f"first_moment/{name}"][keys].astype(np.float64)
        found = update_of(run.steps[0], name)[keys] / run.steps[0].rate
        np.testing.assert_allclose(found, -gradient / (np.abs(gradient) + value), rtol=1e-3, atol=1e-9)
        other = -gradient / (np.abs(gradient) + value * 2)
        assert np.abs(found - other).max() > 1e-2 * np.abs(found).max()

    return check


def decay(value: float, of_all: bool) -> Check:
    """What a step with decay takes away beyond a step without it: rate times decay, of some parameters or of all."""

    def check(row: Row, train: Trainings) -> None:
        common = {"optimizer": {"learning_rate": 0.5}}
        run = train(common, {"optimizer": {"weight_decay": value}}, row.settings)
        without = train(common, {"optimizer": {"weight_decay": 0.0}})
        assert run.recipe.optimizer.weight_decay == value
        for parameter in parameters(Architecture.from_dict(TINY)):
            decayed = of_all or parameter.kind in ("linear", "conv", "projection", "embedding")
            step, name = run.steps[0], f"weights/{parameter.name}"
            expected = -step.rate * value * step.before[name] if decayed else 0.0 * step.before[name]
            if parameter.kind == "scalar":
                continue  # bounded after the update
            found = step.after[name].astype(np.float64) - without.steps[0].after[name]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6, err_msg=name)
        assert step.rate == pytest.approx(0.375)

    return check


def adam(row: Row, train: Trainings) -> None:
    """The decay is a part of the gradient, so it stands in the moments."""
    fragment = next(part for part in row.fragments if "name" in part["optimizer"])
    one, other = (train(fragment, {"optimizer": {"weight_decay": value, "decay": "all"}}) for value in (0.0, 0.5))
    name = "visual.proj"
    found = other.steps[0].after[f"first_moment/{name}"] - one.steps[0].after[f"first_moment/{name}"]
    np.testing.assert_allclose(found, 0.1 * 0.5 * one.steps[0].before[f"weights/{name}"], rtol=1e-3, atol=1e-6)


def gradient_clip(limit: float | None) -> Check:
    """The norm of the gradients after clipping, told by the first moments."""

    def check(row: Row, train: Trainings) -> None:
        settings = {"loss": {"initial_logit_scale": 5000.0}, "optimizer": {"weight_decay": 0.0, "betas": [0.9, 0.98]}}
        step = train(settings, row.settings).steps[0]
        clipped = [array / 0.1 for name, array in step.after.items() if name.startswith("first_moment/")]
        norm = float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in clipped)))
        assert step.result.gradient_norm > (limit or 20)
        assert norm == pytest.approx(min(limit or np.inf, step.result.gradient_norm), rel=1e-4)

    return check


def scale_bounds(low: float, high: float) -> Check:
    """A scale that starts outside is inside after the first update, one inside stays where Adam brings it."""

    def check(row: Row, train: Trainings) -> None:
        def after(start: float) -> float:
            loss, optimizer = {"initial_logit_scale": start}, {"learning_rate": 1e-7}
            run = train(row.settings, {"loss": loss, "optimizer": optimizer})
            return exp(float(run.steps[0].after["weights/logit_scale"]))

        assert after(high * 1.5) == pytest.approx(high, rel=1e-5)
        assert after(low / 1.5) == pytest.approx(low, rel=1e-5)
        inside = (low * high) ** 0.5
        assert after(inside) == pytest.approx(inside, rel=1e-5)

    return check


def reduction(factor: float, scale: float = 1 / 0.07) -> Check:
    """The loss is so many times the mean of both directions."""

    def check(row: Row, train: Trainings) -> None:
        step = train(row.settings).steps[0]
        assert step.result.loss == pytest.approx(factor * contrastive_loss(step), rel=1e-5)
        assert step.result.logit_scale == pytest.approx(scale, rel=1e-5)

    return check


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


def read_from(kind: str) -> Check:
    """Each picture comes with its own caption, and each once in an epoch."""

    def check(row: Row, train: Trainings) -> None:
        used = []
        for fragment in row.fragments:
            default = {} if "source" in fragment["data"] else {"source": "table", "file": "FILE"}
            run = train({"data": {"batch_size": 64} | default, "training": {"epochs": 1}}, fragment)
            pairs = [pair for step in run.steps for pair in step.pairs]
            assert all(caption == f"n{number}" for number, caption in pairs)
            assert sorted(number for number, _ in pairs) == sorted([*range(PICTURES)] * (len(pairs) // PICTURES))
            used.append(run.recipe.data.source)
        assert " ".join(used) == kind

    return check


def loss_scales(row: Row, train: Trainings) -> None:
    """The products are rounded, and the gradients computed at a large factor."""
    steps, exact = (train(settings).steps for settings in (row.settings, {}))
    assert all(step.result.loss_scale > 1 for step in steps)
    assert steps[0].result.loss != exact[0].result.loss
    assert steps[0].result.loss == pytest.approx(exact[0].result.loss, rel=1e-2)


def recomputed(row: Row, train: Trainings) -> None:
    """Blocks run once more in the backward pass, with the same result."""
    from backends.torch import model

    def blocks_run(settings: dict[str, Any]) -> tuple[int, list[float]]:
        counted: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            own = model.ResidualAttentionBlock.forward
            patch.setattr(
                model.ResidualAttentionBlock, "forward", lambda self, *rest: counted.append(1) or own(self, *rest)
            )
            run = train(settings, cached=False)
        return len(counted), run.column("loss")

    (often, losses), (once, expected) = blocks_run(row.settings), blocks_run({})
    assert (once, often) == (4, 8)  # two steps, two towers, one block each
    assert losses == expected


def architecture(expected: Architecture) -> Check:
    def check(row: Row, train: Trainings) -> None:
        assert Recipe.parse(merged(BASE, row.settings)).model.build() == expected

    return check


def workers(count: int) -> Check:
    """So many processes are asked for; they are not started here."""

    def check(row: Row, train: Trainings) -> None:
        asked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            own = loader._in_order
            patch.setattr(loader, "_in_order", lambda blocks, workers: asked.append(workers) or own(blocks, 0))
            run = train(row.settings, cached=False)
        assert asked == [count]
        assert len(run.steps) == 2

    return check


def workers_make_the_same_batches(row: Row, train: Trainings) -> None:
    assert train(row.settings).column("loss") == train().column("loss")


def every(count: int, section: str = "checkpoint") -> Check:
    """Scaled down, so that ``count`` steps are two."""

    def check(row: Row, train: Trainings) -> None:
        given = merged(*row.fragments)[section]
        assert given["every_steps"] == count
        scaled = {section: given | {"every_steps": 2}}
        if section == "evaluation":
            run = train({"evaluation": {"retrieval": {"source": "paired", "folder": "DIR"}}}, scaled, STEPS_4)
            assert [line["step"] for line in run.lines("evaluation.jsonl")] == [2, 4]
        else:
            kept = ["step-00000002", "step-00000004"][-given.get("keep", 2) :]
            assert train(STEPS_4, scaled).checkpoints == kept

    return check


STEPS_4 = {"training": {"steps": 4}}


def kept(count: int) -> Check:
    """A checkpoint after each step, of which the newest stay."""

    def check(row: Row, train: Trainings) -> None:
        run = train(STEPS_4, row.settings, number=1)
        assert run.checkpoints == [f"step-{step:08}" for step in range(5 - count, 5)]

    return check


def written_to_output(row: Row, train: Trainings) -> None:
    """The run's folder is where ``--output`` says, and made when it is not there."""
    assert "--output DIR" in row.codes
    folder = train.folder() / "made" / "run"
    train(*row.fragments, options=f"--output {folder}", cached=False)
    assert {"recipe.yaml", "metrics.jsonl", "model.safetensors", "checkpoints"} <= {x.name for x in folder.iterdir()}
    if row.fragments:
        monitored(row, train)


def monitored(row: Row, train: Trainings) -> None:
    run = train(row.settings)
    for name, column in (("Total-loss", "loss"), ("Learning-rate", "learning_rate")):
        lines = (run.folder / "monitor" / f"{name}.series.txt").read_text().splitlines()
        assert [line.split() for line in lines] == [[str(line["step"]), f"{line[column]:g}"] for line in run.lines()]
    assert "Logit-scale.series.txt" in os.listdir(run.folder / "monitor")


def tensorboard(row: Row, train: Trainings) -> None:
    """Records with the tags, and the loss as a little-endian float32."""
    run = train(row.settings)
    (events,) = run.folder.glob("events.out.tfevents.*")
    stored = events.read_bytes()
    for tag, column in ((b"train/loss", "loss"), (b"train/learning_rate", "learning_rate")):
        values = re.findall(tag + rb"\x15(.{4})", stored, re.DOTALL)
        np.testing.assert_allclose(np.frombuffer(b"".join(values), "<f4"), run.column(column), rtol=1e-6)


def loaded(row: Row, train: Trainings) -> None:
    """The first step starts from the file's weights."""
    assert "--load FILE" in row.codes
    expected = converters.read(train.data / "weights.safetensors").weights
    steps = train(options="--load weights.safetensors").steps
    for name, array in expected.items():
        np.testing.assert_array_equal(steps[0].before[f"weights/{name}"], array)
    if "--steps 100" in row.codes:
        settings = {"training": {"steps": 101}, "data": {"batch_size": 2}}
        assert train(settings, options="--load weights.safetensors --steps 100").lines()[-1]["step"] == 100


def resumed(row: Row, train: Trainings) -> None:
    """Exactly as a run that was never stopped."""
    assert "--resume DIR" in row.codes
    whole = train(STEPS_4)
    part = train(STEPS_4, options="--steps 2", cached=False)
    assert part.column("step") == [1, 2]
    again = train.command(f"train -c {part.folder / 'recipe.yaml'} --resume {part.folder}", part.folder)
    assert again.column("loss") == whole.column("loss")
    for name, array in whole.steps[1].after.items():
        np.testing.assert_array_equal(again.steps[0].before[name], array, err_msg=name)


def loaded_or_resumed(row: Row, train: Trainings) -> None:
    loaded(row, train)
    resumed(row, train)


def evaluated(row: Row, train: Trainings) -> None:
    """The scores of the trained weights, computed here from the reference's features."""
    run = train(row.fragments[0], {"training": {"steps": 1}}, number=1)
    (scores,) = run.lines("evaluation.jsonl")
    weights = run.steps[-1].after
    evaluation = row.fragments[0]["evaluation"]
    if "retrieval" in evaluation:
        size = evaluation.get("batch_size", 128)
        shown = [Image.open(train.data / "pictures" / f"{number}.jpg") for number in range(PICTURES)]
        pixels = np.stack([preprocess(image, 32) for image in shown])
        tokens = TOKENIZER.tokenize([f"n{number}" for number in range(PICTURES)], 32)
        images, texts = features(weights, pixels, tokens)
        cosines, scale = images @ texts.T, exp(weights["weights/logit_scale"])
        batches = [scale * cosines[first : first + size, first : first + size] for first in range(0, PICTURES, size)]
        losses = [similarity.contrastive_loss(of_batch)[0] for of_batch in batches]
        assert scores["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        found = np.mean(cosines.argmax(axis=1) == np.arange(PICTURES))
        assert scores["image_to_text_recall_at_1"] == pytest.approx(found, abs=2 / PICTURES)
    else:
        templates = evaluation["zero_shot"]["templates"]
        shown = [Image.open(train.data / "classes" / ("one", "two")[n % 2] / f"{n}.jpg") for n in range(8)]
        prompts = [template.format(name) for name in ("tench", "goldfish") for template in templates]
        images, texts = features(
            weights,
            np.stack([preprocess(image, 32) for image in shown]),
            TOKENIZER.tokenize(prompts, 32),
        )
        classes = normalize(texts.reshape(2, len(templates), -1).mean(axis=1))
        found = np.mean((images @ classes.T).argmax(axis=1) == np.arange(8) % 2)
        assert scores["zero_shot_top1"] == pytest.approx(found)
        assert scores["zero_shot_top5"] == 1.0


def cropped(kind: str) -> Check:
    """Which columns and rows are left of pictures that tell them by their colours."""

    def check(row: Row, train: Trainings) -> None:
        assert row.fragments[0]["data"]["augmentation"]["crop"] == kind
        folder = train.data / ("square" if kind == "resized" else "wide")
        run = train({"data": {"source": "paired", "folder": str(folder)}}, row.fragments[0])
        pixels = np.concatenate([step.pixels for step in run.steps])
        red, green, _ = ((pixels.transpose(0, 2, 3, 1) * DEVIATION + MEAN) * 255).transpose(3, 0, 1, 2) / 4
        left, columns, rows = red[:, 0, 0], red[:, 0, -1] - red[:, 0, 0] + 1, green[:, -1, 0] - green[:, 0, 0] + 1
        np.testing.assert_allclose(columns, rows, atol=1e-3)
        if kind == "resized":  # a square of 75 to 100 % of the area, and bilinear sampling within it
            assert columns.min() > 0.75**0.5 * 32 - 1
            assert columns.max() - columns.min() > 1
            assert columns.max() < 32.01
        else:
            np.testing.assert_allclose(columns, 32, atol=1e-3)
            assert (len(set(np.rint(left))) > 3) if kind == "random" else (set(np.rint(left)) == {8})

    return check


def converted(suffix: str) -> Check:
    """The model in a file of the other format holds the same numbers."""

    def check(row: Row, train: Trainings) -> None:
        folder = train().folder
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            train.command(row.command.removeprefix("clip "), folder)
        (written,) = folder.glob(f"*{suffix}")
        expected, found = (converters.read(folder / name) for name in ("model.safetensors", written.name))
        for name, array in expected.weights.items():
            np.testing.assert_array_equal(found.weights[name], array)
        written.unlink()

    return check


def faults(row: Row, train: Trainings) -> None:
    """One of 256 is listed and passed over; eight are more than the share."""

    def given(name: str) -> dict[str, Any]:
        data = {"source": "table", "file": str(train.data / name), "images": "DIR", "batch_size": 64}
        return {"data": data, "training": {"epochs": 1}}

    run = train(given("one-fault.csv"), *row.fragments)
    (fault,) = run.lines("faults.jsonl")
    assert fault["fault"] == f"{train.data / 'pictures' / '7.jpg'} has no caption."
    assert 7 not in [number for step in run.steps for number, _ in step.pairs]
    with pytest.raises(ClipError, match=r"data\.fault_share = 0\.01 allows"):
        train(given("many-faults.csv"), *row.fragments)


def half_a_cosine_one_step_on(theirs: Callable[[int], float], ours: list[float], first: int) -> None:
    """Each rate lies between theirs of the same step and theirs of the next; steps are counted from 0."""
    for place, value in enumerate(ours[first:], first):
        assert theirs(place) * (1 + 1e-9) >= value >= theirs(place + 1) * (1 - 1e-9)


def nnabla_schedule(row: Row, train: Trainings) -> None:
    settings = {"training": {"steps": 12}, "schedule": {"warm_up_steps": 4}}
    ours = train(settings, row.settings).column("learning_rate")

    def theirs(i: int) -> float:
        return 5e-4 * (i + 1) / 4 if i < 4 else 5e-4 * 0.5 * (1 + cos(pi * (i - 4) / (12 - 4)))

    assert ours[:4] == [pytest.approx(theirs(i)) for i in range(4)]
    half_a_cosine_one_step_on(theirs, ours, 4)


def paddle_cosine(row: Row, train: Trainings) -> None:
    rate(1e-5)(row, train)
    ours = train({"training": {"steps": 8}}, row.fragments[0]).column("learning_rate")
    half_a_cosine_one_step_on(lambda k: 1e-5 * (1 + cos(pi * k / 8)) / 2, ours, 0)


def paddle_warm_up(row: Row, train: Trainings) -> None:
    """Epochs of four steps: 20 of warm-up, then 20 of a cosine of 40."""
    assert "--steps" in row.codes
    ours = train(*row.fragments, options="--steps 40", number=20).column("learning_rate")
    assert len(ours) == 40

    def theirs(s: int) -> float:
        return 1e-4 * s / 20 if s < 20 else 1e-6 + (1e-4 - 1e-6) * (1 + cos(pi * (s - 20) / 40)) / 2

    assert ours[:19] == [pytest.approx(theirs(s + 1)) for s in range(19)]
    half_a_cosine_one_step_on(theirs, ours, 20)
    assert ours[-1] == pytest.approx(5.05e-5, rel=0.05)


def simple_cosine(row: Row, train: Trainings) -> None:
    """Two epochs of four steps: T_max is 2 * 4 + 4 // 4."""
    assert "--steps 8" in row.codes
    settings = {"optimizer": {"learning_rate": 1e-4}}
    ours = train(settings, *row.fragments, options="--steps 8").column("learning_rate")
    assert len(ours) == 8
    half_a_cosine_one_step_on(lambda k: half_cosine(1e-4, k, 2 * 4 + 4 // 4, 1e-8), ours, 0)


def linear_descent(row: Row, train: Trainings) -> None:
    assert train(row.settings).column("learning_rate") == [pytest.approx(half_cosine(5e-4, s, 3)) for s in (1, 2)]


def tower_rates(row: Row, train: Trainings) -> None:
    """Adam's first step is as long as the rate wherever the gradient is not small."""
    step = train({"optimizer": {"weight_decay": 0.0, "epsilon": 1e-12}}, row.settings).steps[0]
    for name, expected in (("visual.proj", 2e-5), ("text_projection", 3e-6), ("logit_scale", 1e-5)):
        assert np.median(np.abs(update_of(step, name))) == pytest.approx(0.75 * expected, rel=0.05)


def proportional_rate(row: Row, train: Trainings) -> None:
    settings = row.settings
    assert settings["optimizer"]["learning_rate"] / 1e-5 == settings["data"]["batch_size"] / (8 * 128)
    rate(1.25e-6)(row, train)


def unbounded(row: Row, train: Trainings) -> None:
    gradient_clip(None)(row, train)
    for start in (500.0, 0.001):
        settings = {"loss": {"initial_logit_scale": start}, "optimizer": {"learning_rate": 1e-7}}
        after = [exp(train(settings, given).steps[0].after["weights/logit_scale"]) for given in (row.settings, {})]
        assert after == [pytest.approx(start, rel=1e-4), pytest.approx(min(max(start, 0.01), 100), rel=1e-5)]


def pinned(row: Row, train: Trainings) -> None:
    """The scale stays, whatever the rate; without it, it moves."""
    settings = {"optimizer": {"learning_rate": 0.5}}
    scales = [exp(train(settings, given).steps[-1].after["weights/logit_scale"]) for given in (row.settings, {})]
    assert scales[0] == pytest.approx(1 / 0.07, rel=1e-5)
    assert abs(scales[1] - 1 / 0.07) > 1


def sigmoid(row: Row, train: Trainings) -> None:
    assert "logit_bias: true" in row.codes
    step = train({"model": {"architecture": TINY | {"logit_bias": True}}}, row.settings).steps[0]
    images, texts = features(step.before, step.pixels, step.tokens)
    expected = similarity.sigmoid_loss(similarity.logits(images, texts, 10.0), -10.0)[0]
    assert step.result.loss == pytest.approx(expected, rel=1e-5)
    assert step.after["weights/logit_bias"] != step.before["weights/logit_bias"]


def nearest_own_text(row: Row, train: Trainings) -> None:
    run = train({"data": {"batch_size": 16}})
    for step, line in zip(run.steps, run.lines()):
        images, texts = features(step.before, step.pixels, step.tokens)
        nearer = (images @ texts.T > np.diag(images @ texts.T)[:, None]).sum(axis=1)
        assert (line["top1"], line["top5"]) == (np.mean(nearer < 1), np.mean(nearer < 5))


def large_batch(row: Row, train: Trainings) -> None:
    """A thousandth of the batch, in parts of a thousandth of theirs: the same loss as in one piece."""
    settings = row.settings
    assert (settings["data"]["batch_size"], settings["training"]["micro_batch_size"]) == (32768, 1024)
    parts, whole = (train({"data": {"batch_size": 16}, "training": part}) for part in ({"micro_batch_size": 1}, {}))
    assert parts.recipe.training.micro_batch_size == 1
    assert parts.column("loss") == pytest.approx(whole.column("loss"), rel=1e-5)


def both_every(count: int) -> Check:
    def check(row: Row, train: Trainings) -> None:
        every(count)(row, train)
        every(count, "evaluation")(row, train)

    return check


def all_of(*checks: Check) -> Check:
    def check(row: Row, train: Trainings) -> None:
        for each in checks:
            each(row, train)

    return check


def overridden(row: Row, train: Trainings) -> None:
    run = train(options="-o data.batch_size=8 --override 'optimizer.betas=[0.5, 0.6]'")
    assert [len(step.pixels) for step in run.steps] == [8, 8]
    assert run.recipe.optimizer.betas == (0.5, 0.6)


def config(row: Row, train: Trainings) -> None:
    folder = train().folder
    run = train.command(f"train --config {folder / 'recipe.yaml'} --output {train.folder() / 'again'}")
    assert run.column("loss") == train().column("loss")


def one_process(row: Row, train: Trainings) -> None:
    assert train(options=row.codes[0]).column("loss") == train().column("loss")


def folder_of(train: Trainings, name: str, pictures: list[Image.Image | bytes], text: str) -> dict[str, Any]:
    """Data of pictures, or of what stands in their files, that all have the same text."""
    folder = train.data / name
    folder.mkdir(exist_ok=True)
    for number, shown in enumerate(pictures):
        if isinstance(shown, bytes):
            (folder / f"{number}.jpg").write_bytes(shown)
        else:
            shown.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    return {"data": {"source": "paired", "folder": str(folder), "batch_size": 2}}


def truncated(row: Row, train: Trainings) -> None:
    """A caption longer than the context keeps its end."""
    none(row, train)
    text = "long " * 20
    run = train(folder_of(train, "long", [picture(0), picture(1)], text))
    expected = [TOKENIZER.start, *TOKENIZER.encode(text)[:30], TOKENIZER.end]
    assert run.steps[0].tokens.tolist() == [expected, expected]


def each_once(row: Row, train: Trainings) -> None:
    """Whole batches in an order that differs from epoch to epoch."""
    none(row, train)
    data = {"source": "paired", "folder": "DIR", "batch_size": 64}
    run = train({"data": data, "training": {"epochs": 2}})
    orders = [[number for step in part for number, _ in step.pairs] for part in (run.steps[:4], run.steps[4:])]
    assert [sorted(order) for order in orders] == [list(range(PICTURES))] * 2
    assert orders[0] != orders[1]


def caption_by_epoch(row: Row, train: Trainings) -> None:
    none(row, train)
    data = folder_of(train, "lines", [picture(0), picture(1)], "a\n\nb\nc\n")
    run = train(data, {"training": {"epochs": 12}})
    assert {caption for step in run.steps for _, caption in step.pairs} == {"a", "b", "c"}


def normalised(row: Row, train: Trainings) -> None:
    """The middle square with the official mean and deviation, also of a picture without colour."""
    none(row, train)
    grey = ramp(48).convert("L")
    pixels = train(folder_of(train, "grey", [grey, grey], "grey")).steps[0].pixels[0]
    middle = np.asarray(grey)[:, 8:40] / 255
    expected = (middle - np.reshape(MEAN, (3, 1, 1))) / np.reshape(DEVIATION, (3, 1, 1))
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


def damaged(row: Row, train: Trainings) -> None:
    """A picture that is cut short is listed and passed over."""
    none(row, train)
    stored = [(train.data / "pictures" / f"{number}.jpg").read_bytes() for number in range(4)]
    stored[2] = stored[2][: len(stored[2]) // 2]
    data = folder_of(train, "damaged", stored, "n")
    data["data"]["fault_share"] = 0.5
    run = train(data, {"training": {"epochs": 1}})
    numbers = [number for step in run.steps for number, _ in step.pairs]
    assert (len(numbers), set(numbers)) == (4, {0, 1, 3})
    assert "2.jpg cannot be decoded whole" in run.lines("faults.jsonl")[0]["fault"]


def initial(row: Row, train: Trainings) -> None:
    none(row, train)
    before = train().steps[0].before
    found = before["weights/transformer.resblocks.0.mlp.c_proj.weight"].std()
    assert found == pytest.approx(64**-0.5 * 2**-0.5, rel=0.05)


def whole_contrast(row: Row, train: Trainings) -> None:
    """The loss of a step is that of the whole batch."""
    none(row, train)
    step = train({"data": {"batch_size": 16}}).steps[0]
    assert step.result.loss == pytest.approx(contrastive_loss(step), rel=1e-5)


# Commands


def tiny(run: Path, **data: object) -> str:
    """What makes a command of the document small; ``section__key`` stands for ``section.key``."""
    architecture = json.dumps(TINY)
    words = ["-o", f"model.architecture={architecture}", "-o", "data.workers=0", "--steps", "2", "--output", str(run)]
    for key, value in data.items():
        words += [
            "-o",
            f"{key.replace('__', '.')}={value if isinstance(value, (str, Path, int)) else json.dumps(value)}",
        ]
    return shlex.join(words)


def cc3m(train: Trainings) -> dict[str, Any]:
    file = str(train.data / "listed" / "cc.csv")
    return {"data__file": file, "evaluation__retrieval": {"source": "table", "file": file}}


def in_this_process(row: Row, train: Trainings, **data: object) -> Run:
    words = row.command[row.command.index("clip ") + len("clip ") :]
    if words not in train.commands:
        train.commands[words] = train.command(f"{words} {tiny(train.folder() / 'run', **data)}")
    return train.commands[words]


def as_written(row: Row, train: Trainings, command: str, **data: object) -> Run:
    """In a shell, with the framework's launcher."""
    run = train.folder() / "run"
    script = train.data / "bin" / "clip"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!{sys.executable}\nfrom clip.command import main\n\nmain()\n")
    script.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        # What tests need on a machine of few cores, also as root; a user's MPI is set up by whoever set up the machine.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PATH": os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    words = f"{command} {tiny(run, **data)}"
    ended = subprocess.run(["bash", "-c", words], cwd=train.data, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return Run(run, ended.stderr)


def assert_cc3m(run: Run) -> None:
    """The recipe's numbers, in all that the run left."""
    assert run.column("learning_rate") == [pytest.approx(5e-4 * step / 10_000) for step in (1, 2)]
    assert run.recipe.data.batch_size == 128
    assert run.lines("evaluation.jsonl")[0]["validation_loss"] > 0


def nnabla_finetune(row: Row, train: Trainings) -> None:
    run = as_written(row, train, row.command, **cc3m(train))
    assert_cc3m(run)
    assert run.column("logit_scale")[0] == pytest.approx(20.0)  # of the file
    words = "train -c configs/clip/cc3m-finetune.yaml --load ViT-B-32.h5"
    alone = train.command(f"{words} {tiny(train.folder() / 'run', **cc3m(train))}")
    assert run.column("loss") == pytest.approx(alone.column("loss"), rel=1e-4)


def nnabla_scratch(row: Row, train: Trainings) -> None:
    run = in_this_process(row, train, **cc3m(train))
    assert_cc3m(run)
    assert run.column("logit_scale")[0] == pytest.approx(1 / 0.07)
    np.testing.assert_array_equal(
        run.steps[0].before["weights/visual.proj"], initialize(Architecture.from_dict(TINY), 412)["visual.proj"]
    )


def passl_one_gpu(row: Row, train: Trainings) -> None:
    run = in_this_process(row, train, data__folder=train.data / "pictures")
    assert [len(step.pixels) for step in run.steps] == [128, 128]
    total = 10 * (PICTURES // 128)
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1.25e-6, step, total + 1)) for step in (1, 2)]
    assert run.steps[0].result.loss == pytest.approx(2 * contrastive_loss(run.steps[0]), rel=1e-4)


def passl_several_gpus(row: Row, train: Trainings) -> None:
    """With Paddle's launcher, the losses of one process."""
    data = {"data__folder": train.data / "pictures", "data__batch_size": PICTURES}
    run = as_written(row, train, row.command, **data)
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1e-5, step, 11)) for step in (1, 2)]
    alone = train.command(f"train -c configs/clip/vit-b-32.yaml {tiny(train.folder() / 'run', **data)}")
    assert run.column("loss") == pytest.approx(alone.column("loss"), rel=1e-4)


def passl_finetune(row: Row, train: Trainings) -> None:
    launches(*PADDLE_LAUNCHER)(row, train)
    words = row.command.replace("--num-gpus 8", "").removeprefix("clip ")
    small = tiny(train.folder() / "run", data__folder=train.data / "pictures", data__batch_size=PICTURES)
    run = train.command(f"{words} {small}")
    assert run.column("logit_scale")[0] == pytest.approx(20.0)  # of the file
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1e-5, step, 11)) for step in (1, 2)]


def launches(*launcher: str) -> Check:
    """The framework's own launcher is called with the same command but for ``--num-gpus``."""

    def check(row: Row, train: Trainings) -> None:
        called: list[list[str]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", shlex.split(row.command))
            patch.setattr(train_command, "run_until_stopped", lambda words, environment: called.append(words) or 0)
            patch.setattr(Data, "open", lambda settings, seed: ())  # that of the row is not here
            patch.setattr(loop, "check_start", lambda *arguments: None)
            train.command(row.command.removeprefix("clip "))
        (words,) = called
        assert words[: 1 + len(launcher)] == [sys.executable, *launcher]
        own = shlex.split(row.command)
        at = own.index("--num-gpus")
        assert words[2 + len(launcher) :] == own[1:at] + own[at + 2 :]

    return check


def several_gpus(row: Row, train: Trainings) -> None:
    command = f"`clip train -c configs/clip/laion-coco.yaml {row.codes[0].replace('N', '8')}`"
    launches(*TORCH_LAUNCHER)(row._replace(here=command), train)


def low_resource(row: Row, train: Trainings) -> None:
    data = {"data__file": "WKIT_local.csv", "data__images": train.data / "pictures"}
    run = in_this_process(row, train, **data)
    assert [len(step.pixels) for step in run.steps] == [128, 128]
    assert run.column("learning_rate") == [pytest.approx(5e-4 * step / 2000) for step in (1, 2)]
    assert all(caption == f"n{number}" for step in run.steps for number, caption in step.pairs)
    optimizer = run.recipe.optimizer
    assert (optimizer.weight_decay, optimizer.decay, optimizer.betas) == (0.2, "all", (0.9, 0.98))


def simple_clip(row: Row, train: Trainings) -> None:
    data: dict[str, object] = {"evaluation__zero_shot": {"folder": str(train.data / "classes")}}
    if "yfcc7m" in row.theirs:
        data["data__shards"], pictures = f"{train.data}/{{00000..00001}}.tar", PICTURES
    else:
        sources = ("m3it", "m3it", "saved")
        data["data__parts"] = [{"source": source, "folder": str(train.data / source)} for source in sources]
        pictures = 3 * PICTURES
    run = in_this_process(row, train, **data)
    assert [len(step.pixels) for step in run.steps] == [256, 256]
    total = 2 * (pictures // 256)
    expected = [half_cosine(1e-4, step, total + 1, 1e-8) for step in (1, 2)]
    assert run.column("learning_rate") == [pytest.approx(rate) for rate in expected]
    assert run.steps[0].result.logit_scale == pytest.approx(5.0, rel=1e-5)
    assert run.lines("evaluation.jsonl")[0]["zero_shot_top5"] == 1.0
    assert all(caption == f"n{number}" for step in run.steps for number, caption in step.pairs)


TORCH_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "8")
PADDLE_LAUNCHER = ("-m", "paddle.distributed.launch", "--nproc_per_node", "8")


def pictures_elsewhere(row: Row, train: Trainings) -> None:
    """Paths of a table that stands elsewhere start at the folder that the row's key names."""
    data = {"source": "table", "file": str(train.data / "elsewhere.csv")}
    (train.data / "elsewhere.csv").write_text("filepath\ttitle\n" + "".join(f"{n}.jpg\tn{n}\n" for n in range(4)))
    with pytest.raises(ClipError, match="could not be used"):
        train({"data": data})
    run = train({"data": data}, row.settings)
    assert sorted(run.steps[0].pairs) == [(number, f"n{number}") for number in range(4)]


def tiny_resnet(row: Row, train: Trainings) -> None:
    image = {"kind": "resnet", "resolution": 32, "width": 8, "blocks": [1, 1, 1, 1], "heads": 4}
    run = train({"model": {"architecture": TINY | {"image": image}}})
    step = run.steps[0]
    assert np.abs(update_of(step, "visual.conv1.weight")).max() == pytest.approx(step.rate, rel=0.1)


def wrapper(row: Row, train: Trainings) -> None:
    module, _, name = row.codes[0].rpartition(".")
    image, text = TINY["image"], TINY["text"]
    model = getattr(importlib.import_module(module), name)(
        architecture={
            "embed_dim": TINY["embed_dim"],
            **{f"vision_{key}": image[key] for key in ("layers", "width")},
            **{"image_resolution": image["resolution"], "vision_patch_size": image["patch"]},
            **{"context_length": text["context_length"], "vocab_size": text["vocabulary_size"]},
            **{f"transformer_{key}": text[key] for key in ("width", "heads", "layers")},
        },
        head={"name": "CLIPHead"},
    )
    given = train().steps[0]
    losses = model(paddle.to_tensor(given.pixels), paddle.to_tensor(given.tokens), mode="train")
    losses["loss"].backward()
    before = {f"weights/{key}": array for key, array in model.model.export().items()}
    step = Step(given.pixels, given.tokens, 0.0, None, before, {})
    assert float(losses["loss"]) == pytest.approx(2 * contrastive_loss(step), rel=1e-5)
    assert float(losses["img_loss"] + losses["text_loss"]) == pytest.approx(float(losses["loss"]), rel=1e-6)
    assert float(abs(model.model.visual.proj.grad).max()) > 1e-5


def four_epochs(row: Row, train: Trainings) -> None:
    run = train(*row.fragments, options="--steps 1")
    assert run.column("learning_rate") == [pytest.approx(half_cosine(4e-5, 1, 4 * 4 + 1))]


def evaluated_every_step(row: Row, train: Trainings) -> None:
    retrieval = {"source": "paired", "folder": "DIR"}
    run = train(STEPS_4, {"evaluation": {"retrieval": retrieval}}, row.settings, number=2)
    assert [line["step"] for line in run.lines("evaluation.jsonl")] == [2, 4]


def sharded(row: Row, train: Trainings) -> None:
    """On two processes the same losses as on one that is whole."""
    assert row.settings == {"training": {"fully_sharded": True}}
    whole = train()
    options = " ".join(code for code in row.codes if code.startswith("--")).replace("N", "2")
    command = f"clip train -c {whole.folder / 'recipe.yaml'} {options} -o training.fully_sharded=true"
    run = as_written(row, train, command)
    assert run.recipe.training.fully_sharded
    assert run.column("loss") == pytest.approx(whole.column("loss"), rel=1e-4)


# The rows

ROWS = read_document()
READS_TABLE = read_from("table")

CHECKS: dict[str, dict[str, Check]] = {
    "NNabla-CLIP": {
        "mpirun -n 2 python train.py -ft -b 64 -ag -ep 30 -wi 10000 ...": nnabla_finetune,
        "the same without -ft": nnabla_scratch,
        "on one GPU, python train.py -b 128 ... without -ag": nnabla_scratch,
        "--context cudnn, -c (unused there)": none,
        "--type-config half, -t": loss_scales,
        "--batch-size 64, -b, of each of 2 processes": batch(128),
        "--image-size 224": architecture(MODELS["ViT-B/32"].architecture),
        "--monitor-path DIR, -m": written_to_output,
        "--epochs 30, -ep": epochs(30),
        "--max-iter N, -i": steps,
        "--warmup-iter 10000, -wi": warm_up(10_000),
        "--device-id, -d (unused there)": none,
        "--model-save-interval 5000 (unused there)": every(5000),
        "--model-save-path DIR, -o (unused there)": written_to_output,
        "--model-load-path FILE with --finetuning, -ft": loaded,
        "--solver AdamW": decay(0.2, of_all=False),
        "--solver Adam": adam,
        "--lr 5e-4": rate(5e-4),
        "--beta1 0.9, --beta2 0.98": moments(0.9, 0.98),
        "--eps 1e-6": epsilon(1e-6),
        "--wd 1e-4": decay(1e-4 / 5e-4, of_all=False),
        "--seed 412": seed(412),
        "--context_length 77": architecture(MODELS["ViT-B/32"].architecture),
        "--train-txt-path FILE": READS_TABLE,
        "pictures below /conceptual_captions/cc_3m/, fixed there": pictures_elsewhere,
        "columns filepath and title, separated by tabs": READS_TABLE,
        "--val-txt-path FILE, mean loss after each epoch": evaluated,
        "--aggregate, -ag": none,
        "-ag gives the scale n times its gradient": none,
        "mean of the two cross-entropies": reduction(1),
        "schedule: lr * (i + 1) / W, then half a cosine to 0": nnabla_schedule,
        "no decay of norms, biases, vectors and the scale": decay(0.2, of_all=False),
        "no clipping of gradients, no bounds of the scale": unbounded,
        "preprocess without augmentation": cropped("centre"),
        "tokenize(truncate=True)": truncated,
        "a row without caption ends the run": faults,
        "permutation of each epoch by --seed, slices that may overlap": each_once,
        "param_epoch_*.h5, param_iter_*.h5": converted(".h5"),
        "solver state is not saved, no resume": resumed,
        "monitors: time, losses, scale, evaluation loss": monitored,
    },
    "PASSL": {
        "python tools/train.py -c configs/clip/vit-b-32.yaml": passl_one_gpu,
        "... --num-gpus 8": launches(*PADDLE_LAUNCHER),
        "... --num-gpus 8 --load ViT-B-32.pdparams": passl_finetune,
        "python -m paddle.distributed.launch --gpus=0,1 tools/train.py -c ... (2022)": passl_several_gpus,
        "python tools/extract_weight.py FILE --output FILE.pdparams": converted(".pdparams"),
        "-c, --config-file FILE": config,
        "--num-gpus 1": one_process,
        "-o key.sub.idx=value, --override (2022), trailing opts": overridden,
        "--no-cuda": none,
        "--resume FILE": resumed,
        "--load FILE, --pretrained FILE": loaded,
        "--export (2022)": none,
        "--val-interval 1, of epochs; val() does not run for CLIP": evaluated_every_step,
        "--evaluate-only": none,
        "--output_dir DIR, output_dir": written_to_output,
        "--source_path, --reference_dir, --model_path": none,
        "ImageFile.LOAD_TRUNCATED_IMAGES = True": damaged,
        "epochs: 10": epochs(10),
        "total_iters: N": steps,
        "seed: 0 (2022), which leaves it unset": seed(0),
        "device: gpu (2022)": none,
        "timestamp": none,
        "model.architecture: {name: CLIP, embed_dim: 512, ...}": architecture(MODELS["ViT-B/32"].architecture),
        "qkv_bias, pre_norm, proj, patch_bias": none,
        "vision_layers: [3, 4, 6, 3], a ResNet, which does not run there": all_of(
            architecture(MODELS["RN50"].architecture), tiny_resnet
        ),
        "head: {name: CLIPHead}, which adds the two losses": reduction(2),
        'CLIPWrapper(architecture, head)(image, text, mode="train")': wrapper,
        "contrast within the batch of each GPU": whole_contrast,
        "initial weights of the text tower, 1.06 wide by an oversight": initial,
        "dataset: {name: TextImageDataset, dataroot: DIR}": read_from("paired"),
        "dataset.shuffle: False, what takes the place of a bad sample": damaged,
        "a random line of the .txt": caption_by_epoch,
        "sampler.batch_size: 128, of each of 8 GPUs": batch(1024),
        "sampler: {shuffle: True, drop_last: True}": each_once,
        "num_workers: 8": workers(8),
        "use_shared_memory: True (2022)": none,
        "ToRGB, ToTensor, Normalize with CLIP's numbers": normalised,
        "Normalize with ImageNet's numbers (2022)": none,
        "RandomResizedCrop(224, scale, ratio), bilinear": cropped("resized"),
        "tokenize refuses long captions": truncated,
        "CosineAnnealingDecay, T_max of all epochs": paddle_cosine,
        "solver: {lr, visual_lr, textual_lr}, separete: True": tower_rates,
        "new_lr = old_lr * new_ngpus / old_ngpus": proportional_rate,
        "LinearWarmup of 5 epochs to 1e-4, cosine to eta_min: 1e-6 (2022)": paddle_warm_up,
        "optimizer: {name: AdamW, beta1: 0.9, beta2: 0.98, epsilon: 1e-8}": all_of(moments(0.9, 0.98), epsilon(1e-8)),
        "weight_decay: 0.0005, of every parameter": decay(5e-4, of_all=True),
        "exclude_from_weight_decay": decay(0.2, of_all=False),
        "grad_clip: {name: global_norm, value: 1.0}": gradient_clip(1.0),
        "grad_clip: {name: clip_norm}, of each tensor": none,
        "layer_decay": none,
        "clamp of the log scale to [-4.6, 4.6]": scale_bounds(0.01005, 99.484),
        "use_amp: True, AMP: {auto_cast, scale_loss}": loss_scales,
        "hybrid, sharding": sharded,
        "lr_config, CLIPOptimizerHook, OptimizerHook": none,
        "checkpoint: {interval: 1}, each epoch": kept(2),
        "log_config: {name: LogHook, interval: 10}, timer_config": none,
        "VisualDL": tensorboard,
        "custom_config, hooks of one's own": none,
    },
    "Low-resource CLIP": {
        'python train.py -device="gpu" -image_encoder="B/32@224" -text_encoder="B" ...': low_resource,
        "python parallel_train.py, three models on three GPUs": none,
        "python data.py -task=1 and 2, the list and the download of WKIT": none,
        "python data.py -task=4, which writes WKIT_local.csv": READS_TABLE,
        "python data.py -task=5, 6, 7: CSV of query, image": READS_TABLE,
        "python data.py -task=3.5 and 3, -vocab_size, -cap, -start": none,
        "-fine_tuning (not in the code)": loaded,
        "-device gpu": none,
        "-load_last_checkpoint True": resumed,
        "-warmup 2000": warm_up(2000),
        "-use_checkpoint True, of the text blocks": recomputed,
        "-image_encoder B/32@224, -text_encoder B": architecture(MODELS["ViT-B/32"].architecture),
        "-max_temperature 100.0; the factor is kept from 0.01 to 100": scale_bounds(0.01, 100),
        "the temperature is not trained": pinned,
        "-batch_size 128": batch(128),
        "-epochs 5": epochs(5),
        "-vocab_size 20000": none,
        "-max_length 32, -text_dim_out 512, -image_dim_out 768, -embedding_dim 512": architecture(
            Architecture(
                512, VisionTransformer(224, 32, 768, 12, 12), TextTransformer(32, 49408, 512, 12, 8)
            ).with_activation("gelu")
        ),
        "-decay 0.2, of every parameter": decay(0.2, of_all=True),
        "-beta_1 0.9, -beta_2 0.98": moments(0.9, 0.98),
        "-epsilon 1e-6": epsilon(1e-6),
        "-lr 5e-4": rate(5e-4),
        "parallel_train.py -epochs 4 -lr 4e-5 -clip_embedding_dim 512": four_epochs,
        "schedule: linear up, linear down to 0": linear_descent,
        "autocast and GradScaler": loss_scales,
        "no clipping of gradients": gradient_clip(None),
        "mean of the two cross-entropies, scale from 14.2857": reduction(1, 14.2857),
        "resize of the short side, random crop": cropped("random"),
        "pixels from 0 to 255, not normalised": normalised,
        "an unreadable picture becomes item 1 or 2": damaged,
        "[SOS] ids [EOS] of at most 32 tokens": truncated,
        "a checkpoint each epoch": kept(2),
        "TensorBoard: loss and learning rate": tensorboard,
        "imagenet.py, cifar10.py, caltech101.py with -clip, -epoch": evaluated,
        "coco.py, sanity_test.py, bias_test.ipynb": evaluated,
    },
    "Mixer CLIP": {
        "training on 8 A100 GPUs": launches(*TORCH_LAUNCHER),
        "--epochs 32": epochs(32),
        '--image-path "", --verbose False (unused there)': none,
        "--run-name NAME": written_to_output,
        "--save-to-blob False": none,
        "useTransformer = True, in the code": architecture(MODELS["ViT-B/32"].architecture),
        "useTransformer = False, the Mixer": none,
        "batch of 32768, of all GPUs": large_batch,
        "64 workers": workers(64),
        "fp16": loss_scales,
        "gradient checkpointing in 6 segments, off": recomputed,
        "SyncBatchNorm": none,
        "AdamW, betas 0.9 and 0.98, epsilon 1e-6": all_of(moments(0.9, 0.98), epsilon(1e-6)),
        "decay 0.2, not of norms, biases, vectors and the scale": decay(0.2, of_all=False),
        "rate up to 5e-4, down to 5e-6": final_rate(5e-4, 5e-6),
        "2 steps of warm-up from 5e-6 (earlier 2000)": warm_up(2),
        "warm restarts after all epochs": none,
        "own features against all, detached: keys get no gradient": none,
        "mean of the two cross-entropies": reduction(1),
        "log scale kept in [0, ln 100], before the update": scale_bounds(1, 100),
        "gradient norm clipped to 20 (earlier 1)": gradient_clip(20.0),
        "every 400 steps: state and validation": both_every(400),
        "restart that passes over the batches done, epoch.json": resumed,
        "manual_seed(0), after the model is made": seed(0),
        "shards of img2dataset, captions from parquet by caption": read_from("webdataset"),
        "blobs, cloud credentials": none,
        "Resize, CenterCrop, CLIP's mean and deviation, no augmentation": cropped("centre"),
        "tokenize(truncate=True)": truncated,
        "ImageNetV2 with 80 templates": evaluated,
        "STS, SST-2, MNIST": none,
    },
    "simple-clip": {
        "train_clip --dataset_name yfcc7m --fp16_precision --batch_size 256 ...": simple_clip,
        "train_clip --dataset_name combined --fp16_precision --batch_size 256 ...": simple_clip,
        "--dataset_path DIR": none,
        "--dataset_name textcap": read_from("m3it textcaps"),
        "--dataset_name coco": read_from("m3it coco"),
        "--dataset_name sbucaptions": read_from("saved sbu"),
        "--dataset_name combined": read_from("combined"),
        "--dataset_name yfcc7m": read_from("webdataset"),
        "--image_encoder_name resnet50": architecture(MODELS["RN50"].architecture),
        "--text_encoder_name distilbert-base-uncased": none,
        "two-layer projections, pretrained towers": none,
        "-save_model_dir DIR": written_to_output,
        "--num_epochs 2": epochs(2),
        "--image_size 224": architecture(MODELS["RN50"].architecture),
        "-b, --batch_size 256": batch(256),
        "-lr, --learning_rate 1e-4": rate(1e-4),
        "-wd, --weight_decay 0.0, with Adam, of every parameter": decay(0.0, of_all=True),
        "Adam's own betas and epsilon": all_of(moments(0.9, 0.999), epsilon(1e-8)),
        "--fp16_precision": loss_scales,
        "--imagenet_eval": evaluated,
        "--imagenet_eval_steps 1000": every(1000, "evaluation"),
        "--log_every_n_steps 50": none,
        "in-batch top-1 and top-5, both ways": nearest_own_text,
        "clip_model.pth, overwritten, weights alone": every(50),
        "validation on COCO every 500 steps": evaluated,
        "--ckpt_path FILE": loaded_or_resumed,
        "--use_siglip": sigmoid,
        "contrastive loss from a scale of 5, its bias untrained": reduction(1, 5.0),
        "no clipping, no bounds of the scale": unbounded,
        "seed 42": seed(42),
        "cosine over epochs * steps + steps // 4 to 1e-8, no warm-up": simple_cosine,
        "resize that squashes, no mean and deviation, no augmentation": cropped("centre"),
        "captions of at most 100 tokens": truncated,
        "one caption by chance for each picture and step": caption_by_epoch,
        "shards shuffled, then 1000 samples at a time": none,
        "2 workers": workers_make_the_same_batches,
        "epoch of 7,329,280 // batch steps, fixed": none,
        "one device": several_gpus,
    },
}


WITHOUT_COUNTERPART = {none, truncated, each_once, damaged, whole_contrast, initial, caption_by_epoch, normalised}


def test_every_row_has_a_check_and_every_check_a_row():
    assert [(row.seed, row.theirs) for row in ROWS] == [
        (seed, theirs) for seed, checks in CHECKS.items() for theirs in checks
    ]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=f"{row.seed}: {row.theirs}",
            marks=[pytest.mark.needs(name) for name in re.findall(r"--backend (\w+)", row.here)],
        )
        for row in ROWS
    ],
)
def test_row(row, train):
    assert row.here.startswith("none: ") == (CHECKS[row.seed][row.theirs] in WITHOUT_COUNTERPART)
    CHECKS[row.seed][row.theirs](row, train)
