"""What each command, option and key of Mixer CLIP becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

import pytest

from clip_core.models import ARCHITECTURES, MODELS
from tests.migration.checks import (
    all_of,
    architecture,
    cropped,
    decay,
    epochs,
    epsilon,
    evaluated,
    every,
    gradient_clip,
    loss_scales,
    moments,
    read_from,
    recomputed,
    reduction,
    resumed,
    scale_bounds,
    seed,
    truncated,
    warm_up,
    workers,
    written_to_output,
)
from tests.migration.commands import TORCH_LAUNCHER, launches
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import scored
from tests.migration.trainings import Trainings, half_cosine


def final_rate(highest: float, lowest: float) -> Check:
    """The step after the last would have the lowest rate."""

    def check(row: Row, train: Trainings) -> None:
        run = train({"optimizer": {"learning_rate": highest}}, *row.fragments)
        assert run.column("learning_rate") == [pytest.approx(half_cosine(highest, s, 3, lowest)) for s in (1, 2)]

    return check


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


CHECKS: dict[str, Check] = {
    "training on 8 A100 GPUs": launches(*TORCH_LAUNCHER),
    "--epochs 32": epochs(32),
    "--run-name NAME": written_to_output,
    "useTransformer = False, in the code": architecture(ARCHITECTURES["Mixer-B/32"].architecture),
    "useTransformer = True": architecture(MODELS["ViT-B/32"].architecture),
    "batch of 32768, of all GPUs": large_batch,
    "64 workers": workers(64),
    "fp16": loss_scales,
    "gradient checkpointing in 6 segments, off": recomputed,
    "AdamW, betas 0.9 and 0.98, epsilon 1e-6": all_of(moments(0.9, 0.98), epsilon(1e-6)),
    "decay 0.2, not of norms, biases, vectors and the scale": decay(0.2, of_all=False),
    "rate up to 5e-4, down to 5e-6": final_rate(5e-4, 5e-6),
    "2 steps of warm-up from 5e-6 (earlier 2000)": warm_up(2),
    "mean of the two cross-entropies": reduction(1),
    "log scale kept in [0, ln 100], before the update": scale_bounds(1, 100),
    "gradient norm clipped to 20 (earlier 1)": gradient_clip(20.0),
    "every 400 steps: state and validation": both_every(400),
    "restart that passes over the batches done, epoch.json": resumed,
    "manual_seed(0), after the model is made": seed(0),
    "shards of img2dataset, captions from parquet by caption": read_from("webdataset"),
    "Resize, CenterCrop, CLIP's mean and deviation, no augmentation": cropped("centre"),
    "tokenize(truncate=True)": truncated,
    "ImageNetV2 with 80 templates: top-1, top-5": scored,
    "the same every 400 steps": evaluated,
    "STS on SICK and STS12 to STS16: Spearman and Pearson of the cosine": scored,
    "MNIST by words, with the 80 templates of ImageNet": scored,
}


@each_row("Mixer CLIP", CHECKS)
def test_row(row, check, train):
    check(row, train)
