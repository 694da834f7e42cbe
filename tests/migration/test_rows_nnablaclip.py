"""What each command, option and key of NNabla-CLIP becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import numpy as np
import pytest

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.models import MODELS
from tests.migration.checks import (
    READS_TABLE,
    architecture,
    batch,
    converted,
    cropped,
    decay,
    each_once,
    epochs,
    epsilon,
    evaluated,
    every,
    half_a_cosine_one_step_on,
    loaded,
    loss_scales,
    moments,
    monitored,
    rate,
    reduction,
    resumed,
    seed,
    steps,
    truncated,
    unbounded,
    warm_up,
    written_to_output,
)
from tests.migration.commands import as_written, in_this_process, tiny
from tests.migration.datasets import TINY
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import classified
from tests.migration.trainings import Run, Trainings


def adam(row: Row, train: Trainings) -> None:
    """The decay is a part of the gradient, so it stands in the moments."""
    fragment = next(part for part in row.fragments if "name" in part["optimizer"])
    one, other = (train(fragment, {"optimizer": {"weight_decay": value, "decay": "all"}}) for value in (0.0, 0.5))
    name = "visual.proj"
    found = other.steps[0].after[f"first_moment/{name}"] - one.steps[0].after[f"first_moment/{name}"]
    np.testing.assert_allclose(found, 0.1 * 0.5 * one.steps[0].before[f"weights/{name}"], rtol=1e-3, atol=1e-6)


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


def nnabla_schedule(row: Row, train: Trainings) -> None:
    settings = {"training": {"steps": 12}, "schedule": {"warm_up_steps": 4}}
    ours = train(settings, row.settings).column("learning_rate")

    def theirs(i: int) -> float:
        return 5e-4 * (i + 1) / 4 if i < 4 else 5e-4 * 0.5 * (1 + cos(pi * (i - 4) / (12 - 4)))

    assert ours[:4] == [pytest.approx(theirs(i)) for i in range(4)]
    half_a_cosine_one_step_on(theirs, ours, 4)


def pictures_elsewhere(row: Row, train: Trainings) -> None:
    """Paths of a table that stands elsewhere start at the folder that the row's key names."""
    data = {"source": "table", "file": str(train.data / "elsewhere.csv")}
    (train.data / "elsewhere.csv").write_text("filepath\ttitle\n" + "".join(f"{n}.jpg\tn{n}\n" for n in range(4)))
    with pytest.raises(ClipError, match="could not be used"):
        train({"data": data})
    run = train({"data": data}, row.settings)
    assert sorted(run.steps[0].pairs) == [(number, f"n{number}") for number in range(4)]


def cc3m(train: Trainings) -> dict[str, Any]:
    file = str(train.data / "listed" / "cc.csv")
    return {"data__source__file": file, "evaluation__retrieval": {"kind": "table", "file": file}}


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


CHECKS: dict[str, Check] = {
    "mpirun -n 2 python train.py -ft -b 64 -ag -ep 30 -wi 10000 ...": nnabla_finetune,
    "the same without -ft": nnabla_scratch,
    "on one GPU, python train.py -b 128 ... without -ag": nnabla_scratch,
    "--type-config half, -t": loss_scales,
    "--batch-size 64, -b, of each of 2 processes": batch(128),
    "--image-size 224": architecture(MODELS["ViT-B/32"].architecture),
    "--monitor-path DIR, -m": written_to_output,
    "--epochs 30, -ep": epochs(30),
    "--max-iter N, -i": steps,
    "--warmup-iter 10000, -wi": warm_up(10_000),
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
    "clip_zero_shot_classification.ipynb, run(path, texts)": classified,
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
}


@each_row("NNabla-CLIP", CHECKS)
def test_row(row, check, train):
    check(row, train)
