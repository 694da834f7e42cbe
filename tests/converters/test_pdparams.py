"""Paddle reads what is written, and every variant of file that Paddle and PASSL write is read."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import paddle
import pytest

from clip_core.buffers import from_bfloat16
from converters import pdparams, write
from tests.converters.bare import read


class Flat(paddle.nn.Layer):
    """A layer whose state dictionary has these names and arrays."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        for name, array in arrays.items():
            *path, leaf = name.split(".")
            layer = self
            for part in path:
                if part not in layer._sub_layers:
                    layer.add_sublayer(part, paddle.nn.Layer())
                layer = layer._sub_layers[part]
            if array.dtype == np.int64:
                layer.register_buffer(leaf, paddle.to_tensor(array))
                continue
            parameter = layer.create_parameter(list(array.shape), dtype=str(array.dtype))
            parameter.set_value(array)
            layer.add_parameter(leaf, parameter)


@pytest.mark.parametrize("layout", ["paddle", "openai"])
def test_paddle_reads_what_is_written(any_checkpoint, layout, tmp_path, spelled):
    write(any_checkpoint, tmp_path / "a.pdparams", layout=layout)
    expected = spelled(any_checkpoint, layout)
    found = paddle.load(str(tmp_path / "a.pdparams"))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
        assert found[name].numpy().dtype == array.dtype
        assert tuple(found[name].shape) == array.shape
    blank = Flat({name: np.zeros_like(array) for name, array in expected.items()})
    assert blank.set_state_dict(found) == ([], [])
    for name, tensor in blank.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


def test_passl_reads_what_is_written(vit, tmp_path, spelled):
    write(vit, tmp_path / "a.pdparams", layout="passl")
    found = paddle.load(str(tmp_path / "a.pdparams"))
    assert list(found) == ["state_dict"]
    expected = spelled(vit, "passl")
    blank = Flat({name: np.zeros_like(array) for name, array in expected.items()})
    assert blank.set_state_dict(found["state_dict"]) == ([], [])
    for name, tensor in blank.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_writes_is_read(any_checkpoint, protocol, tmp_path, spelled, assert_equal_weights):
    layer = Flat(spelled(any_checkpoint, "paddle"))
    variants = {
        "flat": layer.state_dict(),
        "nested": {"state_dict": layer.state_dict(), "epoch": 3, "lr_scheduler": {"last_lr": 0.1, "milestones": [1]}},
        "arrays": {"state_dict": {f"model.{k}": v.numpy() for k, v in layer.state_dict().items()}, "epoch": 1},
        "ordered": OrderedDict((k, v.numpy()) for k, v in layer.state_dict().items()),
    }
    for name, variant in variants.items():
        path = tmp_path / f"{name}.pdparams"
        paddle.save(variant, str(path), protocol=protocol)
        found = read(path)
        assert found.layout == "paddle"
        assert_equal_weights(found.weights, any_checkpoint.weights)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_all_four_forms_of_passl(vit, nested, prefix, tmp_path, spelled, assert_equal_weights):
    arrays = {k if prefix else k.removeprefix("model."): v for k, v in spelled(vit, "passl").items()}
    content = {"epoch": 1, "state_dict": arrays, "optimizer": {}, "lr_sheduer": {}} if nested else arrays
    (tmp_path / "epoch_1.pd").write_bytes(pickle.dumps(content, protocol=2))
    found = read(tmp_path / "epoch_1.pd")
    assert found.layout == "passl"
    assert_equal_weights(found.weights, vit.weights)


def test_arrays_in_slices():
    """Above 1 GiB, protocol 2 and 3 of Paddle cut an array into flat slices and say how they belong together."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    flat = array.reshape(-1)
    content = {
        "w@@.0": flat[:7],
        "w@@.1": flat[7:],
        "b": np.ones(2, np.float32),
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
    }
    found = pdparams.read(pickle.dumps(content, protocol=2)).tensors
    assert found.keys() == {"w", "b"}
    np.testing.assert_array_equal(found["w"], array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_kind(protocol):
    generator = np.random.default_rng(0)
    arrays = {
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "fortran": np.asfortranarray(generator.standard_normal((3, 5), np.float32)),
        "half": generator.standard_normal(7).astype(np.float16),
        "double": generator.standard_normal(300),
        "long": np.array([-1, 1 << 40]),
        "strided": generator.standard_normal((6, 6), np.float32)[::2, 1:],
        "eight": np.zeros((1,) * 8, np.float32),
    }
    found = pdparams.read(pickle.dumps(arrays, protocol=protocol)).tensors
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array)


def test_bfloat16_of_paddle(tmp_path):
    tensor = paddle.to_tensor(np.linspace(-3, 3, 11, dtype=np.float32)).astype("bfloat16")
    paddle.save({"a": tensor}, str(tmp_path / "a.pdparams"))
    found = from_bfloat16(pdparams.read((tmp_path / "a.pdparams").read_bytes()).tensors["a"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensor.astype("float32").numpy())
