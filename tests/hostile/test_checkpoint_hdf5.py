"""HDF5 files that point elsewhere, promise what they do not hold, or are not what NNabla writes."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoint_attacks import child, small_checkpoint

from clip_core.errors import CheckpointError
from converters import hdf5, read, write

VALUES = np.arange(8, dtype=np.float32)


def parameter(file: h5py.File, name: str, *, index: object = 0, need_grad: object = True, **options) -> h5py.Dataset:
    dataset = file.create_dataset(name, **({"data": VALUES} | options))
    if index is not None:
        dataset.attrs["index"] = index
    if need_grad is not None:
        dataset.attrs["need_grad"] = need_grad
    return dataset


def external_link(file):
    file["ln_final/W"] = h5py.ExternalLink("/etc/hostname", "/x")


def soft_link(file):
    parameter(file, "a/W")
    file["ln_final/W"] = h5py.SoftLink("/a/W")


def broken_soft_link(file):
    file["ln_final"] = h5py.SoftLink("/nothing")


def soft_loop(file):
    file["a"] = h5py.SoftLink("/b")
    file["b"] = h5py.SoftLink("/a")


def hard_loop(file):
    group = file.create_group("a")
    group["b"] = group


def loop_to_the_root(file):
    file.create_group("a")["root"] = file["/"]


def one_dataset_twice(file):
    file["b/W"] = parameter(file, "a/W")


def external_storage(file):
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(VALUES.tobytes())
    options = {"data": None, "shape": (8,), "dtype": "f4", "external": [(str(secret), 0, 32)]}
    parameter(file, "ln_final/W", **options)


def virtual_dataset(file):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["x"] = VALUES
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(str(Path(file.filename).with_name("other.h5")), "x", (8,))
    dataset = file.create_virtual_dataset("ln_final/W", layout)
    dataset.attrs["index"], dataset.attrs["need_grad"] = 0, True


def shape_bomb(file):
    parameter(file, "ln_final/W", data=None, shape=(1 << 41,), dtype="f4")


def many_axes(file):
    parameter(file, "ln_final/W", data=np.zeros((1,) * 9, np.float32))


def texts(file):
    parameter(file, "ln_final/W", data=np.array(["a", "b"], dtype=object), dtype=h5py.string_dtype())


def ragged(file):
    parameter(file, "ln_final/W", data=None, shape=(2,), dtype=h5py.vlen_dtype(np.float32))


CASES = [
    (external_link, "ln_final/W is a link to something else"),
    (soft_link, "ln_final/W is a link to something else"),
    (broken_soft_link, "ln_final is a link to something else"),
    (soft_loop, "[ab] is a link to something else"),
    (hard_loop, "a/b is the same object as another"),
    (loop_to_the_root, "a/root is the same object as another"),
    (one_dataset_twice, "is the same object as another"),
    (external_storage, "ln_final/W keeps its values in another file"),
    (virtual_dataset, "ln_final/W is made of other datasets"),
    (shape_bomb, r"the shape of ln_final/W has 2199023255552 in it; it must be whole numbers .* at most 2\^40"),
    (many_axes, "has 9 dimensions; at most 8"),
    (texts, "ln_final/W has dtype object"),
    (ragged, "ln_final/W has dtype object"),
    (lambda file: parameter(file, "a/W", compression="gzip"), "a/W is stored in chunks or compressed"),
    (lambda file: parameter(file, "a/W", chunks=(4,)), "a/W is stored in chunks or compressed"),
    (lambda file: parameter(file, "a/W", fletcher32=True), "a/W is stored in chunks or compressed"),
    (
        lambda file: parameter(file, "a/W", data=None, shape=None, dtype=h5py.Empty("f4").dtype),
        "a/W has no shape|shape",
    ),
    (lambda file: parameter(file, "a/W", data=h5py.Empty("f4")), "a/W has no shape"),
    (lambda file: parameter(file, "a/W", data=VALUES.astype(">f4")), "a/W has dtype >f4"),
    (lambda file: parameter(file, "a/W", data=VALUES.astype(np.complex64)), "a/W has dtype complex64"),
    (lambda file: parameter(file, "a/W", data=VALUES.astype(np.uint8)), "a/W has dtype uint8"),
    (lambda file: parameter(file, "a/W", index=None), "a/W has no attribute index, which NNabla asks for"),
    (lambda file: parameter(file, "a/W", need_grad=None), "a/W has no attribute need_grad, which NNabla asks for"),
    (lambda file: parameter(file, "a/W", index="first"), "the attribute index of a/W is not a number"),
    (lambda file: parameter(file, "a/W", index=[1, 2]), "the attribute index of a/W is not a number"),
    (lambda file: parameter(file, "a/W", need_grad=np.zeros(1000)), "the attribute need_grad of a/W is not a number"),
    (lambda file: file.__setitem__("a", np.dtype("f4")), "a is neither a group nor a dataset"),
    (lambda file: parameter(file, "a\nb"), r"a tensor is named 'a\\nb'; names are printable texts"),
    (lambda file: parameter(file, "x" * 2000), r"a tensor is named 'x{100}\.\.\.'; names are .* 1 to 1000 letters"),
    (lambda file: parameter(file, "visual/c\u043env1/W"), "do not look like a CLIP"),
    (lambda file: file.create_group("only/groups"), "do not look like a CLIP: text_projection is missing"),
    (
        lambda file: file.attrs.__setitem__("triclip_manifest_0", "text"),
        "the manifest in the file's attributes is damaged",
    ),
    (lambda file: file.attrs.__setitem__("triclip_manifest_0", np.void(b"\xff{")), "damaged|cannot be read"),
]


@pytest.mark.parametrize(("make", "what"), CASES, ids=range(len(CASES)))
def test_files_that_nnabla_does_not_write(make, what, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with pytest.raises(CheckpointError, match=what) as caught:
        read(tmp_path / "a.h5")
    assert str(caught.value).startswith(f"{tmp_path / 'a.h5'}: ")
    assert "\n" not in str(caught.value)


def change(tmp_path, edit) -> Path:
    """A sound file without a manifest, edited."""
    path = tmp_path / "a.h5"
    write(small_checkpoint(), path, force=True)
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            del file.attrs[name]
        edit(file)
    return path


def test_a_group_where_a_dataset_belongs_and_the_reverse(tmp_path):
    def group(file):
        del file["ln_final/W"]
        parameter(file, "ln_final/W/W")

    with pytest.raises(CheckpointError) as caught:
        read(change(tmp_path, group))
    assert "ln_final.weight is missing; ln_final.W.weight is not a parameter of this model" in str(caught.value)

    def dataset(file):
        del file["ln_final"]
        parameter(file, "ln_final")

    with pytest.raises(CheckpointError) as caught:
        read(change(tmp_path, dataset))
    assert "ln_final.bias is missing; ln_final.weight is missing; ln_final is not a parameter" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ln_final/weight", "ln_final/weight"),
        ("ln_final.W", "ln_final.W"),
        ("ln_final/w", "ln_final.w"),
        ("LN_final/W", "LN_final.weight"),
        ("ln_final/W ", "ln_final.W "),
    ],
)
def test_names_must_equal_the_list(name, shown, tmp_path):
    def edit(file):
        values = file["ln_final/W"][...]
        del file["ln_final/W"]
        parameter(file, name, data=values)

    with pytest.raises(CheckpointError, match=re.escape(f"{shown} is not a parameter of this model")):
        read(change(tmp_path, edit))


def test_too_many_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(6):
            file.create_group(str(number))
    with pytest.raises(CheckpointError, match="more than 5 objects"):
        read(tmp_path / "a.h5")


def test_bombs_take_no_memory(tmp_path):
    with h5py.File(tmp_path / "shape.h5", "w") as file:
        shape_bomb(file)
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        parameter(file, "a/W", data=np.zeros(1 << 26, np.float32), compression="gzip")
    assert (tmp_path / "gzip.h5").stat().st_size < 1 << 20
    found = child(
        f"""
        from clip_core.errors import CheckpointError
        from converters import read
        for name in ("shape", "gzip"):
            try:
                read({str(tmp_path)!r} + f"/{{name}}.h5")
            except CheckpointError as error:
                print(name)
        """,
        megabytes=600,
    )
    assert found.split() == ["shape", "gzip"]


def test_a_file_that_is_being_written(tmp_path):
    write(small_checkpoint(), tmp_path / "a.h5")
    found = child(
        f"""
        import h5py, subprocess, sys
        with h5py.File({str(tmp_path / "a.h5")!r}, "a"):
            code = "import converters; converters.read({str(tmp_path / "a.h5")!r})"
            print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr)
        """
    )
    assert "CheckpointError" in found
    assert "the file is locked: another process has it open for writing; close it there first." in found
    assert read(tmp_path / "a.h5").weights.keys() == small_checkpoint().weights.keys()
