"""Checks that rows of several projects share.

A check takes the row and `Trainings`, and asserts that what the row names here has the effect of what it names there. A
function with other arguments makes the check for these values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from math import exp
from typing import Any

import numpy as np
import pytest
from PIL import Image

import converters
from clip_core import similarity
from clip_core.architecture import Architecture
from clip_core.data import loader
from clip_core.initialize import initialize
from clip_core.naming import parameters
from clip_core.pixels import DEVIATION, MEAN
from clip_core.preprocess import preprocess
from clip_core.similarity import normalize
from tests.migration.datasets import PICTURES, TINY, TOKENIZER, picture, ramp
from tests.migration.document import Check, Row
from tests.migration.trainings import Trainings, contrastive_loss, features, half_cosine, merged, update_of

STEPS_4 = {"training": {"steps": 4}}


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


def moments(one: float, two: float) -> Check:
    """After one step (1 - beta_1) of the gradient and (1 - beta_2) of its square are there."""

    def check(row: Row, train: Trainings) -> None:
        state = train({"optimizer": {"weight_decay": 0.0}}, row.settings).steps[0].after
        gradient = state["first_moment/visual.proj"].astype(np.float64) / (1 - one)
        np.testing.assert_allclose(state["second_moment/visual.proj"], (1 - two) * gradient**2, rtol=1e-4, atol=1e-14)
        assert np.abs(gradient).max() > 1e-4

    return check


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
            used.append(run.recipe.data.source.kind)
        assert " ".join(used) == kind

    return check


def sigmoid(row: Row, train: Trainings) -> None:
    assert "logit_bias: true" in row.codes
    step = train({"model": {"architecture": TINY | {"logit_bias": True}}}, row.settings).steps[0]
    images, texts = features(step.before, step.pixels, step.tokens)
    expected = similarity.sigmoid_loss(similarity.logits(images, texts, 10.0), -10.0)[0]
    assert step.result.loss == pytest.approx(expected, rel=1e-5)
    assert step.after["weights/logit_bias"] != step.before["weights/logit_bias"]


def loss_scales(row: Row, train: Trainings) -> None:
    """The products are rounded, and the gradients computed at a large factor."""
    steps, exact = (train(settings).steps for settings in (row.settings, {}))
    assert all(step.result.loss_scale > 1 for step in steps)
    assert steps[0].result.loss != exact[0].result.loss
    assert steps[0].result.loss == pytest.approx(exact[0].result.loss, rel=1e-2)


def recomputed(row: Row, train: Trainings) -> None:
    """Blocks run once more in the backward pass, with the same result."""
    from backends.torch import layers

    def blocks_run(settings: dict[str, Any]) -> tuple[int, list[float]]:
        counted: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            own = layers.ResidualAttentionBlock.forward
            patch.setattr(
                layers.ResidualAttentionBlock, "forward", lambda self, *rest: counted.append(1) or own(self, *rest)
            )
            run = train(settings, cached=False)
        return len(counted), run.column("loss")

    (often, losses), (once, expected) = blocks_run(row.settings), blocks_run({})
    assert (once, often) == (4, 8)  # two steps, two towers, one block each
    assert losses == expected


def architecture(expected: Architecture) -> Check:
    def check(row: Row, train: Trainings) -> None:
        assert train.recipe(row.settings).model.build() == expected

    return check


def workers(count: int) -> Check:
    """So many processes are asked for; they are not started here."""

    def check(row: Row, train: Trainings) -> None:
        asked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            own = loader.in_order
            patch.setattr(
                loader,
                "in_order",
                lambda work, tasks, workers, died: asked.append(workers) or own(work, tasks, 0, died),
            )
            run = train(row.settings, cached=False)
        assert asked == [count]
        assert len(run.steps) == 2

    return check


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


def half_a_cosine_one_step_on(theirs: Callable[[int], float], ours: list[float], first: int) -> None:
    """Each rate lies between theirs of the same step and theirs of the next; steps are counted from 0."""
    for place, value in enumerate(ours[first:], first):
        assert theirs(place) * (1 + 1e-9) >= value >= theirs(place + 1) * (1 - 1e-9)


def unbounded(row: Row, train: Trainings) -> None:
    gradient_clip(None)(row, train)
    for start in (500.0, 0.001):
        settings = {"loss": {"initial_logit_scale": start}, "optimizer": {"learning_rate": 1e-7}}
        after = [exp(train(settings, given).steps[0].after["weights/logit_scale"]) for given in (row.settings, {})]
        assert after == [pytest.approx(start, rel=1e-4), pytest.approx(min(max(start, 0.01), 100), rel=1e-5)]


def all_of(*checks: Check) -> Check:
    def check(row: Row, train: Trainings) -> None:
        for each in checks:
            each(row, train)

    return check


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
    text = "long " * 20
    run = train(folder_of(train, "long", [picture(0), picture(1)], text))
    expected = [TOKENIZER.start, *TOKENIZER.encode(text)[:30], TOKENIZER.end]
    assert run.steps[0].tokens.tolist() == [expected, expected]


def each_once(row: Row, train: Trainings) -> None:
    """Whole batches in an order that differs from epoch to epoch."""
    data = {"source": "paired", "folder": "DIR", "batch_size": 64}
    run = train({"data": data, "training": {"epochs": 2}})
    orders = [[number for step in part for number, _ in step.pairs] for part in (run.steps[:4], run.steps[4:])]
    assert [sorted(order) for order in orders] == [list(range(PICTURES))] * 2
    assert orders[0] != orders[1]


def caption_by_epoch(row: Row, train: Trainings) -> None:
    data = folder_of(train, "lines", [picture(0), picture(1)], "a\n\nb\nc\n")
    run = train(data, {"training": {"epochs": 12}})
    assert {caption for step in run.steps for _, caption in step.pairs} == {"a", "b", "c"}


def normalised(row: Row, train: Trainings) -> None:
    """The middle square with the official mean and deviation, also of a picture without colour."""
    grey = ramp(48).convert("L")
    pixels = train(folder_of(train, "grey", [grey, grey], "grey")).steps[0].pixels[0]
    middle = np.asarray(grey)[:, 8:40] / 255
    expected = (middle - np.reshape(MEAN, (3, 1, 1))) / np.reshape(DEVIATION, (3, 1, 1))
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


def damaged(row: Row, train: Trainings) -> None:
    """A picture that is cut short is listed and passed over."""
    stored = [(train.data / "pictures" / f"{number}.jpg").read_bytes() for number in range(4)]
    stored[2] = stored[2][: len(stored[2]) // 2]
    data = folder_of(train, "damaged", stored, "n")
    data["data"]["fault_share"] = 0.5
    run = train(data, {"training": {"epochs": 1}})
    numbers = [number for step in run.steps for number, _ in step.pairs]
    assert (len(numbers), set(numbers)) == (4, {0, 1, 3})
    assert "2.jpg cannot be decoded whole" in run.lines("faults.jsonl")[0]["fault"]


READS_TABLE = read_from("table")
