"""Every format and layout gives back exactly what was written, and holds what its project expects, value by value."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.naming import count
from converters import ModelFile, convert, inspect, read, write
from tests.converters.small import ARCHITECTURES, HELD, random_weights

SUFFIXES = [".safetensors", ".pt", ".h5", ".pdparams"]
CONTAINERS = {".safetensors": "safetensors", ".h5": "hdf5", ".pdparams": "pdparams"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("layout", "name"), HELD)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore:.* is another model to simple-clip's package")
def test_every_format_and_layout(name, suffix, layout, dtype, tmp_path, assert_equal_weights):
    weights = random_weights(ARCHITECTURES[name], dtype)
    checkpoint = ModelFile(weights, ARCHITECTURES[name], vocabulary="a b\nc d\n")
    path = tmp_path / f"a{suffix}"
    report = write(checkpoint, path, layout=layout)
    found = read(path)
    assert_equal_weights(found.weights, weights)
    assert found.architecture == checkpoint.architecture
    assert found.vocabulary == "a b\nc d\n"
    assert found.container == CONTAINERS.get(suffix, "torch state dict")
    # open_clip's own models have OpenAI's names.
    assert found.layout == ("openai" if layout == "open_clip" else layout)
    data = path.read_bytes()
    assert found.sha256 == report.target_sha256 == hashlib.sha256(data).hexdigest()
    assert found.size == len(data)
    assert report.max_abs_difference == 0.0
    assert report.parameters == count(checkpoint.architecture)
    assert report.dtype == dtype
    assert all(array.flags.c_contiguous and array.flags.aligned for array in found.weights.values())


@pytest.mark.parametrize(
    ("layout", "name"), sorted({(layout, name) for layout in LAYOUTS for name in ARCHITECTURES} - set(HELD))
)
def test_a_layout_without_names_for_the_towers_is_refused(layout, name, tmp_path):
    checkpoint = ModelFile(random_weights(ARCHITECTURES[name]), ARCHITECTURES[name])
    towers = (getattr(ARCHITECTURES[name], place).title for place in ("image", "text"))
    named = " with a ".join(towers)
    with pytest.raises(ClipError, match=f"^The layout {layout} has no names for a {named}; choose openai, "):
        write(checkpoint, tmp_path / "a.safetensors", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_there_and_back(any_checkpoint, first, second, tmp_path):
    write(any_checkpoint, tmp_path / f"a{first}")
    forth = convert(tmp_path / f"a{first}", tmp_path / f"b{second}")
    convert(tmp_path / f"b{second}", tmp_path / f"c{first}")
    assert forth.source_sha256 == hashlib.sha256((tmp_path / f"a{first}").read_bytes()).hexdigest()
    a, b, c = (read(tmp_path / name) for name in (f"a{first}", f"b{second}", f"c{first}"))
    for name, array in a.weights.items():
        assert array.tobytes() == b.weights[name].tobytes() == c.weights[name].tobytes(), name
    assert (a.source_sha256, b.source_sha256, c.source_sha256) == (None, a.sha256, b.sha256)


def test_equal_weights_give_equal_files(vit, tmp_path):
    for suffix in SUFFIXES:
        digests = {write(vit, tmp_path / f"{number}{suffix}").target_sha256 for number in range(2)}
        assert len(digests) == 1, suffix


def test_weights_that_changed_after_they_were_verified(vit, tmp_path):
    write(vit, tmp_path / "a.safetensors")
    model = read(tmp_path / "a.safetensors")
    model.weights["logit_scale"][()] += 1
    write(model, tmp_path / "b.safetensors")
    assert read(tmp_path / "b.safetensors").weights["logit_scale"] == model.weights["logit_scale"]


def test_a_default_layout_for_each_format(vit, tmp_path):
    layouts = {suffix: write(vit, tmp_path / f"a{suffix}").layout for suffix in [*SUFFIXES, ".pth", ".bin"]}
    expected = dict.fromkeys([".safetensors", ".pt", ".pth", ".bin"], "openai") | {
        ".h5": "nnabla",
        ".pdparams": "paddle",
    }
    assert layouts == expected


def test_nnabla_spelling(vit, resnet, spelled):
    found = spelled(vit, "nnabla")
    block = "visual/transformer/resblocks/1"
    canonical = "visual.transformer.resblocks.1"
    for theirs, ours in {
        "logit_scale": "logit_scale",
        "text_projection": "text_projection",
        "token_embedding/W": "token_embedding.weight",
        "ln_final/b": "ln_final.bias",
        "visual/conv1/W": "visual.conv1.weight",
        f"{block}/attn/in_proj_W": f"{canonical}.attn.in_proj_weight",
        f"{block}/attn/in_proj_b": f"{canonical}.attn.in_proj_bias",
        f"{block}/attn/out_proj/W": f"{canonical}.attn.out_proj.weight",
        f"{block}/mlp/c_fc/W": f"{canonical}.mlp.c_fc.weight",
    }.items():
        np.testing.assert_array_equal(found[theirs], vit.weights[ours])
    found = spelled(resnet, "nnabla")
    for theirs, ours in {
        "visual/bn1/mean": "visual.bn1.running_mean",
        "visual/layer2/1/bn3/var": "visual.layer2.1.bn3.running_var",
        "visual/layer1/0/downsample/0/W": "visual.layer1.0.downsample.0.weight",
        "visual/attnpool/q_proj/b": "visual.attnpool.q_proj.bias",
    }.items():
        np.testing.assert_array_equal(found[theirs], resnet.weights[ours])


def test_paddle_layout_transposes_linear_layers_only(resnet, spelled):
    found = spelled(resnet, "paddle")
    assert found.keys() == resnet.weights.keys()
    transposed = {name for name in found if not np.array_equal(found[name], resnet.weights[name])}
    for name in transposed:
        np.testing.assert_array_equal(found[name], resnet.weights[name].T)
    expected = {f"visual.attnpool.{part}_proj.weight" for part in "qkvc"}
    for layer in range(3):
        inner = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
        expected |= {f"transformer.resblocks.{layer}.{name}" for name in inner}
    assert transposed == expected


def test_passl_spelling(vit, spelled):
    found, ours = spelled(vit, "passl"), vit.weights
    assert all(name.startswith("model.") for name in found)
    np.testing.assert_array_equal(found["model.logit_scale"], ours["logit_scale"].reshape(1))
    np.testing.assert_array_equal(found["model.visual.class_embedding"][0, 0], ours["visual.class_embedding"])
    np.testing.assert_array_equal(found["model.visual.positional_embedding"][0], ours["visual.positional_embedding"])
    for theirs, name in {
        "model.visual.proj": "visual.proj",
        "model.visual.patch_embed.proj.weight": "visual.conv1.weight",
        "model.visual.norm_pre.weight": "visual.ln_pre.weight",
        "model.visual.norm_post.bias": "visual.ln_post.bias",
        "model.visual.blocks.0.norm1.weight": "visual.transformer.resblocks.0.ln_1.weight",
        "model.transformer.blocks.2.norm2.bias": "transformer.resblocks.2.ln_2.bias",
        "model.transformer.blocks.1.attn.qkv.bias": "transformer.resblocks.1.attn.in_proj_bias",
        "model.token_embedding.weight": "token_embedding.weight",
        "model.positional_embedding": "positional_embedding",
        "model.text_projection": "text_projection",
    }.items():
        np.testing.assert_array_equal(found[theirs], ours[name])
    for theirs, name in {
        "model.visual.blocks.1.attn.qkv.weight": "visual.transformer.resblocks.1.attn.in_proj_weight",
        "model.transformer.blocks.0.attn.proj.weight": "transformer.resblocks.0.attn.out_proj.weight",
        "model.transformer.blocks.0.mlp.fc1.weight": "transformer.resblocks.0.mlp.c_fc.weight",
        "model.transformer.blocks.0.mlp.fc2.weight": "transformer.resblocks.0.mlp.c_proj.weight",
    }.items():
        np.testing.assert_array_equal(found[theirs], ours[name].T)


def test_a_transposed_square_matrix_is_another_file(vit, tmp_path):
    """The shape of a square matrix cannot tell its orientation, so the values must."""
    name = "transformer.resblocks.0.attn.out_proj.weight"
    write(vit, tmp_path / "a.pdparams")
    twisted = ModelFile(vit.weights | {name: vit.weights[name].T}, vit.architecture)
    write(twisted, tmp_path / "b.pdparams")
    assert not np.array_equal(read(tmp_path / "b.pdparams").weights[name], vit.weights[name])
    np.testing.assert_array_equal(read(tmp_path / "a.pdparams").weights[name], vit.weights[name])


def test_the_mixture_of_dtypes_of_the_official_files(vit, tmp_path, assert_equal_weights):
    weights = {
        name: array.astype(np.float16) if name.endswith(("proj_weight", "proj", "c_fc.weight")) else array
        for name, array in vit.weights.items()
    }
    for suffix in SUFFIXES:
        report = write(ModelFile(weights, vit.architecture), tmp_path / f"a{suffix}")
        assert report.dtype == "float16 + float32"
        assert_equal_weights(read(tmp_path / f"a{suffix}").weights, weights)


def test_float64_is_kept_as_it_is(vit, tmp_path, assert_equal_weights):
    weights = vit.weights | {"ln_final.bias": np.linspace(0, 1, 128)}
    for suffix in SUFFIXES:
        write(ModelFile(weights, vit.architecture), tmp_path / f"a{suffix}")
        assert_equal_weights(read(tmp_path / f"a{suffix}").weights, weights)


def test_casting_reports_the_largest_difference(vit, tmp_path):
    write(vit, tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="float16")
    found = read(tmp_path / "b.safetensors")
    expected = max(
        float(np.abs(array.astype(np.float64) - array.astype(np.float16)).max()) for array in vit.weights.values()
    )
    assert report.max_abs_difference == pytest.approx(expected, rel=1e-6)
    assert 0 < report.max_abs_difference < 2e-3
    assert {array.dtype.name for array in found.weights.values()} == {"float16"}
    widened = convert(tmp_path / "b.safetensors", tmp_path / "c.h5", dtype="float32")
    assert widened.max_abs_difference == 0.0
    np.testing.assert_array_equal(
        read(tmp_path / "c.h5").weights["text_projection"], vit.weights["text_projection"].astype(np.float16)
    )


def test_counters_are_never_cast(resnet, tmp_path):
    write(resnet, tmp_path / "a.pt", dtype="float16")
    found = read(tmp_path / "a.pt").weights["visual.bn1.num_batches_tracked"]
    assert found.dtype == np.int64
    assert found == resnet.weights["visual.bn1.num_batches_tracked"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_denormals_stay_bit_exact(vit, suffix, tmp_path):
    array = np.full(128, 1e-40, np.float32)
    array[0] = -0.0
    write(ModelFile(vit.weights | {"ln_final.bias": array}, vit.architecture), tmp_path / f"a{suffix}")
    assert read(tmp_path / f"a{suffix}").weights["ln_final.bias"].tobytes() == array.tobytes()


def test_overflow_names_the_tensor(vit, tmp_path):
    array = np.zeros(128, np.float32)
    array[3] = -70000
    write(ModelFile(vit.weights | {"ln_final.bias": array}, vit.architecture), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype="float16")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pt'}: ln_final.bias holds a value of size 70000, which float16 cannot (at most 65504); "
        "use float32."
    )
    assert not (tmp_path / "b.pt").exists()


def test_the_report_as_plain_data(vit, tmp_path):
    write(vit, tmp_path / "a.pt")
    report = convert(tmp_path / "a.pt", tmp_path / "b.h5").to_dict()
    assert report.pop("seconds") > 0
    assert report == {
        "source": str(tmp_path / "a.pt"),
        "target": str(tmp_path / "b.h5"),
        "beside": (),
        "source_sha256": hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest(),
        "target_sha256": hashlib.sha256((tmp_path / "b.h5").read_bytes()).hexdigest(),
        "tensors": len(vit.weights),
        "parameters": sum(array.size for array in vit.weights.values()),
        "dtype": "float32",
        "layout": "nnabla",
        "prefix": "",
        "left_out": (),
        "assumed": (),
        "max_abs_difference": 0.0,
    }


def test_inspect_a_sound_file(resnet, tmp_path):
    write(resnet, tmp_path / "a.h5", dtype="float16")
    found = inspect(tmp_path / "a.h5").to_dict()
    assert found == {
        "path": str(tmp_path / "a.h5"),
        "size": (tmp_path / "a.h5").stat().st_size,
        "sha256": hashlib.sha256((tmp_path / "a.h5").read_bytes()).hexdigest(),
        "container": "hdf5",
        "entry": "",
        "layout": "nnabla",
        "model": None,
        "architecture": resnet.architecture.to_dict(),
        "assumed": (),
        "prefix": "",
        "left_out": (),
        "tensors": len(resnet.weights),
        "scalars": sum(array.size for array in resnet.weights.values()),
        "dtypes": {"float16": 161, "int64": 22},
        "manifest": True,
        "source_sha256": None,
        "own_vocabulary": False,
        "zeros": (),
        "faults": (),
        "same_shapes": (),
    }
