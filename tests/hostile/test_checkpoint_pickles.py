"""Pickles that want to run something, to take memory, or to be understood in two ways. Nothing of them ever runs."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from checkpoint_attacks import child, persistent_id, state_archive, state_pickle, tensor, text, zip_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core import pickles
from clip_core.errors import CheckpointError
from converters import pdparams, read, torch_archive

GLOBALS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("importlib", "import_module"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch", "FloatStorage.evil"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy", "load"),
    ("collections", "namedtuple"),
    ("__torch__evil", "Module"),
    ("__torch__evil.x", "Module"),
    ("__torch", "Module"),
    ("torchx", "FloatStorage"),
    ("", ""),
]
PADDLE_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text("b") + b"\x87R(K\1K\1\x85cnumpy\ndtype\n"
    + text("f4") + b"\x89\x88\x87R\x89c_codecs\nencode\n" + text("\0\0\0\0") + text("latin1") + b"\x86Rtb"
)  # fmt: skip
KINDS = {"script": ".pt", "state": ".pt", "paddle": ".pdparams"}


def file_of(kind: str, stream: bytes) -> bytes:
    """A file of a kind around a pickle."""
    if kind == "paddle":
        return stream
    return zip_bytes([("a/data.pkl", stream, {}), *([("a/constants.pkl", b"x", {})] if kind == "script" else [])])


def refused(tmp_path, kind: str, stream: bytes, what: str) -> None:
    path = tmp_path / f"a{KINDS[kind]}"
    path.write_bytes(file_of(kind, stream))
    with pytest.raises(CheckpointError, match=what) as caught:
        read(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_globals_are_refused_by_name(kind, module, name, tmp_path):
    canary = tmp_path / "canary"
    call = f"touch {canary}" if name == "system" else f"open({str(canary)!r}, 'w')"
    stream = b"\x80\2" + f"c{module}\n{name}\n(".encode() + text(call) + b"tR."
    refused(tmp_path, kind, stream, f"refers to {module}\\.{name}, which weights files have no use for")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["state", "paddle"])
@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_globals_beside_the_weights_are_passed_over(kind, module, name, tmp_path):
    """Called, made by its class, given a state and entries: nothing of it is built, and the weights are read."""
    canary = tmp_path / "canary"
    target = f"c{module}\n{name}\n".encode()
    call = f"touch {canary}" if name == "system" else f"open({str(canary)!r}, 'w')"
    made = target + text(call) + b"\x85R" + text(call) + b"b" + text("key") + text(call) + b"s" + text(call) + b"a"
    weight = tensor(persistent_id("FloatStorage", "0", 1), (1,), (1,), 0) if kind == "state" else PADDLE_ARRAY
    entries = {"called": made, "made": target + b")\x81" + text(call) + b"b", "itself": target, "a.b": weight}
    stream = state_pickle(entries)
    if kind == "paddle":
        found = pdparams.read(stream)
    else:
        found = torch_archive.read(zip_bytes([("a/data.pkl", stream, {}), ("a/data/0", bytes(4), {})]))
    assert {name: array.tolist() for name, array in found.tensors.items()} == {"a.b": [0]}
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["script", "state"])
def test_torchscript_classes_belong_to_torchscript_only(kind, tmp_path):
    stream = b"\x80\2c__torch__.A\nModule\n)R."
    what = "calls something that is not a function" if kind == "script" else r"refers to __torch__\.A\.Module"
    refused(tmp_path, kind, stream, what)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("suffix", [".pt", ".pdparams"])
def test_what_a_real_attack_looks_like(protocol, suffix, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    stream = pickle.dumps({"state_dict": {"a": np.zeros(2), "b": Attack()}}, protocol=protocol)
    (tmp_path / f"a{suffix}").write_bytes(stream if suffix == ".pdparams" else zip_bytes([("a/data.pkl", stream, {})]))
    with pytest.raises(CheckpointError):
        read(tmp_path / f"a{suffix}")
    assert not (tmp_path / "canary").exists()
    pickle.loads(stream)  # noqa: S301 - the attack works where it is let in
    assert (tmp_path / "canary").exists()


OPERATIONS = {
    "STACK_GLOBAL": b"\x80\2" + text("os") + text("system") + b"\x93.",
    "INST": b"\x80\2(ios\nsystem\n.",
    "OBJ": b"\x80\2(}o.",
    "EXT1": b"\x80\2\x82\x01.",
    "EXT2": b"\x80\2\x83\x01\x00.",
    "EXT4": b"\x80\2\x84\x01\x00\x00\x00.",
    "NEWOBJ_EX": b"\x80\2)}\x92.",
    "PERSID": b"\x80\2Pabc\n.",
    "DUP": b"\x80\2}2.",
    "POP": b"\x80\2}}0.",
    "LONG4": b"\x80\2\x8b\xff\xff\xff\x7f.",
    "STRING": b"\x80\2S'abc'\n.",
    "BINSTRING": b"\x80\2T\x01\x00\x00\x00a.",
    "FRAME": b"\x80\2\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "BYTEARRAY8": b"\x80\5\x96\x00\x00\x00\x00\x00\x00\x00\x00.",
    "NEXT_BUFFER": b"\x80\5\x97.",
    "one that no pickle has": b"\x80\2\xff.",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_off_the_list(kind, operation, tmp_path):
    of_python = {
        "STACK_GLOBAL": r"refers to os\.system",
        "FRAME": "a frame does not end where it says",
        "NEWOBJ_EX": "damaged near byte|an object of something that is not a class",
        "BYTEARRAY8": "an object of the type memoryview, not a dictionary",
    }
    what = f"contains the operation {operation} at byte"
    refused(tmp_path, kind, OPERATIONS[operation], what if kind == "script" else of_python.get(operation, what))


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"\x80\2}.}.", "2 bytes follow the end of the pickle"),
        (b"\x80\2}.\x80\2}.", "4 bytes follow"),
        (b"\x80\2}", "cut short"),
        (b"\x80\2", "cut short"),
        (b"\x80\2.", "does not end with one object"),
        (b"\x80\2}}.", "does not end with one object"),
        (b"\x80\2(}.", "does not end with one object"),
        (b"\x80\2}\x80\2.", "starts a second time"),
        (b"\x80\2h\x07.", "damaged near byte"),
        (b"\x80\2s.", "damaged near byte"),
        (b"\x80\2t.", "damaged near byte"),
        (b"\x80\2\x87.", "damaged near byte"),
        (b"\x80\2cnumpy\nndarray", "the name of a global does not end|refers to"),
        (b"\x80\2cos" + b"x" * 2000 + b"\n\n.", "the name of a global does not end"),
        (b"\x80\2X\xff\xff\xff\x7fabc.", "cut short: 2147483647 bytes are expected"),
        (b"\x80\2X\1\0\0\0\xff.", "damaged near byte"),
        (b"\x80\2}]]s.", "holds no weights: .* its entries are none"),
        (b"\x80\2}))s.", "holds no weights"),
        (b"\x80\2}(" + text("a") + b"NN" + b"u.", "a key without a value"),
        (b"\x80\2}(" + text("a") + b"N" + text("a") + b"Nu.", "two entries 'a'"),
        (b"\x80\2](NNu.", "an item of something that is not a dictionary"),
        (b"\x80\2}Na.", "appends to something that is not a list"),
        (b"\x80\2)Na.", "appends to something that is not a list"),
        (b"\x80\2]}b.", "sets the state of something that has none"),
        (b"\x80\2ccollections\nOrderedDict\n}b.", "sets the state of something that has none"),
        (b"\x80\2ccollections\nOrderedDict\n(NtR.", "is not made empty"),
        (b"\x80\2})R.", "calls something that is not a function"),
        (b"\x80\2ccollections\nOrderedDict\nNR.", "calls something that is not a function"),
    ],
)
@pytest.mark.parametrize("kind", ["state", "paddle"])
def test_damaged_streams(kind, stream, what, tmp_path):
    refused(tmp_path, kind, stream, what)


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"\x80\2}.", "does not hold a module"),
        (b"\x80\2c__torch__\nA\n)\x81Nb.", "not one dictionary"),
        (b"\x80\2c__torch__\nA\n)\x81}b}b.", "does not hold|not one dictionary|look like a CLIP"),
        (b"\x80\2ctorch\nFloatStorage\n}b.", "sets the state of something that has none"),
        (b"\x80\2ctorch\nFloatStorage\n)\x81.", "makes an object of something that is not a class"),
        (
            b"\x80\2c__torch__\nA\n)\x81}"
            + text("logit_bias")
            + tensor(persistent_id("ComplexFloatStorage", "0", 1), (), (), 0)
            + b"sb.",
            r"the file holds tensors of torch\.ComplexFloatStorage",
        ),
        (b"\x80\2c__torch__\nA\n(Nt\x81.", "makes an object of something that is not a class"),
        # A module that contains itself.
        (b"\x80\2c__torch__\nA\n)\x81q\x00}(" + text("a") + b"h\x00ub.", "contain themselves, or are far too many"),
    ],
)
def test_damaged_modules(stream, what, tmp_path):
    refused(tmp_path, "script", stream, what)


def test_modules_that_double_at_every_level(tmp_path):
    """Sixty levels, each holding the one below twice: 2^60 paths from 60 modules."""
    stream = b"\x80\2c__torch__\nA\n)\x81}(" + text("x") + b"c__torch__\nA\n)\x81q\x00"
    for level in range(1, 60):
        below, here = bytes([level - 1]), bytes([level])
        stream += text(f"x{level}") + b"c__torch__\nA\n)\x81q" + here
        stream += b"}(" + text("a") + b"h" + below + text("b") + b"h" + below + b"ub"
    refused(tmp_path, "script", stream + b"ub.", "far too many")


PERSISTENT = {
    "not a tuple": text("storage"),
    "four parts": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"t",
    "another word": persistent_id("FloatStorage", "0", 1)[:-1].replace(b"storage", b"garbage"),
    "a type that is none": b"(" + text("storage") + text("FloatStorage") + text("0") + text("cpu") + b"K\1t",
    "a path": persistent_id("FloatStorage", "../data.pkl", 1)[:-1],
    "superscript digits": persistent_id("FloatStorage", "\u00b2", 1)[:-1],
    "a number as key": b"(" + text("storage") + b"ctorch\nFloatStorage\nK\0" + text("cpu") + b"K\1t",
    "a text as count": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + text("1") + b"t",
    "true as count": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"\x88t",
    "a storage that is not there": persistent_id("FloatStorage", "7", 1)[:-1],
}


@pytest.mark.parametrize("case", PERSISTENT)
def test_persistent_ids(case, tmp_path):
    stream = state_pickle({"w": PERSISTENT[case] + b"Q"})
    (tmp_path / "a.pt").write_bytes(state_archive({}, storages={"0": bytes(4)}, pickle=stream))
    what = "a persistent id of the pickle|has the key|the archive has no member a/data/7"
    with pytest.raises(CheckpointError, match=what):
        read(tmp_path / "a.pt")


def test_one_storage_in_two_types(tmp_path):
    entries = {
        "a": tensor(persistent_id("FloatStorage", "0", 2), (2,), (1,), 0),
        "b": tensor(persistent_id("HalfStorage", "0", 4), (4,), (1,), 0),
    }
    (tmp_path / "a.pt").write_bytes(state_archive({}, storages={"0": bytes(8)}, pickle=state_pickle(entries)))
    with pytest.raises(CheckpointError, match="two different things about storage 0"):
        read(tmp_path / "a.pt")


def test_references_to_nothing_outside(tmp_path):
    refused(tmp_path, "paddle", b"\x80\2" + text("storage") + b"Q.", "contains the operation BINPERSID")


def test_memory_stays_small(tmp_path):
    """Each stream would take gigabytes, or the interpreter down, if its numbers were believed."""
    deep = 200_000
    streams = {
        "memo": b"\x80\2}r\xff\xff\xff\x7f.",
        "memo of a list": b"\x80\2]r\xff\xff\xff\x7fa.",
        "text": b"\x80\2X\xff\xff\xff\xff.",
        "long bytes": b"\x80\4\x8e" + struct.pack("<Q", 1 << 62) + b".",
        "long text": b"\x80\4\x8d" + struct.pack("<Q", 1 << 62) + b".",
        "deep lists": b"\x80\2" + b"]" * deep + b"a" * (deep - 1) + b".",
        "deep tuples": b"\x80\2)" + b"\x85" * deep + b".",
        "deep dictionaries": b"\x80\2" + (b"}" + text("a")) * deep + b"N" + b"s" * deep + b".",
        "deep marks": b"\x80\2" + b"(" * deep + b"t" * deep + b".",
        "laughs": b"\x80\2]q\0" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(60)) + b".",
        "itself": b"\x80\2}q\0(" + text("state_dict") + b"h\0u.",
        "a list of itself": b"\x80\2]q\0h\0a.",
        "operations": b"\x80\2" + b"N" * 1_100_000 + b".",
        "dictionaries": b"\x80\2(" + b"}" * 900_000 + b"t.",
    }
    for name, stream in streams.items():
        (tmp_path / f"{name}.pdparams").write_bytes(stream)
        (tmp_path / f"{name}.pt").write_bytes(file_of("state", stream))
        (tmp_path / f"{name}.pth").write_bytes(file_of("script", stream))
    found = child(
        f"""
        from pathlib import Path
        from clip_core.errors import CheckpointError
        from converters import read
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            try:
                read(path)
            except CheckpointError as error:
                assert len(str(error)) < 1000
                print(path.name)
        """,
        megabytes=900,
    )
    assert sorted(found.splitlines()) == sorted(path.name for path in tmp_path.iterdir())


def test_the_number_of_operations_is_limited(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 5)
    with pytest.raises(CheckpointError, match="more than 5 operations"):
        pdparams.read(b"\x80\2}}}}}.")


def test_frames():
    good = pickle.dumps({"a": np.arange(3, dtype=np.float32)}, protocol=4)
    assert good[2:3] == b"\x95"
    np.testing.assert_array_equal(pdparams.read(good).tensors["a"], [0, 1, 2])
    for size in (len(good), 1 << 62):
        with pytest.raises(CheckpointError, match="a frame does not end where it says"):
            pdparams.read(good[:3] + struct.pack("<Q", size) + good[11:])
    for size in (3, len(good) - 11 - 30):
        with pytest.raises(CheckpointError, match="a frame ends inside of an operation"):
            pdparams.read(good[:3] + struct.pack("<Q", size) + good[11:])
    nested = b"\x80\4\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 2) + b"}."
    with pytest.raises(CheckpointError, match="a frame does not end where it says"):
        pdparams.read(nested)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_pickles_are_read_or_refused(data):
    """Bytes changed, removed and inserted anywhere: arrays, or a CheckpointError, and nothing else."""
    arrays = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.ones(1, np.float16))
    stream = bytearray(pickle.dumps({"state_dict": arrays, "x": [1, 2.5, None]}, protocol=data.draw(st.integers(2, 4))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(2, len(stream) - 1))
        stream[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        found = pdparams.read(bytes(stream))
    except CheckpointError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.tensors.values())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_archives_are_read_or_refused(data):
    """As above, inside an archive whose CRC-32 is right."""
    stream = bytearray(state_pickle({"w": tensor(persistent_id("FloatStorage", "0", 6), (2, 3), (3, 1), 0)}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(2, len(stream) - 1))
        stream[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        found = torch_archive.read(state_archive({}, storages={"0": bytes(24)}, pickle=bytes(stream)))
    except CheckpointError:
        return
    assert all(array.nbytes <= 24 for array in found.tensors.values())
