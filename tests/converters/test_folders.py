"""A folder, an index, or one of several files instead of a weights file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import clip
from clip.api import weights_file
from clip_core.errors import CheckpointError, ClipError
from converters import find, write
from tests.converters.bare import convert, inspect, read


def cut(state: dict[str, np.ndarray], folder: Path, suffix: str = ".safetensors", number: int = 3) -> Path:
    """``state`` in several files with Hugging Face's index, which is given."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for part in range(number):
        file = f"{stem}-{part + 1:05d}-of-{number:05d}{suffix}"
        held = {name: np.array(array) for name, array in list(state.items())[part::number]}
        weight_map |= dict.fromkeys(held, file)
        if suffix == ".safetensors":
            save_file(held, folder / file)
        else:
            torch.save({name: torch.from_numpy(array) for name, array in held.items()}, folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_model_in_several_files(vit, spelled, suffix, tmp_path, assert_equal_weights):
    index = cut(spelled(vit, "huggingface"), tmp_path / "cut", suffix)
    files = [index, *sorted(index.parent.glob(f"*-of-00003{suffix}"))]
    for path in (index, *files[1:], index.parent):
        found = read(path)
        assert_equal_weights(found.weights, vit.weights)
        assert found.layout == "huggingface"
        assert found.sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        assert found.size == sum(file.stat().st_size for file in files)
    assert inspect(index.parent).path == str(index)
    convert(index.parent, tmp_path / "whole.h5")
    assert_equal_weights(read(tmp_path / "whole.h5").weights, vit.weights)


def test_files_may_be_links(vit, spelled, tmp_path, assert_equal_weights):
    """Hugging Face's cache keeps the files elsewhere and links to them."""
    index = cut(spelled(vit, "huggingface"), tmp_path / "cut")
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(index.parent.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    assert_equal_weights(read(index.parent).weights, vit.weights)


def change_map(**changes):
    def change(index):
        content = json.loads(index.read_text())
        content["weight_map"] |= changes
        index.write_text(json.dumps(content))

    return change


def move(index):
    """The index says of a tensor that it is in another file than it is."""
    weight_map = json.loads(index.read_text())["weight_map"]
    change_map(logit_scale=next(file for file in weight_map.values() if file != weight_map["logit_scale"]))(index)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (
            lambda index: next(index.parent.glob("model-00002*")).unlink(),
            "model-00002-of-00003.safetensors, which the index",
        ),
        (move, "'logit_scale' is(?: not)? in it, and model.safetensors.index.json says otherwise; fetch both again"),
        (
            change_map(more="model-00001-of-00003.safetensors"),
            "'more' is not in it, and model.safetensors.index.json says",
        ),
        (
            change_map(more="../model.safetensors"),
            "the index puts 'more' into '../model.safetensors', which is no file",
        ),
        (change_map(more="/etc/passwd"), "the index puts 'more' into '/etc/passwd', which is no file"),
        (change_map(more=".."), r"the index puts 'more' into '\.\.', which is no file"),
        (change_map(more=3), "does not map the names of tensors to the names of files"),
        (change_map(**{str(i): f"{i}.bin" for i in range(1001)}), "the index names 1004 files; at most 1000 are read"),
        (lambda index: index.write_text("{}"), "the index cannot be read: KeyError"),
        (lambda index: index.write_text("[" * 100_000), "the index cannot be read: RecursionError"),
        (lambda index: index.write_text('{"weight_map": {}}'), "does not map the names of tensors"),
        (lambda index: index.write_text(" " * (16 << 20) + "{}"), "at most 16777216 are read here"),
    ],
)
def test_a_damaged_index(vit, spelled, damage, what, tmp_path):
    index = cut(spelled(vit, "huggingface"), tmp_path)
    damage(index)
    with pytest.raises(ClipError, match=what) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_one_of_several_files_without_its_index(vit, spelled, tmp_path):
    cut(spelled(vit, "huggingface"), tmp_path).unlink()
    with pytest.raises(
        ClipError, match=r"several files of a model, but their index model\.safetensors\.index\.json is not"
    ):
        read(tmp_path / "model-00001-of-00003.safetensors")
    one = tmp_path / "one" / "model-00001-of-00001.safetensors"
    cut(spelled(vit, "huggingface"), one.parent, number=1).unlink()
    assert find(one) == find(one.parent) == one


def test_the_file_of_a_folder(vit, tmp_path):
    """By name where the names of Hugging Face and open_clip promise the same model, else the only one, else asked."""
    with pytest.raises(ClipError, match=r"is a folder without a weights file; expected model\.safetensors or another"):
        find(tmp_path)
    (tmp_path / "notes.txt").write_text("not weights")
    write(vit, tmp_path / "b.h5")
    assert find(tmp_path) == tmp_path / "b.h5"
    write(vit, tmp_path / "a.pdparams")
    with pytest.raises(
        ClipError, match=r"is a folder with several weights files: a\.pdparams, b\.h5; give one of them"
    ):
        find(tmp_path)
    for name in (
        "open_clip_pytorch_model.bin",
        "pytorch_model.bin",
        "open_clip_model.safetensors",
        "model.safetensors",
    ):
        (tmp_path / name).write_bytes(b"")
        assert find(tmp_path) == tmp_path / name
    with pytest.raises(ClipError, match=r"config\.json holds no weights; give its folder"):
        find(tmp_path / "config.json")


def test_a_folder_wherever_a_file_may_be(vit, tmp_path):
    write(vit, tmp_path / "a.pdparams")
    assert weights_file(tmp_path)[0] == tmp_path / "a.pdparams"
    model, _ = clip.load(tmp_path, device="cpu")
    assert model.backend == "paddle"
    np.testing.assert_array_equal(model.export()["visual.proj"], vit.weights["visual.proj"])


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file is text that starts with 'nothing'"):
        read(tmp_path)
