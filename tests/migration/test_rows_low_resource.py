"""What each command, option and key of Low-resource CLIP becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

from math import exp

import pytest

from clip_core.architecture import Architecture
from clip_core.models import MODELS
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from tests.migration.checks import (
    READS_TABLE,
    architecture,
    batch,
    cropped,
    damaged,
    decay,
    epochs,
    epsilon,
    evaluated,
    gradient_clip,
    kept,
    loaded,
    loss_scales,
    moments,
    normalised,
    rate,
    recomputed,
    reduction,
    resumed,
    scale_bounds,
    tensorboard,
    truncated,
    warm_up,
)
from tests.migration.commands import in_this_process
from tests.migration.document import Check, Row, each_row
from tests.migration.trainings import Trainings, half_cosine


def linear_descent(row: Row, train: Trainings) -> None:
    assert train(row.settings).column("learning_rate") == [pytest.approx(half_cosine(5e-4, s, 3)) for s in (1, 2)]


def pinned(row: Row, train: Trainings) -> None:
    """The scale stays, whatever the rate; without it, it moves."""
    settings = {"optimizer": {"learning_rate": 0.5}}
    scales = [exp(train(settings, given).steps[-1].after["weights/logit_scale"]) for given in (row.settings, {})]
    assert scales[0] == pytest.approx(1 / 0.07, rel=1e-5)
    assert abs(scales[1] - 1 / 0.07) > 1


def low_resource(row: Row, train: Trainings) -> None:
    data = {"data__file": "WKIT_local.csv", "data__images": train.data / "pictures"}
    run = in_this_process(row, train, **data)
    assert [len(step.pixels) for step in run.steps] == [128, 128]
    assert run.column("learning_rate") == [pytest.approx(5e-4 * step / 2000) for step in (1, 2)]
    assert all(caption == f"n{number}" for step in run.steps for number, caption in step.pairs)
    optimizer = run.recipe.optimizer
    assert (optimizer.weight_decay, optimizer.decay, optimizer.betas) == (0.2, "all", (0.9, 0.98))


def four_epochs(row: Row, train: Trainings) -> None:
    run = train(*row.fragments, options="--steps 1")
    assert run.column("learning_rate") == [pytest.approx(half_cosine(4e-5, 1, 4 * 4 + 1))]


CHECKS: dict[str, Check] = {
    'python train.py -device="gpu" -image_encoder="B/32@224" -text_encoder="B" ...': low_resource,
    "python data.py -task=4, which writes WKIT_local.csv": READS_TABLE,
    "python data.py -task=5, 6, 7: CSV of query, image": READS_TABLE,
    "-fine_tuning (not in the code)": loaded,
    "-load_last_checkpoint True": resumed,
    "-warmup 2000": warm_up(2000),
    "-use_checkpoint True, of the text blocks": recomputed,
    "-image_encoder B/32@224, -text_encoder B": architecture(MODELS["ViT-B/32"].architecture),
    "-max_temperature 100.0; the factor is kept from 0.01 to 100": scale_bounds(0.01, 100),
    "the temperature is not trained": pinned,
    "-batch_size 128": batch(128),
    "-epochs 5": epochs(5),
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
    "coco.py": evaluated,
}


@each_row("Low-resource CLIP", CHECKS)
def test_row(row, check, train):
    check(row, train)
