"""From the names in a file to canonical weights: prefixes, constants, what shapes tell, and what inspecting says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_core.architecture import MODELS, Architecture, TextTransformer, VisionTransformer
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from converters import Checkpoint, convert, inspect, read, write


def save(weights, path):
    """A file without a manifest."""
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrapping_are_stripped(vit, prefix, tmp_path, assert_equal_weights):
    path = save({prefix + name: array for name, array in vit.weights.items()}, tmp_path / "a.safetensors")
    assert_equal_weights(read(path).weights, vit.weights)


def test_names_that_collide_without_their_prefix(vit, tmp_path):
    path = save(vit.weights | {"module.logit_scale": vit.weights["logit_scale"]}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="another name both become logit_scale without their prefixes"):
        read(path)


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


def test_the_parts_of_attention_that_are_missing_are_named(vit, tmp_path, spelled):
    weights = spelled(vit, "huggingface")
    del weights["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"transformer\.resblocks\.0\.attn\.in_proj_weight is missing"):
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
        write(Checkpoint(vit.weights | {"ln_final.bias": array}, vit.architecture), tmp_path / "b.h5")
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
        write(Checkpoint(initialize(small, 0), other), tmp_path / "a.pt")
    assert str(caught.value) == (
        "The checkpoint does not fit the model: "
        "visual.conv1.weight has shape (64, 3, 8, 8), expected (64, 3, 16, 16); "
        "visual.positional_embedding has shape (17, 64), expected (5, 64)."
    )


def test_a_model_of_the_registry_is_named(tmp_path):
    model = MODELS["shapes"]
    path = tmp_path / "a.safetensors"
    write(Checkpoint(initialize(model.architecture, 0), model.architecture), path)
    assert inspect(path).model == "shapes"


def test_the_manifest_tells_what_shapes_do_not(tmp_path):
    architecture = Architecture(8, VisionTransformer(16, 8, 64, 1, 4), TextTransformer(8, 20, 64, 1, 2), "gelu")
    for suffix in (".pt", ".h5", ".safetensors", ".pdparams"):
        write(Checkpoint(initialize(architecture, 0), architecture), tmp_path / f"a{suffix}")
        assert read(tmp_path / f"a{suffix}").architecture == architecture


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
