"""Paddle's files that hold something other than named arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from checkpoint_attacks import small_checkpoint, text

from clip_core.errors import CheckpointError
from converters import pdparams, read, write

ARRAY = np.arange(4, dtype=np.float32)


def refused(tmp_path, data: bytes, what: str) -> None:
    (tmp_path / "a.pdparams").write_bytes(data)
    with pytest.raises(CheckpointError, match=what) as caught:
        read(tmp_path / "a.pdparams")
    assert "\n" not in str(caught.value)


class StaticGraphTensor:
    """A tensor as Paddle's static graph pickles it: by asking the reader to evaluate a text."""

    def __reduce__(self):
        return eval, ("data", {"data": ARRAY})


@pytest.mark.parametrize("protocol", [2, 4])
def test_static_graph_tensors_are_not_evaluated(protocol, tmp_path):
    data = pickle.dumps({"w": StaticGraphTensor()}, protocol=protocol)
    what = r"refers to (builtins|__builtin__)\.eval.* it was not run\. If you trust this file, load it with Paddle"
    refused(tmp_path, data, what)


def test_a_payload_that_writes_a_file(tmp_path):
    class Payload:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",)

    for content in (Payload(), {"x": Payload()}, {"model": Payload()}, {"w.x": ARRAY, "visual.proj": Payload()}):
        refused(tmp_path, pickle.dumps(content, protocol=4), r"refers to builtins\.exec, .*; it was not run")
    # Beside the weights it is passed over, and does not run either.
    assert list(pdparams.read(pickle.dumps({"w.x": ARRAY, "y": Payload()}, protocol=4)).tensors) == ["w.x"]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (ARRAY, "the file holds one tensor, not a dictionary of weights"),
        ([ARRAY], "the file holds an object of the type list, not a dictionary of weights"),
        (None, "the file holds None, not a dictionary of weights"),
        ({}, "the file holds no weights: .*; its entries are none"),
        ({"state_dict": [ARRAY]}, "the file holds no weights: .*; its entries are 'state_dict'"),
        ({"w": 1.5}, "the file holds no weights: .*; its entries are 'w'"),
        ({"w": [ARRAY]}, "the file holds no weights"),
        ({"w": ("name", 3)}, "the file holds no weights"),
        ({"w": {"w": ARRAY}}, "the file holds no weights"),
        ({"w.x": ARRAY, "w.y": 1.5}, "'w.y' is 1.5, where a tensor is expected"),
        ({"w.x": ARRAY, "logit_bias": -10}, "'logit_bias' is -10, where a tensor is expected"),
        ({"w.x": ARRAY, "w.y": [ARRAY]}, "'w.y' is an object of the type list, where a tensor is expected"),
        ({3: ARRAY}, "a tensor has a name that is not a text"),
        ({"w": ARRAY, "\x1b[31mred": ARRAY}, r"a tensor is named '\\x1b\[31mred'; names are printable texts"),
        ({"w": ARRAY.astype(">f4")}, "is not little-endian"),
        ({"w": ARRAY.astype(np.complex64)}, "an array of the pickle has dtype 'c8'"),
        ({"w": np.array(["a"])}, "an array of the pickle has dtype 'U1'"),
        ({"w": np.zeros(1, "f4,f4")}, "an array of the pickle has dtype 'V8'"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": 1}, "is not a dictionary"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": {"w": 1}}, "is not a list of slices"),
        ({"b": ARRAY, "UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 2), "slices": ["a"]}}}, "are not all there"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": {"w": {"OriginShape": (5,), "slices": ["a"]}}}, "do not make an array"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": {"w": {"OriginShape": (4,), "slices": ["a", "a"]}}}, "not all there"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": {"w": {"OriginShape": (-4,), "slices": ["a"]}}}, "of at least 0"),
        ({"a": ARRAY, "UnpackBigParamInfor@@": {"w": {"OriginShape": (4,), "slices": [["a"]]}}}, "not all there"),
    ],
)
def test_other_content(content, what, protocol, tmp_path):
    refused(tmp_path, pickle.dumps(content, protocol=protocol), what)


def array_pickle(shape: bytes = b"K\4\x85", dtype: bytes = b"f4", data: bytes = ARRAY.tobytes(), order: bytes = b"<"):
    """A dictionary of one array, each part given by its own operations."""
    return (
        b"\x80\4}" + text("w") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R(K\1" + shape
        + b"cnumpy\ndtype\n" + text(dtype.decode()) + b"\x89\x88\x87R(K\3" + text(order.decode()) + b"NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\0tb\x89" + b"C" + bytes([len(data)]) + data + b"tbs."
    )  # fmt: skip


def test_the_plain_array_is_read():
    np.testing.assert_array_equal(pdparams.read(array_pickle()).tensors["w"], ARRAY)


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (array_pickle(shape=b"K\5\x85"), r"an array of shape \(5,\) and dtype float32 does not have as many bytes"),
        (array_pickle(shape=b"J\xff\xff\xff\xff\x85"), "must be whole numbers of at least 0"),
        (array_pickle(shape=b"K\4"), "must be whole numbers"),
        (array_pickle(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\4\x86"), r"must be whole numbers .* at most 2\^40"),
        (array_pickle(shape=b"\x8a\xff" + b"\x7f" * 255 + b"\x85"), "the shape of an array has a number of 2039 bits"),
        (array_pickle(shape=b"K\0\x8a\x05\0\0\0\0\1\x8a\x05\0\0\0\0\1\x87"), "more than any file holds"),
        (array_pickle(shape=b"(" + b"K\1" * 9 + b"t"), "9 dimensions; at most 8"),
        (array_pickle(dtype=b"O8"), "an array of the pickle has dtype 'O8'"),
        (array_pickle(dtype=b"f8"), "does not have as many bytes"),
        (array_pickle(order=b">"), "is not little-endian"),
        (array_pickle(data=b""), "does not have as many bytes"),
        (b"\x80\2}" + text("w") + b"cnumpy\nndarray\n)\x81s.", "an array of the pickle is not a whole array"),
        (b"\x80\2}" + text("w") + b"cnumpy.core.multiarray\n_reconstruct\n)Rs.", "is not a plain array"),
        (b"\x80\2}" + text("w") + b"cnumpy\ndtype\n)Rs.", "a dtype of the pickle is not made of a text"),
        (b"\x80\2}" + text("w") + b"cnumpy\ndtype\n]\x85Rs.", "a dtype of the pickle is not made of a text"),
        (b"\x80\2}" + text("w") + b"c_codecs\nencode\n" + text("\u20ac") + text("latin1") + b"\x86Rs.", "damaged near"),
        (b"\x80\2}" + text("w") + b"c_codecs\nencode\n" + text("a") + text("utf-7") + b"\x86Rs.", "written as Latin-1"),
        (b"\x80\2}" + text("w") + b"c__builtin__\nbytes\nK\5\x85Rs.", "written as Latin-1"),
        (b"\x80\2}" + text("w") + b"cbuiltins\ntuple\nK\5\x85Rs.", "a tuple of the pickle is not made of a sequence"),
        (
            b"\x80\4}" + text("w") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87Rs.",
            "an array of the pickle is not a whole array",
        ),
    ],
)
def test_arrays_that_are_none(stream, what, tmp_path):
    refused(tmp_path, stream, what)


def test_a_missing_name_table_is_legal():
    found = pdparams.read(pickle.dumps({"w": ARRAY}, protocol=4)).tensors
    assert list(found) == ["w"]
    table = {"StructuredToParameterName@@": {"w": "linear_0.w_0"}}
    assert list(pdparams.read(pickle.dumps({"w": ARRAY} | table, protocol=4)).tensors) == ["w"]


def test_a_manifest_that_is_cut_or_moved(tmp_path):
    write(small_checkpoint(), tmp_path / "a.pdparams")
    data = (tmp_path / "a.pdparams").read_bytes()
    end = 7 + int.from_bytes(data[3:7], "little")
    refused(tmp_path, data[:3] + b"\xff\xff\xff\x7f" + data[7:], "the manifest in the pickle is damaged or cut short")
    refused(tmp_path, data[:end] + b"1" + data[end + 1 :], "the manifest in the pickle is damaged or cut short")
    refused(tmp_path, data[: end - 1] + b"\xff" + data[end:], "the manifest is not UTF-8")
