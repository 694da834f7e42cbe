"""From the names in a file to canonical weights: prefixes, constants, what shapes tell, and what inspecting says."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import converters
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.layouts import LAYOUTS
from clip_core.layouts.selection import select
from clip_core.models import MODELS
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, write
from tests.converters.bare import convert, inspect, read
from tests.converters.small import ARCHITECTURES, HELD, random_weights


def save(weights, path):
    """A file without a manifest."""
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}, path)
    return path


PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.clip.",
    "_fsdp_wrapped_module.base_model.model.",
    "ema.module.",
    "net.text.",
)


@pytest.mark.parametrize(("layout", "model"), dict(reversed(HELD)).items())
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_part_of_a_larger_module(spelled, prefix, layout, model, tmp_path, assert_equal_weights):
    """The model is found in every layout below any prefix, and what is not below it is named."""
    separator = "/" if layout == "nnabla" else "."
    file = ModelFile(random_weights(ARCHITECTURES[model]), ARCHITECTURES[model])
    state = {(prefix + name).replace(".", separator): array for name, array in spelled(file, layout).items()}
    head = {f"head{separator}weight": np.ones(3, np.float32)}
    path = save(state | head, tmp_path / "a.safetensors")
    # Some projects have one activation.
    activation = None if LAYOUTS[layout].words(path, layout, file.architecture) else "quick_gelu"
    found = read(path, activation=activation)
    assert_equal_weights(found.weights, file.weights)
    assert found.left_out == inspect(path, activation=activation).left_out == tuple(head)
    report = convert(path, tmp_path / "b.safetensors", activation=activation)
    assert (report.prefix, report.left_out) == (found.prefix, tuple(head))
    assert read(tmp_path / "b.safetensors", activation=activation).left_out == ()


def test_a_text_tower_of_its_own_below_a_prefix(vit, tmp_path, assert_equal_weights):
    moved = ("positional_embedding", "text_projection", "transformer.", "token_embedding.", "ln_final.")
    names = {name: f"student.{'text.' if name.startswith(moved) else ''}{name}" for name in vit.weights}
    path = save({names[name]: array for name, array in vit.weights.items()}, tmp_path / "a.safetensors")
    found = read(path)
    assert (found.layout, found.prefix) == ("open_clip", "student.")
    assert_equal_weights(found.weights, vit.weights)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_of_a_model(vit, wrapper, tmp_path, assert_equal_weights):
    """A part that is compiled, sharded or computed again has its wrapper in the middle of its names."""
    state = {re.sub(r"^visual\.|resblocks\.1\.", rf"\g<0>{wrapper}.", name): a for name, a in vit.weights.items()}
    assert_equal_weights(read(save(state, tmp_path / "a.safetensors")).weights, vit.weights)


def test_names_that_collide_without_their_wrapper(vit, tmp_path):
    path = save(vit.weights | {"visual._orig_mod.proj": vit.weights["visual.proj"]}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"another name both become visual\.proj without their wrapper; remove one"
    ):
        read(path)


def test_several_models_in_a_file(vit, tmp_path, assert_equal_weights):
    """A student, its average inside of it, and a teacher: asked for, never guessed."""
    doubled = {name: 2 * array for name, array in vit.weights.items()}
    state = {f"model.{name}": array for name, array in vit.weights.items()}
    state |= {f"model.average.{name}": array for name, array in doubled.items()}
    state |= {f"teacher.{name}": array for name, array in doubled.items()} | {"sink_temp": np.ones(1, np.float32)}
    path = save(state, tmp_path / "a.safetensors")
    expected = (
        f"{path}: it holds several CLIPs, below the prefixes 'model.', 'model.average.', 'teacher.' (and beside them "
        "'sink_temp'); clip convert --prefix 'teacher.' takes that one out of it."
    )
    for function in (read, inspect):
        with pytest.raises(CheckpointError) as caught:
            function(path)
        assert str(caught.value) == expected
    with pytest.raises(CheckpointError, match=r"no CLIP is below the prefix 'pupil\.'; there is one below 'model\.', "):
        read(path, prefix="pupil.")
    for prefix, weights in {"model": vit.weights, "model.average.": doubled, "teacher.": doubled}.items():
        report = convert(path, tmp_path / f"{prefix}.pt", prefix=prefix)
        assert len(report.left_out) == 2 * len(weights) + 1
        assert_equal_weights(read(tmp_path / f"{prefix}.pt").weights, weights)
        assert_equal_weights(read(path, prefix=prefix).weights, weights)
    assert inspect(path, prefix="teacher.").faults == ()


def test_what_is_not_of_a_model_without_a_prefix_is_refused(vit, tmp_path):
    path = save(vit.weights | {"head.weight": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.weight is not a parameter of this model"):
        read(path)


def test_choosing_among_many_names_takes_no_time():
    """Each name may be long and of many parts, and each may be a model's, or a wrapper's."""
    parts = {"." * 100_000 + f"{i}.": np.zeros(1) for i in range(20)}
    marks = {
        f"{i}.{mark}": np.zeros(1) for i in range(50_000) for mark in ("token_embedding.weight", "visual.conv1.weight")
    }
    start = time.monotonic()
    assert select(parts | {"_orig_mod." * 100_000: np.zeros(1)}).prefix == ""
    with pytest.raises(CheckpointError, match="it holds 50000 CLIPs; at most 100 in one file are told apart"):
        select(marks, "7.")
    assert time.monotonic() - start < 10


def test_names_that_collide_in_their_layout(vit, tmp_path):
    path = save(vit.weights | {"text.ln_final.bias": vit.weights["ln_final.bias"]}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"another name both stand for ln_final\.bias"):
        read(path)


def test_constants_are_dropped(vit, tmp_path, assert_equal_weights):
    constants = {
        "input_resolution": np.array(32),
        "context_length": np.array(16),
        "vocab_size": np.array(50),
        "attn_mask": np.zeros((16, 16), np.float32),
    }
    assert_equal_weights(read(save(vit.weights | constants, tmp_path / "a.safetensors")).weights, vit.weights)


def test_position_ids_of_old_huggingface_files(vit, tmp_path, spelled, assert_equal_weights):
    ids = {f"{tower}_model.embeddings.position_ids": np.arange(16)[None] for tower in ("text", "vision")}
    path = save(spelled(vit, "huggingface") | ids, tmp_path / "a.safetensors")
    assert_equal_weights(read(path).weights, vit.weights)


def test_missing_counters_are_zero(resnet, tmp_path):
    kept = {name: array for name, array in resnet.weights.items() if array.dtype != np.int64}
    found = read(save(kept, tmp_path / "a.safetensors")).weights
    assert list(found) == list(resnet.weights)
    assert found["visual.bn1.num_batches_tracked"] == 0
    assert found["visual.bn1.num_batches_tracked"].dtype == np.int64


def test_every_missing_extra_and_misshapen_name_at_once(vit, tmp_path):
    weights = dict(vit.weights)
    del weights["ln_final.bias"], weights["visual.ln_pre.weight"]
    weights |= {"zebra": np.zeros(1, np.float32), "visual.proj2": np.zeros(1, np.float32)}
    weights["transformer.resblocks.0.mlp.c_proj.weight"] = weights["transformer.resblocks.0.mlp.c_proj.weight"].T
    path = save(weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = (
        f"{path} does not fit the model: ln_final.bias is missing; visual.ln_pre.weight is missing; "
        "visual.proj2 is not a parameter of this model; zebra is not a parameter of this model; "
        "transformer.resblocks.0.mlp.c_proj.weight has shape (512, 128), expected (128, 512)."
    )
    assert str(caught.value) == message
    found = inspect(path)
    assert "; ".join(found.faults) == message.split("model: ", 1)[1][:-1]
    assert found.architecture == vit.architecture
    loose = read(path, strict=False)
    assert loose.weights["zebra"].shape == (1,)


def test_a_misspelt_projection_hides_no_other_fault(any_checkpoint, tmp_path):
    name = "visual.proj" if "visual.proj" in any_checkpoint.weights else "visual.attnpool.c_proj.weight"
    weights = dict(any_checkpoint.weights)
    del weights["ln_final.bias"]
    weights[f"{name}x"] = weights.pop(name)
    with pytest.raises(CheckpointError) as caught:
        read(save(weights, tmp_path / "a.safetensors"))
    assert str(caught.value).endswith(
        f"the model: ln_final.bias is missing; {name} is missing; {name}x is not a parameter of this model."
    )


@pytest.mark.parametrize("layout", ["openai", "paddle"])
@pytest.mark.parametrize("leaf", ["attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight"])
def test_one_transposed_matrix_is_the_one_to_blame(vit, layout, leaf, tmp_path, spelled):
    name = f"visual.transformer.resblocks.0.{leaf}"
    weights = spelled(vit, layout)
    with pytest.raises(CheckpointError) as caught:
        read(save(weights | {name: weights[name].T}, tmp_path / "a.safetensors"))
    shape = vit.weights[name].shape
    assert str(caught.value).endswith(f"does not fit the model: {name} has shape {shape[::-1]}, expected {shape}.")


def test_the_parts_of_attention_that_are_missing_are_named(vit, tmp_path, spelled):
    weights = spelled(vit, "huggingface")
    del weights["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"transformer\.resblocks\.0\.attn\.in_proj_weight is missing"):
        read(save(weights, tmp_path / "a.safetensors"))


@pytest.mark.parametrize("part", [np.float32(1.0), np.zeros(7, np.float32), np.zeros(128, np.float16)])
def test_the_parts_of_attention_that_do_not_fit_together_are_named(vit, part, tmp_path, spelled):
    name = "text_model.encoder.layers.0.self_attn.k_proj.bias"
    weights = spelled(vit, "huggingface") | {name: np.asarray(part)}
    with pytest.raises(
        CheckpointError, match=r"resblocks\.0\.attn\.in_proj_bias is missing; .*k_proj\.bias is not a para"
    ):
        read(save(weights, tmp_path / "a.safetensors"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(vit, value, tmp_path):
    array = vit.weights["ln_final.bias"].copy()
    array[7] = value
    path = save(vit.weights | {"ln_final.bias": array}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_final\.bias holds NaN"):
        read(path)
    with pytest.raises(CheckpointError, match=r"ln_final\.bias holds NaN"):
        convert(path, tmp_path / "b.h5")
    with pytest.raises(CheckpointError, match=r"ln_final\.bias holds NaN"):
        write(ModelFile(vit.weights | {"ln_final.bias": array}, vit.architecture), tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


def test_weights_of_zero_are_reported(vit, tmp_path):
    path = save(vit.weights | {"ln_final.bias": np.zeros(128, np.float32)}, tmp_path / "a.safetensors")
    found = inspect(path)
    assert found.zeros == ("ln_final.bias",)
    assert found.faults == ()
    assert not found.manifest


def test_another_kind_of_model(tmp_path):
    path = save({"projection.weight": np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="do not look like a CLIP: text_projection is missing"):
        read(path)
    found = inspect(path)
    assert (found.architecture, found.tensors, found.scalars) == (None, 1, 4)
    assert found.faults == ("The weights do not look like a CLIP: text_projection is missing.",)
    assert found.to_dict()["architecture"] is None


def test_weights_of_another_model(tmp_path):
    """ViT-B/16 where ViT-B/32 is said to be: two shapes differ, and the error says whose they are."""
    small = Architecture(8, VisionTransformer(32, 8, 64, 1, 1), TextTransformer(8, 20, 64, 1, 1))
    other = Architecture(8, VisionTransformer(32, 16, 64, 1, 1), TextTransformer(8, 20, 64, 1, 1))
    with pytest.raises(CheckpointError) as caught:
        write(ModelFile(initialize(small, 0), other), tmp_path / "a.pt")
    assert str(caught.value) == (
        "The checkpoint does not fit the model: "
        "visual.conv1.weight has shape (64, 3, 8, 8), expected (64, 3, 16, 16); "
        "visual.positional_embedding has shape (17, 64), expected (5, 64)."
    )


def test_a_model_of_the_registry_is_named(tmp_path):
    model = MODELS["shapes"]
    path = tmp_path / "a.safetensors"
    write(ModelFile(initialize(model.architecture, 0), model.architecture), path)
    assert inspect(path).model == "shapes"


def test_the_manifest_tells_what_shapes_do_not(tmp_path):
    architecture = Architecture(
        8, VisionTransformer(16, 8, 64, 1, 4), TextTransformer(8, 20, 64, 1, 2)
    ).with_activation("gelu")
    for suffix in (".pt", ".h5", ".safetensors", ".pdparams"):
        write(ModelFile(initialize(architecture, 0), architecture), tmp_path / f"a{suffix}")
        assert converters.read(tmp_path / f"a{suffix}").architecture == architecture


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"path": "a.txt"}, "a.txt has no suffix to write a format by; end it in one of .pt, .pth, .bin"),
        ({"path": "a.pd"}, "a.pd has no suffix to write a format by"),
        ({"layout": "keras"}, "There is no layout 'keras'; choose one of openai, nnabla, paddle"),
        ({"dtype": "int8"}, "There is no dtype 'int8' to write; choose float16 or float32"),
    ],
)
def test_wrong_requests(vit, arguments, what, tmp_path):
    path = tmp_path / arguments.pop("path", "a.pt")
    with pytest.raises(ClipError, match=re.escape(what)):
        write(vit, path, **arguments)
    assert list(tmp_path.iterdir()) == []
