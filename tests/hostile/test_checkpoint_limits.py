"""A file of one megabyte is read or refused within ten seconds and three gigabytes, however it is made.

The worst that is known of each format: objects that are deep, or that double at every level, wherever a reader looks at
one; numbers and names beyond all bounds; and parts that stand for many.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import h5py
import pytest
from checkpoint_attacks import child, field, persistent_id, tensor, text, zip_bytes

MEGABYTE = 1 << 20
HALF = MEGABYTE // 2
# What to put wherever a reader looks at an object: () in a pair with itself, and the pair too, sixty times; and a tuple
# in a tuple, as deep as overflows the stack of whoever goes into it.
OBJECTS = {"doubling": b")q\0" + b"h\0\x86q\0" * 60, "deep": b")" + b"\x85" * 150_000}
STORAGE = persistent_id("FloatStorage", "0", 1)
SHAPES = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"%s%s%s\x89ccollections\nOrderedDict\n)RtR"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R"


def array(shape: bytes = b"K\1\x85", dtype: bytes = DTYPE, data: bytes = b"C\4abcd") -> bytes:
    return RECONSTRUCT + b"(K\1" + shape + dtype + b"\x89" + data + b"tb"


def pickles() -> dict[str, bytes]:
    """Of what Paddle and PyTorch share."""
    wrapped = b"".join(text(name) + b"h\0" for name in ("model", "net", "ema", "module", "params", "weights"))
    keys = b"".join(b"\x8a\x0a" + (number * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for number in range(80_000))
    found = {
        "colliding keys": b"\x80\2}(" + keys + b"u.",
        "itself under every name": b"\x80\2}q\0(" + wrapped + b"u.",
        "unbuilt": b"\x80\2](" + b"ca\nb\n)R" * 125_000 + b"e.",
        "many arguments": b"\x80\2(" + b"N" * HALF + b"tq\0(" + b"ccollections\nOrderedDict\nh\0R" * 15_000 + b"t.",
        "a megabyte of operations": b"\x80\2" + b"}" * (MEGABYTE - 100) + b".",
    }
    for name, made in OBJECTS.items():
        found[f"{name} key"] = b"\x80\2}" + made + b"Ns."
        found[f"{name} name of a weight"] = b"\x80\2}" + made + array() + b"s."
        found[f"{name} weight"] = b"\x80\2}" + text("a.b") + made + b"s."
        found[f"{name} function"] = b"\x80\2" + made + b")R."
        found[f"{name} file"] = b"\x80\2" + made + b"."
    return found


def paddle_pickles() -> dict[str, bytes]:
    found = {
        "encoded again": b"\x80\2](" + text("a" * HALF) + b"q\0" + text("latin1") + b"q\1"
        + b"c_codecs\nencode\n(h\0h\1tR" * 20_000 + b"e.",
        "copied again": b"\x80\2](](" + b"N" * HALF + b"eq\0" + b"cbuiltins\ntuple\n(h\0tR" * 20_000 + b"e.",
        "names of globals": b"\x80\4](" + text("a" * HALF) + b"q\0" + b"h\0h\0\x93" * 80_000 + b"e.",
        "slices of the same bytes": slices(400_000, 600),
        "a list of slices again": same_slices(),
    }  # fmt: skip
    for name, made in OBJECTS.items():
        found[f"{name} code of a dtype"] = b"\x80\2}" + text("w") + b"cnumpy\ndtype\n(" + made + b"K\0K\1tRs."
        found[f"{name} state of a dtype"] = b"\x80\2}" + text("w") + DTYPE + made + b"bs."
        found[f"{name} shape"] = b"\x80\2}" + text("w") + array(shape=made) + b"s."
        found[f"{name} bytes"] = b"\x80\2}" + text("w") + array(data=made) + b"s."
        found[f"{name} encoding"] = b"\x80\2}" + text("w") + b"c_codecs\nencode\n(" + text("a") + made + b"tRs."
        shape = text("w") + b"}(" + text("slices") + b"]" + text("OriginShape") + made + b"u"
        found[f"{name} shape of slices"] = (
            b"\x80\2}(" + text("w") + array() + text("UnpackBigParamInfor@@") + b"}" + shape + b"su."
        )
    return found


def slices(size: int, count: int) -> bytes:
    """Many arrays over the same bytes, to be put together."""
    shape = b"J" + struct.pack("<i", size // 4) + b"\x85"
    first = array(shape, data=b"B" + struct.pack("<I", size) + bytes(size) + b"q\7")
    names = b"".join(text(f"w{number}") + (array(shape, data=b"h\7") if number else first) for number in range(count))
    whole = b"J" + struct.pack("<i", size // 4 * count) + b"\x85"
    parts = b"](" + b"".join(text(f"w{number}") for number in range(count)) + b"e"
    table = text("w") + b"}(" + text("slices") + parts + text("OriginShape") + whole + b"u"
    return b"\x80\4}(" + names + text("UnpackBigParamInfor@@") + b"}" + table + b"su."


def same_slices() -> bytes:
    parts = b"](" + text("a") + b"q\5" + b"h\5" * 100_000 + b"eq\6"
    entry = b"}(" + text("slices") + parts + text("OriginShape") + b"K\1\x85uq\7"
    table = b"}(" + text("w") + entry + b"".join(text(str(number)) + b"h\7" for number in range(50_000)) + b"u"
    return b"\x80\4}(" + text("a") + array() + text("UnpackBigParamInfor@@") + table + b"u."


def torch_pickles() -> dict[str, bytes]:
    view = tensor(STORAGE, (1,), (1,), 0)
    key = b"X" + struct.pack("<I", HALF) + b"0" * HALF
    found = {
        "views": b"\x80\2](" + view + b"q\0" + b"".join(view for _ in range(7_000)) + b"e.",
        "keys of storages": b"\x80\2](" + key + b"q\0" + STORAGE.replace(text("0"), b"h\0") * 8_000 + b"e.",
    }
    for name, made in OBJECTS.items():
        parts = {"offset": (made, b")", b")"), "shape": (b"K\0", made, b")"), "strides": (b"K\0", b")", made)}
        for part, values in parts.items():
            found[f"{name} {part}"] = b"\x80\2}" + text("w") + SHAPES % values + b"s."
        found[f"{name} persistent id"] = b"\x80\2}" + text("w") + made + b"Qs."
        found[f"{name} key of a storage"] = b"\x80\2}" + text("w") + STORAGE.replace(text("0"), made) + b"s."
        found[f"{name} word"] = b"\x80\2}" + text("w") + STORAGE.replace(text("storage"), made) + b"s."
        found[f"{name} location"] = b"\x80\2}" + text("w") + STORAGE.replace(text("cpu"), made) + b"s."
    return found


def scripts() -> dict[str, bytes]:
    """Modules that are shared, so that few of them stand for many, with long names."""

    def module(attributes: bytes) -> bytes:
        return b"c__torch__\nM\n)\x81}(" + attributes + b"ub"

    view = tensor(STORAGE, (), (), 0)
    shared = module(b"".join(text(f"w{number}") + view for number in range(3_000)))
    names = module(text("a" * 900) + view)
    levels = module(text("t") + view)
    for level in range(14):
        memo = b"q" + bytes([level])
        levels = module(text("a" * 60_000) + levels + memo + text("b" * 60) + b"h" + bytes([level]))
    return {
        "shared": module(text("w") + shared + b"q\0" + b"".join(text(f"m{n}") + b"h\0" for n in range(50_000))),
        "long names": module(text("w") + names + b"q\0" + b"".join(text(f"m{n}") + b"h\0" for n in range(50_000))),
        "levels": levels,
        "deep modules": b"c__torch__\nM\nq\0" + (b"h\0)\x81}" + text("a")) * 80_000 + b"N" + b"sb" * 80_000,
        "deep": b"c__torch__\nM\n)\x81}" + text("a") + OBJECTS["deep"] + b"sb",
    }


def headers() -> dict[str, bytes]:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    found = {
        "prefixes": json.dumps({"module." * 150_000: one}),
        "short prefixes": json.dumps({"module." * 140 + str(number): empty for number in range(1000)}),
        "many": json.dumps({f"visual.transformer.resblocks.{number}.x": empty for number in range(9_000)}),
        "digits": json.dumps({"a": empty | {"shape": [10**4000] * 250}}),
        "more digits": '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % ("9" * MEGABYTE),
        "lists": '{"a": {"dtype": %s, "shape": [1], "data_offsets": [0, 4]}}' % ("[" * 900 + "]" * 900),
        "deep": '{"a": ' + "[" * MEGABYTE,
        "numbers": json.dumps({"a": empty | {"shape": [0] * 300_000}}),
        "zeros": json.dumps({"a": empty | {"shape": [0, 1 << 40, 1 << 40]}}),
        "escapes": json.dumps({"\x1b[2J" * 30_000: empty}),
    }
    return {name: struct.pack("<Q", len(header)) + header.encode() for name, header in found.items()}


def buffers() -> dict[str, bytes]:
    return {
        "fields": field(100, b"") + b"\x08\0" * HALF,
        "empty parameters": field(200, b"") * 300_000,
        "parameters without data": b"".join(
            field(200, field(1, b"%d" % number) + field(20, field(1, b"\0"))) for number in range(60_000)
        ),
        "a shape of many sizes": field(200, field(1, b"a") + field(20, field(1, b"\1" * (MEGABYTE - 100)))),
        "a shape of many parts": field(200, field(1, b"a") + field(20, field(1, b"\1") * 300_000)),
        "a long name": field(200, field(1, b"a" * (MEGABYTE - 100))),
    }


def write_groups(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        group = file
        for _ in range(400):
            group = group.create_group("a")
        for number in range(3_000):
            file.create_group(f"b{number}")
        file.attrs["x" * 60_000] = 1


FILES = {
    ".pdparams": lambda: pickles() | paddle_pickles(),
    ".pt": lambda: {name: archive(stream) for name, stream in torch_pickles().items()},
    ".pth": lambda: {name: archive(b"\x80\2" + stream + b".", "a/constants.pkl") for name, stream in scripts().items()},
    ".bin": lambda: {name: legacy(stream) for name, stream in torch_pickles().items() if "deep" not in name},
    ".safetensors": headers,
    ".protobuf": buffers,
    ".h5": lambda: {},
    ".nnp": lambda: {"fields": zip_bytes([("p.protobuf", buffers()["fields"], {})])},
}


def archive(stream: bytes, *others: str) -> bytes:
    return zip_bytes([("a/data.pkl", stream, {}), ("a/data/0", bytes(4), {}), *((name, b"", {}) for name in others)])


def legacy(stream: bytes) -> bytes:
    magic = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}" + text("little_endian") + b"\x88s."
    return magic + stream + b"\x80\2]" + text("0") + b"a." + struct.pack("<q", 1) + bytes(4)


@pytest.mark.parametrize("suffix", FILES)
def test_the_worst_files_of_a_megabyte(suffix, tmp_path):
    files = FILES[suffix]()
    for name, data in files.items():
        assert len(data) < 1.3 * MEGABYTE, name
        (tmp_path / f"{name}{suffix}").write_bytes(data)
    if suffix == ".h5":
        write_groups(tmp_path / "groups.h5")
        assert (tmp_path / "groups.h5").stat().st_size < MEGABYTE
    found = child(
        f"""
        import time
        from pathlib import Path
        from clip_core.errors import CheckpointError
        from converters import inspect
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            start = time.process_time()
            try:
                ending = "read" if inspect(path).faults else "sound"
            except CheckpointError as error:
                ending = "refused"
            print(path.stem, ending, round(time.process_time() - start, 1), sep="|")
        """,
        megabytes=3072,
        seconds=100,
    )
    lines = [line.split("|") for line in found.splitlines()]
    assert {name for name, _, _ in lines} == {path.stem for path in tmp_path.iterdir()}
    assert {ending for _, ending, _ in lines} <= {"read", "refused"}
    assert max(float(seconds) for _, _, seconds in lines) < 10, lines
