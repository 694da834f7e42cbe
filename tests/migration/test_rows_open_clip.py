"""What each option of open_clip's training becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.models import ARCHITECTURES
from tests.migration.checks import (
    READS_TABLE,
    architecture,
    batch,
    decay,
    epochs,
    epsilon,
    evaluated,
    gradient_clip,
    loaded,
    loss_scales,
    moments,
    rate,
    read_from,
    recomputed,
    resumed,
    scale_bounds,
    seed,
    sigmoid,
    tensorboard,
    warm_up,
    workers,
    written_to_output,
)
from tests.migration.datasets import TINY
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import probed, scored
from tests.migration.trainings import Trainings


def accumulated(row: Row, train: Trainings) -> None:
    """A quarter of a batch at once, a sixteenth of theirs: the same loss as in one piece."""
    settings = row.settings
    assert (settings["data"]["batch_size"], settings["training"]["micro_batch_size"]) == (256, 64)
    parts, whole = (train({"data": {"batch_size": 16}, "training": part}) for part in ({"micro_batch_size": 4}, {}))
    assert parts.column("loss") == pytest.approx(whole.column("loss"), rel=1e-5)


def locked(row: Row, train: Trainings) -> None:
    """No number of the image tower moves."""
    step = train(row.settings).steps[0]
    moved = {
        name for name in step.before if name.startswith("weights/") and (step.before[name] != step.after[name]).any()
    }
    assert "weights/text_projection" in moved
    assert not [name for name in moved if name.startswith("weights/visual.")]


def patches_left_out(row: Row, train: Trainings) -> None:
    """Half of the patches of each picture, which gives other features."""
    image = {"kind": "vit", "resolution": 32, "patch": 8, "width": 64, "layers": 1, "heads": 1}
    small = {"model": {"architecture": TINY | {"image": image}}}
    with_all, with_half = (train(small, settings).steps[0] for settings in ({}, row.settings))
    assert np.array_equal(with_all.pixels, with_half.pixels)
    assert with_all.result.loss != with_half.result.loss


CHECKS: dict[str, Check] = {
    "--model ViT-B-32": architecture(ARCHITECTURES["ViT-B-32"].architecture),
    "--pretrained FILE": loaded,
    "--resume FILE": resumed,
    '--train-data "DIR/{00000..00001}.tar" --dataset-type webdataset': read_from("webdataset"),
    "--train-data FILE --dataset-type csv": READS_TABLE,
    "--csv-img-key filepath, --csv-caption-key title, --csv-separator": READS_TABLE,
    "--val-data FILE, loss and recall": evaluated,
    "--imagenet-val DIR": evaluated,
    "--imagenet-val DIR, --imagenet-v2 DIR without --train-data": scored,
    "clip_benchmark eval --task zeroshot_classification --dataset cifar10": scored,
    "clip_benchmark eval --task zeroshot_retrieval --dataset mscoco_captions --recall_k 1 5 10": scored,
    "clip_benchmark eval --task linear_probe --dataset cifar10": probed,
    "clip_benchmark eval --dataset wds/vtab/flowers --dataset_root DIR": scored,
    "--workers 4": workers(4),
    "--batch-size 64, of each of 2 processes": batch(128),
    "--accum-freq 4 with --batch-size 64": accumulated,
    "--epochs 32": epochs(32),
    "--lr 5e-4": rate(5e-4),
    "--beta1 0.9, --beta2 0.98": moments(0.9, 0.98),
    "--eps 1e-6": epsilon(1e-6),
    "--wd 0.2, not of norms, biases and the scale": decay(0.2, of_all=False),
    "--warmup 10000": warm_up(10000),
    "--precision amp": loss_scales,
    "--grad-clip-norm 1.0": gradient_clip(1.0),
    "log scale kept in [0, ln 100]": scale_bounds(1, 100),
    "--grad-checkpointing": recomputed,
    "--siglip": sigmoid,
    "--force-patch-dropout 0.5": patches_left_out,
    "--lock-image": locked,
    "--seed 0": seed(0),
    "--logs DIR, --name NAME": written_to_output,
    "--report-to tensorboard": tensorboard,
}


@each_row("open_clip", CHECKS)
def test_row(row, check, train):
    check(row, train)
