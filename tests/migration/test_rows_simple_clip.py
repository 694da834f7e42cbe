"""What each command, option and key of simple-clip becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import ClipError
from clip_core.models import ARCHITECTURES
from converters.pretrained import located
from tests.migration.checks import (
    all_of,
    architecture,
    batch,
    caption_by_epoch,
    decay,
    epochs,
    epsilon,
    evaluated,
    every,
    half_a_cosine_one_step_on,
    loaded,
    loss_scales,
    moments,
    rate,
    read_from,
    reduction,
    resumed,
    seed,
    sigmoid,
    truncated,
    unbounded,
    written_to_output,
)
from tests.migration.commands import TORCH_LAUNCHER, in_this_process, launches
from tests.migration.datasets import PICTURES, TINY
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import scored
from tests.migration.trainings import Trainings, features, half_cosine


def simple_cosine(row: Row, train: Trainings) -> None:
    """Two epochs of four steps: T_max is 2 * 4 + 4 // 4."""
    assert "--steps 8" in row.codes
    settings = {"optimizer": {"learning_rate": 1e-4}}
    ours = train(settings, *row.fragments, options="--steps 8").column("learning_rate")
    assert len(ours) == 8
    half_a_cosine_one_step_on(lambda k: half_cosine(1e-4, k, 2 * 4 + 4 // 4, 1e-8), ours, 0)


def nearest_own_text(row: Row, train: Trainings) -> None:
    run = train({"data": {"batch_size": 16}})
    for step, line in zip(run.steps, run.lines()):
        images, texts = features(step.before, step.pixels, step.tokens)
        nearer = (images @ texts.T > np.diag(images @ texts.T)[:, None]).sum(axis=1)
        assert (line["top1"], line["top5"]) == (np.mean(nearer < 1), np.mean(nearer < 5))


def loaded_or_resumed(row: Row, train: Trainings) -> None:
    loaded(row, train)
    resumed(row, train)


def workers_make_the_same_batches(row: Row, train: Trainings) -> None:
    found, expected = train(row.settings).steps, train().steps
    assert len(found) == len(expected) == 2
    for own, other in zip(found, expected):
        np.testing.assert_array_equal(own.pixels, other.pixels)
        np.testing.assert_array_equal(own.tokens, other.tokens)


def several_gpus(row: Row, train: Trainings) -> None:
    command = f"`clip train -c configs/clip/laion-coco.yaml {row.codes[0].replace('N', '8')}`"
    launches(*TORCH_LAUNCHER)(row._replace(here=command), train)


def pretrained(row: Row, train: Trainings) -> None:
    """Both files are looked for where PyTorch and Hugging Face keep them; what is found there is tested elsewhere."""
    wanted = train.recipe(row.settings).model.pretrained
    assert wanted.image is not None
    assert wanted.text is not None
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("TORCH_HOME", "HF_HOME"):
            patch.setenv(variable, str(train.data / "no-cache"))
        patch.delenv("HF_HUB_CACHE", raising=False)
        with pytest.raises(ClipError, match=r"no-cache/hub/checkpoints/resnet50-11ad3fa6\.pth"):
            located("image", wanted.image)
        with pytest.raises(ClipError, match=r"no-cache/hub/models--distilbert-base-uncased; "):
            located("text", wanted.text)


def squashed(row: Row, train: Trainings) -> None:
    """All 48 columns of a wide picture are left, in 32."""
    image = TINY["image"] | {"pixels": {"mean": [0.0] * 3, "deviation": [1.0] * 3, "resize": "squash"}}
    data = {"source": "paired", "folder": str(train.data / "wide")}
    run = train({"model": {"architecture": TINY | {"image": image}}, "data": data}, row.fragments[0])
    pixels = np.concatenate([step.pixels for step in run.steps])
    red = pixels[:, 0, 0] * 255 / 4
    np.testing.assert_allclose(red[:, -1] - red[:, 0] + 1.5, 48, atol=0.6)


def simple_clip(row: Row, train: Trainings) -> None:
    data: dict[str, object] = {
        "model__pretrained": None,
        "evaluation__zero_shot": {"kind": "folders", "folder": str(train.data / "classes")},
    }
    if "yfcc7m" in row.theirs:
        data["data__source__shards"], pictures = f"{train.data}/{{00000..00001}}.tar", PICTURES
    else:
        kinds = ("m3it", "m3it", "saved")
        data["data__source__parts"] = [{"kind": kind, "folder": str(train.data / kind)} for kind in kinds]
        pictures = 3 * PICTURES
    run = in_this_process(row, train, **data)
    assert [len(step.pixels) for step in run.steps] == [256, 256]
    total = 2 * (pictures // 256)
    expected = [half_cosine(1e-4, step, total + 1, 1e-8) for step in (1, 2)]
    assert run.column("learning_rate") == [pytest.approx(rate) for rate in expected]
    assert run.steps[0].result.logit_scale == pytest.approx(5.0, rel=1e-5)
    assert run.lines("evaluation.jsonl")[0]["zero_shot_top5"] == 1.0
    assert all(caption == f"n{number}" for step in run.steps for number, caption in step.pairs)


CHECKS: dict[str, Check] = {
    "train_clip --dataset_name yfcc7m --fp16_precision --batch_size 256 ...": simple_clip,
    "train_clip --dataset_name combined --fp16_precision --batch_size 256 ...": simple_clip,
    "--dataset_name textcap": read_from("m3it textcaps"),
    "--dataset_name coco": read_from("m3it coco"),
    "--dataset_name sbucaptions": read_from("saved sbu"),
    "--dataset_name combined": read_from("combined"),
    "--dataset_name yfcc7m": read_from("webdataset"),
    "--image_encoder_name resnet50": architecture(ARCHITECTURES["simple-clip-resnet50"].architecture),
    "--image_encoder_name efficientnet": architecture(ARCHITECTURES["simple-clip-efficientnet"].architecture),
    "--text_encoder_name distilbert-base-uncased, pretrained towers": pretrained,
    "-save_model_dir DIR": written_to_output,
    "--num_epochs 2": epochs(2),
    "--image_size 224": architecture(ARCHITECTURES["simple-clip-resnet50"].architecture),
    "-b, --batch_size 256": batch(256),
    "-lr, --learning_rate 1e-4": rate(1e-4),
    "-wd, --weight_decay 0.0, with Adam, of every parameter": decay(0.0, of_all=True),
    "Adam's own betas and epsilon": all_of(moments(0.9, 0.999), epsilon(1e-8)),
    "--fp16_precision": loss_scales,
    "--imagenet_eval": evaluated,
    "ImageNet and STL-10 of a trained model: top-1, top-5, top-10": scored,
    "in-batch top-1 and top-5 of a trained model": scored,
    "--imagenet_eval_steps 1000": every(1000, "evaluation"),
    "in-batch top-1 and top-5, both ways": nearest_own_text,
    "clip_model.pth, overwritten, weights alone": every(50),
    "validation on COCO every 500 steps": evaluated,
    "--ckpt_path FILE": loaded_or_resumed,
    "--use_siglip": sigmoid,
    "contrastive loss from a scale of 5, its bias untrained": reduction(1, 5.0),
    "no clipping, no bounds of the scale": unbounded,
    "seed 42": seed(42),
    "cosine over epochs * steps + steps // 4 to 1e-8, no warm-up": simple_cosine,
    "resize that squashes, no augmentation": squashed,
    "captions of at most 100 tokens": truncated,
    "one caption by chance for each picture and step": caption_by_epoch,
    "2 workers": workers_make_the_same_batches,
    "one device": several_gpus,
}


@each_row("simple-clip", CHECKS)
def test_row(row, check, train):
    check(row, train)
