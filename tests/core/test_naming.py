"""The table of parameters, and every way in which weights can differ from it."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import CheckpointError
from clip_core.models import MODELS
from clip_core.naming import check, faults, parameters
from clip_core.parameters import Parameter
from tests.models import RESNET, VIT, sample_weights


def empty_weights(name: str) -> dict[str, np.ndarray]:
    """Weights of a full-size model that take no memory: one zero, seen through every index."""
    return {
        parameter.name: np.broadcast_to(np.zeros((), np.int64 if parameter.kind == "counter" else np.float32), shape)
        for parameter in parameters(MODELS[name].architecture)
        for shape in [parameter.shape]
    }


def test_the_order_is_that_of_openais_state_dictionary():
    names = [parameter.name for parameter in parameters(VIT)]
    assert names[:8] == [
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.proj",
        "visual.conv1.weight",
        "visual.ln_pre.weight",
    ]
    assert names[-3:] == ["token_embedding.weight", "ln_final.weight", "ln_final.bias"]


def test_the_block_of_a_transformer():
    prefix = "visual.transformer.resblocks.1."
    block = [parameter for parameter in parameters(VIT) if parameter.name.startswith(prefix)]
    assert [(parameter.name[len(prefix) :], parameter.shape, parameter.kind) for parameter in block] == [
        ("attn.in_proj_weight", (384, 128), "linear"),
        ("attn.in_proj_bias", (384,), "vector"),
        ("attn.out_proj.weight", (128, 128), "linear"),
        ("attn.out_proj.bias", (128,), "vector"),
        ("ln_1.weight", (128,), "norm"),
        ("ln_1.bias", (128,), "norm"),
        ("mlp.c_fc.weight", (512, 128), "linear"),
        ("mlp.c_fc.bias", (512,), "vector"),
        ("mlp.c_proj.weight", (128, 512), "linear"),
        ("mlp.c_proj.bias", (128,), "vector"),
        ("ln_2.weight", (128,), "norm"),
        ("ln_2.bias", (128,), "norm"),
    ]


def test_the_block_of_a_resnet():
    prefix = "visual.layer2.0."
    block = [parameter for parameter in parameters(RESNET) if parameter.name.startswith(prefix)]
    norm = [("weight", "norm"), ("bias", "norm"), ("running_mean", "statistic"), ("running_var", "statistic")]
    expected: list[tuple[str, tuple[int, ...], str]] = []
    for conv, name, shape in (
        ("conv1", "bn1", (16, 32, 1, 1)),
        ("conv2", "bn2", (16, 16, 3, 3)),
        ("conv3", "bn3", (64, 16, 1, 1)),
        ("downsample.0", "downsample.1", (64, 32, 1, 1)),
    ):
        expected.append((f"{conv}.weight", shape, "conv"))
        expected += [(f"{name}.{leaf}", shape[:1], kind) for leaf, kind in norm]
        expected.append((f"{name}.num_batches_tracked", (), "counter"))
    assert [(parameter.name[len(prefix) :], parameter.shape, parameter.kind) for parameter in block] == expected


def test_kinds_outside_of_blocks():
    kinds = {parameter.name: parameter.kind for parameter in (*parameters(VIT), *parameters(RESNET))}
    assert {name: kind for name, kind in kinds.items() if name.count(".") < 2 and "ln_" not in name} == {
        "positional_embedding": "embedding",
        "text_projection": "projection",
        "logit_scale": "scalar",
        "visual.class_embedding": "vector",
        "visual.positional_embedding": "embedding",
        "visual.proj": "projection",
        "token_embedding.weight": "embedding",
    }
    assert kinds["visual.conv1.weight"] == "conv"
    assert kinds["visual.attnpool.positional_embedding"] == "embedding"
    assert kinds["visual.attnpool.c_proj.weight"] == "linear"
    assert kinds["visual.attnpool.c_proj.bias"] == "vector"


def test_only_statistics_and_counters_are_not_trained():
    kinds = {parameter.kind: parameter.trainable for parameter in parameters(RESNET) + parameters(VIT)}
    assert {kind for kind, trained in kinds.items() if not trained} == {"statistic", "counter"}
    assert Parameter("x", (), "scalar").trainable


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_names_are_unique_and_sample_weights_fit(architecture):
    names = [parameter.name for parameter in parameters(architecture)]
    assert len(set(names)) == len(names)
    assert faults(architecture, sample_weights(architecture)) == []
    assert check(architecture, sample_weights(architecture), "x.pt") is None


@pytest.mark.parametrize(
    ("name", "array", "phrase"),
    [
        ("ln_final.bias", None, "ln_final.bias is missing"),
        ("head", np.zeros(2, np.float32), "head is not a parameter of this model"),
        ("logit_scale", np.zeros((1,), np.float32), "logit_scale has shape (1,), expected ()"),
        ("ln_final.bias", np.zeros(128, np.int8), "ln_final.bias has dtype int8, expected float32, float16 or float64"),
        (
            "ln_final.bias",
            np.zeros(128, ">f4"),
            "ln_final.bias has dtype >f4, expected float32, float16 or float64",
        ),
        (
            "logit_scale",
            np.array(88.75, np.float32),
            "logit_scale is 88.75, the logarithm of what is infinite in float32",
        ),
        ("logit_scale", [4.6], "logit_scale is an object of the type list, expected a NumPy array"),
        (
            "visual.bn1.num_batches_tracked",
            np.zeros((), np.float32),
            "visual.bn1.num_batches_tracked has dtype float32, expected int64",
        ),
        *(
            (
                "ln_final.bias",
                np.array([0.0] * 127 + [value]),
                "ln_final.bias holds NaN or infinity in float32",
            )
            for value in (np.nan, np.inf, -np.inf, 1e39, -1e39)
        ),
    ],
)
def test_each_fault_has_its_phrase(name, array, phrase):
    weights = sample_weights(RESNET)
    if array is None:
        del weights[name]
    else:
        weights[name] = array
    assert faults(RESNET, weights) == [phrase]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_numbers_fit(dtype):
    largest = min(np.finfo(dtype).max, np.finfo(np.float32).max)
    weights = {"ln_final.bias": np.full(128, largest, dtype), "logit_scale": np.array(88.7, np.float32)}
    assert faults(VIT, sample_weights(VIT) | weights) == []


def test_faults_are_sorted_missing_first():
    weights = sample_weights(VIT)
    del weights["visual.proj"], weights["ln_final.bias"]
    weights |= {"z": weights["logit_scale"], "a": weights["logit_scale"], "logit_scale": np.zeros(3, np.float32)}
    assert faults(VIT, weights) == [
        "ln_final.bias is missing",
        "visual.proj is missing",
        "a is not a parameter of this model",
        "z is not a parameter of this model",
        "logit_scale has shape (3,), expected ()",
    ]


def test_the_weights_of_another_model_are_recognised():
    with pytest.raises(CheckpointError) as caught:
        check(MODELS["ViT-B/32"].architecture, empty_weights("ViT-B/16"), "b.pt")
    assert str(caught.value) == (
        "b.pt does not fit ViT-B/32: visual.conv1.weight has shape (768, 3, 16, 16), expected (768, 3, 32, 32); "
        "visual.positional_embedding has shape (197, 768), expected (50, 768). The weights look like ViT-B/16."
    )


def test_incomplete_weights_of_the_right_model_are_not_called_another():
    weights = empty_weights("ViT-B/32")
    del weights["ln_final.bias"]
    with pytest.raises(CheckpointError) as caught:
        check(MODELS["ViT-B/32"].architecture, weights, "b.pt")
    assert str(caught.value) == "b.pt does not fit ViT-B/32: ln_final.bias is missing."


def test_what_is_no_clip_is_only_listed():
    with pytest.raises(CheckpointError) as caught:
        check(VIT, {"fc.weight": np.zeros(2, np.float32)}, "mnist.pt")
    assert str(caught.value).startswith("mnist.pt does not fit the model: ln_final.bias is missing; ")
    assert str(caught.value).endswith("fc.weight is not a parameter of this model.")
