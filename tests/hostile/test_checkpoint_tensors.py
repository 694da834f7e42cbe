"""Tensors whose sizes, strides and offsets do not fit their storage, and dtypes that are no weights."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_attacks import persistent_id, small_checkpoint, state_archive, state_pickle, tensor
from safetensors.numpy import save_file

from clip_core.errors import CheckpointError
from converters import ModelFile, read, torch_archive, write


def archive(kind="FloatStorage", count=6, size=(2, 3), stride=(3, 1), offset=0, storage=bytes(24)) -> bytes:
    return state_archive({"w": (kind, count, size, stride, offset)}, storages={"0": storage})


def test_the_plain_case_is_read():
    found = torch_archive.read(archive(storage=np.arange(6, dtype=np.float32).tobytes())).tensors["w"]
    np.testing.assert_array_equal(found, [[0, 1, 2], [3, 4, 5]])
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        ((), (), 2),
        ((0,), (1,), []),
        ((0, 3), (1, 1), np.zeros((0, 3))),
        ((1, 1, 1, 1, 1, 1, 1, 1), (9,) * 8, np.full((1,) * 8, 2)),
        ((2, 2), (1, 2), [[2, 4], [3, 5]]),
        ((2,), (3,), [2, 5]),
    ],
)
def test_small_and_strided_tensors(size, stride, expected):
    data = np.arange(6, dtype=np.float32).tobytes()
    found = torch_archive.read(archive(size=size, stride=stride, offset=2, storage=data)).tensors["w"]
    assert found.shape == size
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"storage": bytes(20)}, "has 20 bytes; its pickle declares 6 elements of 4 bytes"),
        ({"storage": bytes(28)}, "has 28 bytes; its pickle declares 6 elements of 4 bytes"),
        ({"count": -6}, "declares -6 elements"),
        ({"count": 1 << 62}, "declares 4611686018427387904 elements"),
        ({"offset": -1}, "the offset of a tensor is -1; expected a whole number of at least 0"),
        ({"offset": 1}, "ends at element 7 of a storage of 6"),
        ({"offset": 1 << 62}, "ends at element"),
        ({"offset": 1 << 100}, "ends at element 1267650600228229401496703205382 of"),
        ({"size": (-2, 3)}, "must be whole numbers of at least 0"),
        ({"stride": (-3, 1)}, "must be whole numbers of at least 0"),
        ({"size": (3, 3)}, "ends at element 9"),
        ({"stride": (4, 1)}, "ends at element 7"),
        ({"stride": (1 << 62, 1)}, "the strides of a tensor has 4611686018427387904 in it"),
        ({"size": (1 << 32, 1 << 32), "stride": (1 << 32, 1)}, "more than any file holds"),
        ({"size": (1 << 63,), "stride": (1,)}, "the shape of a tensor has 9223372036854775808 in it"),
        ({"size": (0, 1 << 63), "stride": (1, 1)}, "the shape of a tensor has 9223372036854775808 in it"),
        ({"size": (1 << 40,), "stride": (0,)}, "overlaps itself"),
        ({"size": (2, 3), "stride": (1, 1)}, "overlaps itself"),
        ({"size": (2, 3), "stride": (2, 1)}, "overlaps itself"),
        ({"size": (2,)}, "1 sizes and 2 strides"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "9 dimensions; at most 8"),
        ({"kind": "ComplexFloatStorage"}, r"tensors of torch\.ComplexFloatStorage"),
        ({"kind": "QInt8Storage"}, r"tensors of torch\.QInt8Storage"),
        ({"kind": "UntypedStorage"}, r"tensors of torch\.UntypedStorage"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(change, what, tmp_path):
    (tmp_path / "a.pt").write_bytes(archive(**change))
    with pytest.raises(CheckpointError, match=what) as caught:
        read(tmp_path / "a.pt")
    assert len(str(caught.value)) < 500


def test_many_tensors_of_one_storage(tmp_path):
    """A thousand names for the same megabyte: copies of them would be a gigabyte."""
    count = 1 << 18
    view = tensor(persistent_id("FloatStorage", "0", count), (count,), (1,), 0)
    stream = state_pickle({f"w{number}": view for number in range(1000)})
    (tmp_path / "a.pt").write_bytes(state_archive({}, storages={"0": bytes(4 * count)}, pickle=stream))
    with pytest.raises(CheckpointError, match="together are more than 2 times as large as the file"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64", "bool"])
def test_integer_weights_are_named(dtype, tmp_path):
    weights = small_checkpoint().weights | {"ln_final.bias": np.zeros(8, dtype)}
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"ln_final\.bias has dtype {dtype}, expected float32, float16 or float64"
    ):
        read(tmp_path / "a.safetensors")


def test_a_tensor_of_more_axes_is_named(tmp_path):
    weights = small_checkpoint().weights
    save_file(weights | {"logit_scale": np.zeros((2,), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"logit_scale has shape \(2,\), expected \(\)"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_float16_cannot_hold(value, tmp_path):
    weights = small_checkpoint().weights | {"ln_final.bias": np.full(8, value, np.float32)}
    with pytest.raises(CheckpointError, match=r"ln_final\.bias holds"):
        write(ModelFile(weights, small_checkpoint().architecture), tmp_path / "a.pt", dtype="float16")
    assert list(tmp_path.iterdir()) == []
