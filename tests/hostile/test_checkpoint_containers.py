"""Files that are cut, lie about what they are, or are archives that no writer of weights makes."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import tarfile
import zipfile
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from checkpoint_attacks import child, small_checkpoint, state_archive, state_pickle, zip_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_core import files, safetensors
from clip_core.errors import CheckpointError, ClipError
from converters import archives, convert, hdf5, pdparams, read, torch_archive, write

SUFFIXES = [".pt", ".safetensors", ".h5", ".pdparams"]


@pytest.fixture
def sound(tmp_path) -> dict[str, bytes]:
    for suffix in SUFFIXES:
        write(small_checkpoint(), tmp_path / f"sound{suffix}")
    return {suffix: (tmp_path / f"sound{suffix}").read_bytes() for suffix in SUFFIXES}


def refused(path: Path, what: str, data: bytes | None = None) -> None:
    """Reading ends in one CheckpointError that names the file."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=what) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".bin", ".unknown"])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\x80", "none of the known kinds, or cut short"),
        (b"PK\3\4", "cut short|a PyTorch zip archive; expected"),
        (b"\x89HDF\r\n\x1a\n", "damaged or cut short|an HDF5 file; expected"),
        (b"\x80\2}q", "cut short|a pickle"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 100, "text that starts with .* download it again"),
        (b"hello\n", "text that starts with 'hello': download it again"),
        (gzip.compress(b"x" * 100, mtime=0), "compressed by gzip: decompress it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"PK\5\6" + bytes(18), "an empty zip archive"),
        (bytes(4096), "none of the known kinds, or cut short"),
        (b"\xff" * 4096, "none of the known kinds, or cut short"),
    ],
)
def test_files_that_are_no_weights(suffix, data, what, tmp_path):
    refused(tmp_path / f"a{suffix}", what, data)


def test_a_tar_archive(tmp_path):
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("tensors"), io.BytesIO())
    refused(tmp_path / "a.pt", "a tar archive, as PyTorch before 0.2 wrote it")


@pytest.mark.parametrize(("suffix", "real"), list(permutations(SUFFIXES, 2)))
def test_the_wrong_suffix_is_named_with_the_real_kind(suffix, real, sound, tmp_path):
    kinds = {
        ".pt": "a PyTorch zip archive",
        ".h5": "an HDF5 file",
        ".pdparams": "a pickle, as Paddle writes it",
        ".safetensors": "a safetensors file",
    }
    refused(tmp_path / f"a{suffix}", f"the file is {kinds[real]}; expected {kinds[suffix]}; ", sound[real])


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    os.symlink(tmp_path / "loop.pt", tmp_path / "loop.pt")
    os.symlink(tmp_path / "nothing.pt", tmp_path / "broken.pt")
    for path in (tmp_path, tmp_path / "pipe.pt", Path("/dev/zero"), tmp_path / "loop.pt", tmp_path / "broken.pt"):
        with pytest.raises(ClipError, match=re.escape(str(path))):
            read(path)
    with pytest.raises(ClipError, match="name"):
        read("a\0b.pt")


def test_a_file_above_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("converters.reading.MAX_FILE_BYTES", 1000)
    with open(tmp_path / "a.pt", "wb") as file:
        file.truncate(1001)
    with pytest.raises(ClipError, match="has 1001 bytes; at most 1000 are read here"):
        read(tmp_path / "a.pt")


def test_only_weights_files_are_read_whole(tmp_path):
    """Of 15 GiB that are no weights the start is read, and for what memory does not suffice there is a sentence."""
    for name, start in {
        "zeros.pt": b"",
        "page.safetensors": b"<html>" + b" " * 600,
        "large.h5": b"\x89HDF\r\n\x1a\n",
    }.items():
        with open(tmp_path / name, "wb") as file:
            file.write(start)
            file.truncate(15 << 30)
    found = child(
        f"""
        from clip_core.errors import CheckpointError
        from converters import convert, inspect, read
        for name, act in {{"zeros.pt": read, "page.safetensors": inspect, "large.h5": inspect}}.items():
            try:
                act({str(tmp_path)!r} + "/" + name)
            except CheckpointError as error:
                print(error)
        try:
            convert({str(tmp_path / "large.h5")!r}, {str(tmp_path / "b.pt")!r})
        except CheckpointError as error:
            print(error)
        """,
        megabytes=1000,
    ).splitlines()
    assert "zeros.pt: the file is none of the known kinds" in found[0]
    assert "page.safetensors: the file is text that starts with '<html>'" in found[1]
    large = tmp_path / "large.h5"
    short = f"{large} needs more memory than there is; close other programs, or use a machine with more."
    assert found[2:] == [short, short]
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_everywhere(suffix, sound, tmp_path):
    """A file cut at any place is refused: at every byte of its first kilobyte, and in steps after that."""
    data, path = sound[suffix], tmp_path / f"cut{suffix}"
    ends = sorted({*range(0, 300, 7), *range(300, len(data), 509), *range(len(data) - 40, len(data))})
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flip_everywhere(suffix, sound, tmp_path):
    """A flipped bit is refused, or is where it changes nothing: the weights are never silently different."""
    result = child(
        f"""
        import sys
        from pathlib import Path
        from checkpoint_attacks import small_checkpoint
        from clip_core.errors import CheckpointError
        from converters import read
        data = bytearray(Path({str(tmp_path / ("sound" + suffix))!r}).read_bytes())
        expected = {{name: array.tobytes() for name, array in small_checkpoint().weights.items()}}
        path = Path({str(tmp_path / ("flip" + suffix))!r})
        refused = 0
        for place in sorted({{*range(0, min(len(data), 2500), 17), *range(0, len(data), 131)}}):
            data[place] ^= 1 << place % 8
            path.write_bytes(data)
            data[place] ^= 1 << place % 8
            try:
                found = read(path)
            except CheckpointError:
                refused += 1
            else:
                assert {{name: array.tobytes() for name, array in found.weights.items()}} == expected, place
        print(refused)
        """
    )
    assert int(result) > 50


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_flipped_bit_of_a_weight_is_named(suffix, sound, tmp_path):
    needle = small_checkpoint().weights["ln_final.bias"].tobytes()
    data = bytearray(sound[suffix])
    place = data.index(needle)
    data[place] ^= 1
    what = "does not match its CRC-32" if suffix == ".pt" else r"ln_final\.bias does not match its SHA-256 in the manif"
    refused(tmp_path / f"a{suffix}", what, bytes(data))
    with pytest.raises(CheckpointError, match=what):
        convert(tmp_path / f"a{suffix}", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_changed_manifest(suffix, sound, tmp_path):
    changed = sound[suffix].replace(b"quick_gelu", b"quick_golu")
    assert changed != sound[suffix]
    what = "does not match its CRC-32" if suffix == ".pt" else "the manifest does not match its own SHA-256"
    refused(tmp_path / f"a{suffix}", what, changed)


def test_the_hashed_bytes_are_the_parsed_ones(tmp_path, monkeypatch):
    """A file that is replaced while it is read: one look at it decides everything."""
    path = tmp_path / "a.safetensors"
    first = write(small_checkpoint(), path).target_sha256
    real = files.open_regular

    @contextmanager
    def open_then_replace(*arguments):
        with real(*arguments) as file:
            (tmp_path / "other").write_bytes(b"something else")
            os.replace(tmp_path / "other", path)
            yield file

    monkeypatch.setattr(files, "open_regular", open_then_replace)
    assert read(path).sha256 == first


def member_names(*names: str | bytes) -> bytes:
    return zip_bytes([(name, b"x", {}) for name in names])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (member_names("a/x"), r"one folder with a data\.pkl, as PyTorch writes it; it has none"),
        (member_names("data.pkl"), "it has none"),
        (member_names("a/data.pkl", "b/data.pkl"), "it has several: a, b"),
        (member_names("a/data.pkl", "a/data.pkl"), r"two members named a/data\.pkl"),
        *(
            (member_names("a/data.pkl", name), "weights files have no such names")
            for name in ("a/../../x", "/abs", "C:\\x", "a\\b", "a\0b", "a//b", "a/./b", "a/", "a\nb", "x" * 5000)
        ),
        (member_names("a/data.pkl", b"a/\xff\xfe"), "which is not UTF-8"),
        (zip_bytes([("a/data.pkl", b"x", {"flags": 0x1})]), r"a/data\.pkl is encrypted"),
        (zip_bytes([("a/data.pkl", b"x", {"flags": 0x40})]), r"a/data\.pkl is encrypted"),
        (zip_bytes([("a/data.pkl", b"x", {"crc": 1})]), r"a/data\.pkl does not match its CRC-32"),
        (zip_bytes([("a/data.pkl", b"x", {"local_name": "a/data.pk2"})]), "two headers of .* say different things"),
        (zip_bytes([("a/data.pkl", b"x", {"local_size": 2})]), "two headers of .* say different things"),
        (zip_bytes([("a/data.pkl", b"x", {"local_method": 8})]), "two headers of .* say different things"),
        (zip_bytes([("a/data.pkl", b"x", {"method": 8, "local_method": 8})]), "is compressed; it must be stored"),
        (zip_bytes([("a/data.pkl", b"x", {"size": 9, "local_size": 9})]), "is stored in 1 bytes but 9 long"),
        (zip_bytes([("a/data.pkl", b"x", {}), ("b", b"y", {"offset": 0})]), "say different things"),
        (b"#!/bin/sh\n" + member_names("a/data.pkl"), "none of the known kinds"),
        (state_pickle({}) + member_names("a/data.pkl"), "a pickle"),
        (b"PK\3\4" + bytes(26) + member_names("a/data.pkl"), "not where it says|does not start with a member"),
        (member_names("a/data.pkl") + b"more", "or something follows it"),
    ],
)
def test_archives_that_no_writer_makes(data, what, tmp_path):
    refused(tmp_path / "a.pt", what, data)


def test_a_member_that_the_directory_does_not_list(tmp_path):
    """Between two others: a reader that goes from header to header would see it."""
    data = zip_bytes([("a/data.pkl", b"x", {}), ("a/y", b"y", {}), ("a/z", b"z", {})])
    start = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    directory = data[:start] + data[start + 46 + len("a/y") : -22]
    size, place = struct.unpack("<2L", data[-10:-2])
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, size - 46 - len("a/y"), place, 0)
    refused(tmp_path / "a.pt", "data before its member a/z that belongs to none", directory + end)


def test_an_offset_beyond_every_file(tmp_path):
    data = zip_bytes([("a/data.pkl", b"x", {"offset": 0xFFFFFFFF})])
    start = data.index(b"PK\1\2")
    extra = struct.pack("<HHQ", 1, 8, (1 << 64) - 1)
    entry = data[start : start + 30] + struct.pack("<H", len(extra)) + data[start + 32 : -22] + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)
    refused(tmp_path / "a.pt", r"member a/data\.pkl starts behind the file", data[:start] + entry + end)


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    refused(tmp_path / "a.pt", "has 11 members; at most 10", member_names("a/data.pkl", *(f"a/{n}" for n in range(10))))


def test_a_hundred_thousand_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for number in range(100_000):
            archive.writestr(zipfile.ZipInfo(f"a/{number}"), b"")
    refused(tmp_path / "a.pt", "has 100000 members; at most 20000")


def test_a_large_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "MAX_PICKLE_BYTES", 100)
    refused(tmp_path / "a.pt", r"a/data\.pkl has 101 bytes; at most 100", zip_bytes([("a/data.pkl", bytes(101), {})]))


def test_bombs_are_not_inflated(tmp_path):
    """A deflated storage of 1 GB in 1 MB, and an archive in an archive: refused in little memory."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"x")
        with archive.open("a/data/0", "w") as file:
            for _ in range(64):
                file.write(bytes(1 << 24))
    nested = zip_bytes([("a/data.pkl", (tmp_path / "bomb.pt").read_bytes(), {})])
    (tmp_path / "nested.pt").write_bytes(nested)
    stored = state_archive({"w": ("FloatStorage", 4, (4,), (1,), 0)}, storages={"0": bytes(16)}, deflated=("a/data/0",))
    (tmp_path / "storage.pt").write_bytes(stored)
    found = child(
        f"""
        from clip_core.errors import CheckpointError
        from converters import read
        for name in ("bomb", "nested", "storage"):
            try:
                read({str(tmp_path)!r} + f"/{{name}}.pt")
            except CheckpointError as error:
                print(str(error).split(": ", 1)[1])
        """,
        megabytes=600,
    ).splitlines()
    assert found[0].startswith("the archive's member a/data.pkl is compressed")
    assert "contains the operation" in found[1]
    assert found[2].startswith("the archive's member a/data/0 is compressed")


def test_a_big_endian_archive(tmp_path):
    refused(tmp_path / "a.pt", "numbers are big-endian", state_archive({}, members={"a/byteorder": b"big"}))


HEADERS = [
    (b"", "not JSON"),
    (b"[]", "none of the known kinds"),
    (b"{" * 100_000, "not JSON"),
    (b'{"a":' * 100_000, "not JSON"),
    (b"{\xff}", "not JSON"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": 1}', "entry for a is not a dtype, a shape and data_offsets"),
    (b'{"a": {"dtype": "F32", "shape": [1]}}', "is not a dtype, a shape and data_offsets"),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}', "is not a dtype, a shape"),
    (b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}', "a has dtype 'F8_E4M3'"),
    (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 1]}}', "a has dtype an object of the type list"),
    (b'{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}', "a has dtype 'C64'"),
    (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "must be whole numbers of at least 0"),
    (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "must be whole numbers"),
    (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "must be whole numbers"),
    (b'{"a": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}}', "9 dimensions; at most 8"),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 5]}}', "takes 4 bytes; its data_offsets give it 5"),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "data_offsets of a are not two whole numbers"),
    (
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        "data_offsets of a has -4 in it; it must be whole numbers",
    ),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "expected 0: a hole or an overlap"),
    (
        b'{"a": {"dtype": "F32", "shape": [2147483648, 2147483648, 4], "data_offsets": [0, 0]}}',
        r"the shape of a is \(2147483648, 2147483648, 4\), more than any file holds",
    ),
    (
        b'{"a": {"dtype": "F32", "shape": [0, 9223372036854775808], "data_offsets": [0, 0]}}',
        "must be whole numbers .* at",
    ),
    (b'{"a": {"dtype": "F32", "shape": [0, 1099511627776, 2], "data_offsets": [0, 0]}}', "more than any file holds"),
    (
        b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 4000 + b'], "data_offsets": [0, 4]}}',
        "a has a number of 13288 bits",
    ),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1' + b"0" * 4000 + b"]}}", "a number of 13288 bits"),
    (b'{"a\\u001b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', r"a tensor is named 'a\\x1b\[2J'"),
    (b'{"' + b"a" * 1001 + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "of 1 to 1000 letters"),
    (b'{"a": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4000000]}}', "it is cut short"),
    (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', "a name occurs twice"),
    (b'{"__metadata__": {"x": 1}}', "does not map names to texts"),
    (b'{"__metadata__": {"triclip": "{}"}}', "the manifest cannot be read"),
    (b'{"__metadata__": {"triclip": "["}}', "the manifest cannot be read"),
    (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "12 bytes follow the last tensor"),
    (
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},'
        b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        "a hole or an overlap",
    ),
]


@pytest.mark.parametrize(("header", "what"), HEADERS, ids=range(len(HEADERS)))
def test_safetensors_headers(header, what, tmp_path):
    data = struct.pack("<Q", len(header)) + header + bytes(0 if b"triclip" in header else 16)
    if header[:1] != b"{":
        what = "none of the known kinds"
    refused(tmp_path / "a.safetensors", what, data)


def test_a_large_header_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 10)
    refused(
        tmp_path / "a.safetensors",
        "said to be 11 bytes long; at most 10",
        struct.pack("<Q", 11) + b'{"a":     1}',
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["F32", "dtype", "shape"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
    body=st.binary(max_size=16),
)
def test_any_header_is_read_or_refused(header, body):
    text = json.dumps(header).encode()
    try:
        found = safetensors.read(struct.pack("<Q", len(text)) + text + body)
    except CheckpointError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.tensors.values())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"PK\3\4", b"\x80\2", b"\x80\4", b"\x89HDF\r\n\x1a\n"]))
def test_any_bytes_are_refused(data, start):
    module = next(module for module in (torch_archive, hdf5, pdparams) if module.recognise(start))
    try:
        content = module.read(start + data)
    except CheckpointError:
        return
    assert content.tensors == {}
