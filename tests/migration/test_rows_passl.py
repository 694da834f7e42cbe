"""What each command, option and key of PASSL becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

import importlib
from math import cos, pi

import numpy as np
import paddle
import pytest

from clip_core.models import MODELS
from tests.migration.checks import (
    STEPS_4,
    all_of,
    architecture,
    batch,
    caption_by_epoch,
    converted,
    cropped,
    damaged,
    decay,
    each_once,
    epochs,
    epsilon,
    gradient_clip,
    half_a_cosine_one_step_on,
    kept,
    loaded,
    loss_scales,
    moments,
    normalised,
    rate,
    read_from,
    reduction,
    resumed,
    scale_bounds,
    seed,
    steps,
    tensorboard,
    truncated,
    workers,
    written_to_output,
)
from tests.migration.commands import PADDLE_LAUNCHER, as_written, in_this_process, launches, tiny
from tests.migration.datasets import PICTURES, TINY
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import told_nearest
from tests.migration.trainings import Step, Trainings, contrastive_loss, half_cosine, update_of


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


def tower_rates(row: Row, train: Trainings) -> None:
    """Adam's first step is as long as the rate wherever the gradient is not small."""
    step = train({"optimizer": {"weight_decay": 0.0, "epsilon": 1e-12}}, row.settings).steps[0]
    for name, expected in (("visual.proj", 2e-5), ("text_projection", 3e-6), ("logit_scale", 1e-5)):
        assert np.median(np.abs(update_of(step, name))) == pytest.approx(0.75 * expected, rel=0.05)


def proportional_rate(row: Row, train: Trainings) -> None:
    settings = row.settings
    assert settings["optimizer"]["learning_rate"] / 1e-5 == settings["data"]["batch_size"] / (8 * 128)
    rate(1.25e-6)(row, train)


def overridden(row: Row, train: Trainings) -> None:
    run = train(options="-o data.batch_size=8 --override 'optimizer.betas=[0.5, 0.6]'")
    assert [len(step.pixels) for step in run.steps] == [8, 8]
    assert run.recipe.optimizer.betas == (0.5, 0.6)


def config(row: Row, train: Trainings) -> None:
    folder = train().folder
    run = train.command(f"train --config {folder / 'recipe.yaml'} --output {train.folder() / 'again'}")
    assert run.column("loss") == pytest.approx(train().column("loss"), rel=1e-6)


def one_process(row: Row, train: Trainings) -> None:
    assert train(options=row.codes[0]).column("loss") == pytest.approx(train().column("loss"), rel=1e-6)


def initial(row: Row, train: Trainings) -> None:
    before = train().steps[0].before
    found = before["weights/transformer.resblocks.0.mlp.c_proj.weight"].std()
    assert found == pytest.approx(64**-0.5 * 2**-0.5, rel=0.05)


def whole_contrast(row: Row, train: Trainings) -> None:
    """The loss of a step is that of the whole batch."""
    step = train({"data": {"batch_size": 16}}).steps[0]
    assert step.result.loss == pytest.approx(contrastive_loss(step), rel=1e-5)


def passl_one_gpu(row: Row, train: Trainings) -> None:
    run = in_this_process(row, train, data__source__folder=train.data / "pictures")
    assert [len(step.pixels) for step in run.steps] == [128, 128]
    total = 10 * (PICTURES // 128)
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1.25e-6, step, total + 1)) for step in (1, 2)]
    assert run.steps[0].result.loss == pytest.approx(2 * contrastive_loss(run.steps[0]), rel=1e-4)


def passl_several_gpus(row: Row, train: Trainings) -> None:
    """With Paddle's launcher, the losses of one process."""
    data = {"data__source__folder": train.data / "pictures", "data__batch_size": PICTURES}
    run = as_written(row, train, row.command, **data)
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1e-5, step, 11)) for step in (1, 2)]
    alone = train.command(f"train -c configs/clip/vit-b-32.yaml {tiny(train.folder() / 'run', **data)}")
    assert run.column("loss") == pytest.approx(alone.column("loss"), rel=1e-4)


def passl_finetune(row: Row, train: Trainings) -> None:
    launches(*PADDLE_LAUNCHER)(row, train)
    words = row.command.replace("--num-gpus 8", "").removeprefix("clip ")
    small = tiny(train.folder() / "run", data__source__folder=train.data / "pictures", data__batch_size=PICTURES)
    run = train.command(f"{words} {small}")
    assert run.column("logit_scale")[0] == pytest.approx(20.0)  # of the file
    assert run.column("learning_rate") == [pytest.approx(half_cosine(1e-5, step, 11)) for step in (1, 2)]


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
    assert (run.folder / "model.safetensors").is_file()


CHECKS: dict[str, Check] = {
    "python tools/train.py -c configs/clip/vit-b-32.yaml": passl_one_gpu,
    "... --num-gpus 8": launches(*PADDLE_LAUNCHER),
    "... --num-gpus 8 --load ViT-B-32.pdparams": passl_finetune,
    "python -m paddle.distributed.launch --gpus=0,1 tools/train.py -c ... (2022)": passl_several_gpus,
    "python tools/extract_weight.py FILE --output FILE.pdparams": converted(".pdparams"),
    "-c, --config-file FILE": config,
    "--num-gpus 1": one_process,
    "-o key.sub.idx=value, --override (2022), trailing opts": overridden,
    "--resume FILE": resumed,
    "--load FILE, --pretrained FILE": loaded,
    "--val-interval 1, of epochs; val() does not run for CLIP": evaluated_every_step,
    "--output_dir DIR, output_dir": written_to_output,
    "ImageFile.LOAD_TRUNCATED_IMAGES = True": damaged,
    "epochs: 10": epochs(10),
    "total_iters: N": steps,
    "seed: 0 (2022), which leaves it unset": seed(0),
    "model.architecture: {name: CLIP, embed_dim: 512, ...}": architecture(MODELS["ViT-B/32"].architecture),
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
    "ToRGB, ToTensor, Normalize with CLIP's numbers": normalised,
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
    "clamp of the log scale to [-4.6, 4.6]": scale_bounds(0.01005, 99.484),
    "use_amp: True, AMP: {auto_cast, scale_loss}": loss_scales,
    "hybrid, sharding": sharded,
    "checkpoint: {interval: 1}, each epoch": kept(2),
    "VisualDL": tensorboard,
    "similarities of eight pictures with their texts, as a heat map": told_nearest,
}


@each_row("PASSL", CHECKS)
def test_row(row, check, train):
    check(row, train)
