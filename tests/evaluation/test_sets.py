"""Published sets of pictures with classes: each layout made small, and read as torchvision reads it where it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets as reference
from layouts import (
    CIFAR10,
    CIFAR100,
    STL10,
    cifar10,
    cifar100,
    in_turn,
    mnist,
    photographs,
    read,
    stl10,
    tar,
    write,
)

from clip_core.errors import ClipError
from clip_core.evaluation.sets import SETS


def opened(kind: str, folder: Path, **settings: Any) -> Any:
    return SETS[kind](kind=kind, folder=str(folder), **settings).labelled()


def refused(kind: str, folder: Path, **settings: Any) -> str:
    with pytest.raises(ClipError) as caught:
        opened(kind, folder, **settings)
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """torchvision takes files that are not the published ones."""
    monkeypatch.setattr(reference.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(reference.STL10, "_check_integrity", lambda _: True)


KINDS_OF_CIFAR = {
    "cifar10": (cifar10, reference.CIFAR10, CIFAR10),
    "cifar100": (cifar100, reference.CIFAR100, CIFAR100),
}


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("kind", KINDS_OF_CIFAR)
def test_cifar_in_all_its_versions(kind, split, tmp_path, unchecked):
    files_of, torchvisions, names = KINDS_OF_CIFAR[kind]
    expected = None
    for folder, files in files_of().items():
        write(tmp_path / folder / folder, files)
        archive = {f"{folder}/{path}": data for path, data in files.items()}
        name = re.sub("-batches-py$|-python$", "-python", re.sub("-batches-bin$", "-binary", folder))
        write(tmp_path / "archive" / folder, {f"{name}.tar.gz": tar(archive, compressed=True)})
        if expected is None:
            expected = in_turn(torchvisions(tmp_path / folder, train=split == "train"))
        for place in (tmp_path / folder, tmp_path / folder / folder):
            labelled = opened(kind, place, split=split)
            assert read(labelled) == expected
        with pytest.warns(UserWarning, match=r"tar\.gz is compressed, so its content is kept in .*\.tar for this run"):
            labelled = opened(kind, tmp_path / "archive" / folder, split=split)
        assert read(labelled) == expected
        assert list(labelled.classes) == [name.replace("_", " ") for name in names]
        assert labelled.prompts[1] == [f"a photo of a {labelled.classes[1]}."]
    assert len(expected) == {"cifar10": 10, "cifar100": 10 if split == "test" else 2}[kind]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "name", "torchvisions"), [("mnist", "mnist", "MNIST"), ("fashion_mnist", "fashionMNIST", "FashionMNIST")]
)
def test_mnist_and_fashion_mnist(kind, name, torchvisions, suffix, tmp_path):
    write(tmp_path / torchvisions / "raw", mnist(name))
    expected = getattr(reference, torchvisions)(tmp_path, train=False)
    write(tmp_path / "given", mnist(name, suffix))
    labelled = opened(kind, tmp_path / "given")
    assert read(labelled) == in_turn(expected) == read(opened(kind, tmp_path))
    assert list(labelled.classes) == [
        each.partition(" - ")[0] if kind == "mnist" else each for each in expected.classes
    ]
    train = getattr(reference, torchvisions)(tmp_path, train=True)
    assert read(opened(kind, tmp_path / "given", split="train")) == in_turn(train) != in_turn(expected)


@pytest.mark.parametrize("split", ["test", "train"])
def test_stl10_is_turned_upright(split, tmp_path, unchecked):
    write(tmp_path / "stl10_binary", stl10())
    expected = reference.STL10(tmp_path, split=split)
    labelled = opened("stl10", tmp_path, split=split)
    assert read(labelled) == in_turn(expected)
    assert list(labelled.classes) == STL10
    assert labelled.name(0) == f"{split}/{expected.labels.tolist().index(min(expected.labels))}"
    own = in_turn((picture.resize((96, 96)), label) for picture, label in photographs("cifar10"))
    assert set(read(labelled)) < set(own)
