"""Protocol Buffers and archives of NNabla that are cut, lie about their sizes, or are not what NNabla writes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from checkpoint_attacks import field, varint, zip_bytes

from clip_core.errors import CheckpointError
from converters import nnp, protobuf, read


def parameter(name: bytes = b"a/W", sizes: bytes = b"\2\3", data: bytes = struct.pack("<6f", *range(6))) -> bytes:
    return field(200, field(1, name) + field(20, field(1, sizes)) + field(100, data) + b"\xa8\6\1")


def test_the_plain_parameter_is_read():
    found = protobuf.read(parameter()).tensors
    assert list(found) == ["a/W"]
    np.testing.assert_array_equal(found["a/W"], [[0, 1, 2], [3, 4, 5]])
    archive = nnp.read(zip_bytes([("nnp_version.txt", b"0.1", {}), ("parameter.protobuf", parameter(), {})]))
    np.testing.assert_array_equal(archive.tensors["a/W"], found["a/W"])


def test_other_fields_are_passed_over():
    others = field(100, b"\xff" * 9) + b"\x08\x96\x01" + b"\x09" + bytes(8) + b"\x0d" + bytes(4)
    assert list(protobuf.read(others + parameter() + others).tensors) == ["a/W"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (parameter(sizes=b"\2\4"), r"a/W of shape \(2, 4\) takes 32 bytes; the file has 24"),
        (parameter(data=b""), r"a/W of shape \(2, 3\) takes 24 bytes; the file has 0"),
        (parameter(sizes=b"\1" * 9), "the shape of a/W has 9 dimensions; at most 8"),
        (parameter(sizes=b"\xff" * 9 + b"\1"), "the shape of a/W has 18446744073709551615 in it"),
        (parameter(sizes=varint(1 << 40) * 2), "more than any file holds"),
        (parameter(sizes=b"\0" + varint(1 << 40) * 2, data=b""), "more than any file holds"),
        (parameter(sizes=b"\xff"), "a number in it does not end"),
        (parameter(sizes=b"\xff" * 11), "a number in it does not end"),
        (parameter(name=b"\xff"), "a parameter whose name is not UTF-8"),
        (parameter(name=b"a\x1b[2J"), r"a tensor is named 'a\\x1b\[2J'"),
        (parameter(name=b"a" * 1001), "printable texts of 1 to 1000 letters"),
        (parameter(name=b""), "a tensor is named ''"),
        (parameter() * 2, "two parameters named a/W"),
        (field(200, field(1, b"a") * 2), "a parameter says the same thing twice"),
        (parameter() + b"\xc2\x0c\x05", "a field of 5 bytes does not fit"),
        (parameter() + b"\xc2\x0c" + varint(1 << 62), "a field of 4611686018427387904 bytes does not fit"),
        (parameter() + b"\xc2", "a number in it does not end"),
        (parameter() + b"\x0b", "a field of a kind that there is not"),
        (field(200, field(1, b"a") + b"\xa5\6" + bytes(4)), r"a of shape \(\) takes 4 bytes; the file has 0"),
        (parameter(), "do not look like a CLIP: text_projection is missing"),
        (b"\xc2\x0c", "cut short"),
    ],
)
def test_files_that_nnabla_does_not_write(data, what, tmp_path):
    (tmp_path / "a.protobuf").write_bytes(data)
    with pytest.raises(CheckpointError, match=what):
        read(tmp_path / "a.protobuf")


def test_the_number_of_fields_is_limited(monkeypatch):
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 10)
    with pytest.raises(CheckpointError, match="more than 10 fields"):
        protobuf.read(b"\x08\1" * 11)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("network.nntxt", b"", {})], r"one file of parameters, .* it has none"),
        (
            [("parameter.h5", b"", {}), ("parameter.protobuf", b"", {})],
            "it has several: parameter.h5, parameter.protobuf",
        ),
        ([("parameter.h5", b"x", {})], "the HDF5 file is damaged"),
        ([("parameter.protobuf", b"x", {})], "the file is damaged or cut short"),
        ([("parameter.protobuf", b"x", {"crc": 1})], "does not match its CRC-32"),
        ([("parameter.protobuf", b"x", {"method": 8, "local_method": 8})], "is compressed; it must be stored"),
    ],
)
def test_archives_that_nnabla_does_not_write(members, what, tmp_path):
    (tmp_path / "a.nnp").write_bytes(zip_bytes([("nnp_version.txt", b"0.1", {}), *members]))
    with pytest.raises(CheckpointError, match=what):
        read(tmp_path / "a.nnp")


def test_an_archive_of_another_program_is_named(tmp_path):
    (tmp_path / "a.nnp").write_bytes(zip_bytes([("archive/data.pkl", b"x", {})]))
    with pytest.raises(CheckpointError, match="the file is a PyTorch zip archive; expected an archive of NNabla"):
        read(tmp_path / "a.nnp")
