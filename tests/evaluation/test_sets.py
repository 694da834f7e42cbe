"""Published sets of pictures with classes: each layout made small, and read as torchvision reads it where it does."""

from __future__ import annotations

import io
import json
import pickle
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torchvision.datasets as reference
from clip_benchmark.datasets.builder import build_wds_dataset
from layouts import (
    CIFAR10,
    CIFAR100,
    STL10,
    cifar10,
    cifar100,
    encoded,
    in_turn,
    jpeg,
    mnist,
    photographs,
    read,
    stl10,
    tar,
    write,
    zipped,
)
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from scipy.io import savemat

from clip_core.errors import ClipError
from clip_core.evaluation.sets import SETS
from clip_core.evaluation.sets.devkit import synsets
from clip_core.image import open_image


def opened(kind: str, folder: Path, **settings: Any) -> Any:
    return SETS[kind](kind=kind, folder=str(folder), **settings).labelled()


def sent(labelled: Any) -> Any:
    """What another process gets."""
    return pickle.loads(pickle.dumps(labelled))  # noqa: S301  # of this test's own making


def refused(kind: str, folder: Path, **settings: Any) -> str:
    with pytest.raises(ClipError) as caught:
        opened(kind, folder, **settings)
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
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


# Caltech 101 and Food-101


def objects() -> dict[str, bytes]:
    """Three classes of Caltech 101 and its background, by their paths."""
    pictures = [jpeg(picture) for picture, _ in photographs("imagenet")]
    names = ["BACKGROUND_Google", "Faces_easy", "accordion", "yin_yang"]
    found = {
        f"{name}/image_{place:04}.jpg": pictures[4 * number + place]
        for number, name in enumerate(names)
        for place in (1, 2)
    }
    return found | {"BACKGROUND_Google/tmp": b"?"}


def test_caltech101_in_folders_and_archives(tmp_path):
    inner = {f"101_ObjectCategories/{path}": data for path, data in objects().items()}
    archive = tar(inner, compressed=True)
    write(tmp_path / "folders" / "caltech101", inner)
    write(tmp_path / "gz", {"101_ObjectCategories.tar.gz": archive})
    write(tmp_path / "zip", {"caltech-101.zip": zipped({"caltech-101/101_ObjectCategories.tar.gz": archive})})
    expected = in_turn(reference.Caltech101(tmp_path / "folders"))
    assert len(expected) == 6
    for place in ("folders", "folders/caltech101", "folders/caltech101/101_ObjectCategories"):
        labelled = opened("caltech101", tmp_path / place)
        assert read(labelled) == expected
    for place in ("gz", "zip"):
        with pytest.warns(UserWarning, match="is compressed, so its content is kept"):
            labelled = opened("caltech101", tmp_path / place)
        assert read(labelled) == expected
        assert labelled.classes == ["Faces easy", "accordion", "yin yang"]
        assert [labelled.name(index) for index in (0, 5)] == ["Faces_easy/image_0001.jpg", "yin_yang/image_0002.jpg"]
        assert read(sent(labelled)) == expected
        assert read(opened("caltech101", tmp_path / place)) == expected  # from the cache, without a warning
    with pytest.warns(UserWarning, match=r"passed over: 1 files \(1 with no suffix\)"):
        labelled = opened("caltech101", tmp_path / "folders", background=True)
    assert labelled.classes[0] == "BACKGROUND Google"
    assert len(labelled) == 8


def test_the_names_that_openai_gave_to_caltech101(tmp_path):
    names = json.loads(
        (Path(str(find_spec("clip_benchmark").origin)).parent / "datasets" / "en_classnames.json").read_text()
    )
    folders = ["BACKGROUND_Google", "Faces", "accordion", *(f"object_{number:03}" for number in range(99))]
    write(tmp_path, {f"{folder}/1.jpg": b"?" for folder in folders})
    labelled = opened("caltech101", tmp_path, names="openai", templates="openai")
    assert labelled.classes == names["caltech101"][1:]
    assert labelled.classes[0] == "off-center face"
    assert len(labelled.prompts[0]) == 34
    assert opened("caltech101", tmp_path, names="openai", background=True).classes == names["caltech101"]
    (tmp_path / "accordion" / "1.jpg").unlink()
    (tmp_path / "accordion").rmdir()
    assert "none of" not in refused("caltech101", tmp_path, names="openai")


def test_food101_in_a_folder_and_as_published(tmp_path):
    pictures = [jpeg(picture) for picture, _ in photographs("imagenet")]
    keys = {"test": ["apple_pie/1", "waffles/2", "waffles/3"], "train": ["waffles/4"]}
    files = {f"images/{key}.jpg": pictures[int(key[-1])] for split in keys.values() for key in split}
    files |= {f"meta/{split}.txt": "\n".join(of_split).encode() for split, of_split in keys.items()}
    files |= {
        f"meta/{split}.json": json.dumps(
            {
                key.partition("/")[0]: [each for each in of_split if each.startswith(key.partition("/")[0])]
                for key in of_split
            }
        ).encode()
        for split, of_split in keys.items()
    }
    files["meta/classes.txt"] = b"apple_pie\nwaffles\n"
    published = {f"food-101/{path}": data for path, data in files.items()}
    write(tmp_path, published)
    write(tmp_path / "archive", {"food-101.tar.gz": tar(published, compressed=True)})
    expected = in_turn(reference.Food101(tmp_path, split="test"))
    for place in (tmp_path, tmp_path / "food-101"):
        assert read(opened("food101", place)) == expected
    with pytest.warns(UserWarning, match="is compressed"):
        labelled = opened("food101", tmp_path / "archive")
    assert read(labelled) == expected
    assert labelled.prompts == [["a photo of apple pie, a type of food."], ["a photo of waffles, a type of food."]]
    assert len(opened("food101", tmp_path, split="train")) == 1


# ImageNet


WORDNET = [f"n{1440764 + 7 * number:08}" for number in range(1000)]


@cache
def imagenet() -> list[tuple[bytes, int]]:
    """Pictures and labels: the photographs, and two pictures of a pixel for every class."""
    dot = jpeg(Image.new("RGB", (1, 1)), 1)
    return [(jpeg(picture), label) for picture, label in photographs("imagenet")] + [
        (dot, label) for label in range(1000)
    ]


@cache
def devkit() -> dict[str, bytes]:
    """The devkit, in which classes have numbers in another order, and groups of them come after these."""
    numbers = {name: number for number, name in enumerate(np.random.default_rng(0).permutation(WORDNET).tolist(), 1)}
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")]
    records = np.zeros((1003, 1), fields)
    for name, number in numbers.items():
        records[number - 1, 0] = (number, name, f"a {name}, an \xe9", 0, np.zeros((0, 0)))
    for number in (1001, 1002, 1003):
        records[number - 1, 0] = (number, f"n{90000000 + number}", "a group", 2, np.array([1.0, 2.0]))
    file = io.BytesIO()
    savemat(file, {"synsets": records}, do_compression=True)
    truth = "".join(f"{numbers[WORDNET[label]]}\n" for _, label in imagenet())
    return {"meta.mat": file.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


def test_imagenet_in_each_of_its_layouts(tmp_path):
    flat = {f"ILSVRC2012_val_{number:08}.JPEG": data for number, (data, _) in enumerate(imagenet(), 1)}
    in_folders = {f"val/{WORDNET[label]}/{name}": flat[name] for name, (_, label) in zip(flat, imagenet())}
    kit = {f"ILSVRC2012_devkit_t12/data/{path}": data for path, data in devkit().items()}
    write(tmp_path / "folders", in_folders)
    write(tmp_path / "flat" / "val", flat)
    write(tmp_path / "flat", kit)
    write(
        tmp_path / "tar",
        {"ILSVRC2012_img_val.tar": tar(flat), "ILSVRC2012_devkit_t12.tar.gz": tar(kit, compressed=True)},
    )
    labelled = opened("imagenet", tmp_path / "folders", templates="openai")
    expected = [(name, label) for name, (_, label) in zip(flat, imagenet())]
    assert (
        sorted(
            (Path(labelled.name(index)).name, label)
            for index, (_, label) in ((index, labelled[index]) for index in range(len(labelled)))
        )
        == expected
    )
    assert labelled.classes == list(IMAGENET_CLASSNAMES)
    assert labelled.prompts[999] == [template(IMAGENET_CLASSNAMES[999]) for template in OPENAI_IMAGENET_TEMPLATES]
    some = [0, 22, 99, 243, 609, 990, 999, 1000, 1019]  # photographs among the dots
    pixels = read(labelled, some)
    assert len({data for data, _ in pixels}) > 4
    assert read(opened("imagenet", tmp_path / "folders" / "val"), some) == pixels
    assert read(opened("imagenet", tmp_path / "flat"), some) == pixels
    with pytest.warns(UserWarning, match=r"devkit_t12\.tar\.gz is compressed"):
        archived = opened("imagenet", tmp_path / "tar")
    assert read(archived, some) == pixels
    (tmp_path / "names").write_text("".join(f"{name}\tthe {name}\n" for name in WORDNET[::-1]))
    assert opened("imagenet", tmp_path / "flat", names=str(tmp_path / "names")).classes[7] == f"the {WORDNET[7]}"
    # What is missing is said.
    (tmp_path / "flat" / "val" / "ILSVRC2012_val_00000020.JPEG").unlink()
    with pytest.warns(UserWarning, match="has 1019 of the 1020 pictures"):
        assert len(opened("imagenet", tmp_path / "flat")) == 1019
    (tmp_path / "tar" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert refused("imagenet", tmp_path / "tar") == (
        f"The pictures of {tmp_path / 'tar'} are not in class folders, so the devkit of ImageNet has to say of which "
        f"class each of them is: {tmp_path / 'tar'} has ILSVRC2012_img_val.tar, but not ILSVRC2012_devkit_t12/data or "
        "data or ILSVRC2012_validation_ground_truth.txt or ILSVRC2012_devkit_t12.tar.gz; give the folder that has them."
    )
    write(tmp_path / "flat" / "val", {"ILSVRC2012_val_00001021.JPEG": b"?"})
    assert "has the picture ILSVRC2012_val_00001021.JPEG, and the devkit knows" in refused(
        "imagenet", tmp_path / "flat"
    )
    write(tmp_path / "few", {f"{WORDNET[0]}/1.JPEG": b"?"})
    assert "has 1 folders, and imagenet has 1000 classes; give the whole set" in refused("imagenet", tmp_path / "few")


@pytest.mark.parametrize("change", [lambda data: data[:200], lambda data: b"", lambda data: data[:-20] + bytes(20)])
def test_a_damaged_devkit_is_refused(change):
    with pytest.raises(ClipError, match=r"meta\.mat (is not the devkit's|has no array).*; get it again"):
        synsets(change(devkit()["meta.mat"]), "meta.mat")


def test_imagenetv2_has_the_numbers_of_its_classes(tmp_path):
    folder = "imagenetv2-matched-frequency-format-val"
    files = {f"{folder}/{label}/{number:04}.jpeg": data for number, (data, label) in enumerate(imagenet())}
    write(tmp_path, {"imagenetv2-matched-frequency.tar.gz": tar(files, compressed=True)})
    with pytest.warns(UserWarning, match="is compressed"):
        labelled = opened("imagenetv2", tmp_path, templates=["the {}"])
    assert read(labelled) == in_turn((open_image(data), label) for data, label in imagenet())
    assert labelled.prompts[999] == [f"the {IMAGENET_CLASSNAMES[999]}"]
    assert "but not imagenetv2-top-images-format-val or 999 or" in refused("imagenetv2", tmp_path, variant="top-images")


# Parquet and CLIP_benchmark's shards


def test_parquet_as_hugging_face_writes_it(tmp_path):
    samples = photographs("cifar10")
    features = {"img": {"_type": "Image"}, "label": {"names": CIFAR10, "_type": "ClassLabel"}}
    for part, of_part in (("00000-of-00002", samples[:12]), ("00001-of-00002", samples[12:])):
        rows = [{"bytes": encoded(picture, "PNG"), "path": None} for picture, _ in of_part]
        table = pyarrow.table({"img": rows, "label": [label for _, label in of_part]})
        described = {"huggingface": json.dumps({"info": {"features": features}})}
        (tmp_path / "data").mkdir(exist_ok=True)
        path = tmp_path / "data" / f"test-{part}.parquet"
        pyarrow.parquet.write_table(table.replace_schema_metadata(described), path, row_group_size=5)
    labelled = opened("parquet", tmp_path)
    assert read(labelled) == [(picture.tobytes(), label) for picture, label in samples]
    assert labelled.classes == CIFAR10
    assert [labelled.name(index) for index in (11, 12, 19)] == [
        "data/test-00000-of-00002.parquet/11",
        "data/test-00001-of-00002.parquet/0",
        "data/test-00001-of-00002.parquet/7",
    ]
    assert read(sent(labelled)) == read(labelled)
    assert "has the splits test; set split to one of them" in refused("parquet", tmp_path, split="train")
    assert refused("parquet", tmp_path, label_column="fine").startswith(
        f"{tmp_path}/data/test-00000-of-00002.parquet has the columns img (Image), label (ClassLabel), and one of"
    )
    assert "no names of the classes in its column img" in refused("parquet", tmp_path, label_column="img")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "cannot be read as Parquet" in refused("parquet", tmp_path)
    assert "has no files of the kind .parquet" in refused("parquet", Path(layouts.__file__).parent)


def test_a_column_of_one_value_many_times_takes_the_memory_of_one(tmp_path):
    once = pyarrow.array([bytes(1 << 20)])
    many = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), once)
    table = pyarrow.table({"image": pyarrow.StructArray.from_arrays([many], ["bytes"]), "label": [0] * 4000})
    described = {
        "huggingface": json.dumps(
            {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a"]}}}}
        )
    }
    with pyarrow.parquet.ParquetWriter(tmp_path / "test.parquet", table.schema, store_schema=False) as file:
        file.write_table(table)
        file.add_key_value_metadata(described)
    labelled = opened("parquet", tmp_path)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(ClipError, match=r"test\.parquet/3999 of .*: The picture given as bytes is not a picture"):
        labelled[3999]
    assert pyarrow.total_allocated_bytes() - before < 64 << 20


def test_shards_of_clip_benchmark(tmp_path):
    samples = photographs("cifar10")
    for number, part in enumerate((samples[:12], samples[12:])):
        files = {}
        for place, (picture, label) in enumerate(part):
            files |= {f"s{place:07}.webp": encoded(picture, "WEBP"), f"s{place:07}.cls": str(label).encode()}
        write(tmp_path / "test", {f"{number}.tar": tar(files)})
    write(tmp_path, {"test/nshards.txt": b"2\n", "classnames.txt": "\n".join(CIFAR10).encode() + b"\n"})
    write(tmp_path, {"zeroshot_classification_templates.txt": b"a photo of a {c}.\nthe {c}\n"})
    with pytest.warns(UserWarning, match="shardshuffle"):
        expected = build_wds_dataset("", transform=lambda picture: picture, data_dir=str(tmp_path))
    labelled = opened("wds", tmp_path)
    assert read(labelled) == in_turn(samples)
    assert labelled.classes == expected.classes == CIFAR10
    assert labelled.prompts == [[text.format(c=name) for text in expected.templates] for name in expected.classes]
    assert labelled.name(0) == "s0000003 in test/0.tar"
    assert opened("wds", tmp_path, templates="simple-clip").prompts[3] == ["a photo of a cat."]
    assert len(opened("wds", tmp_path, templates="low-resource").prompts[3]) == 18
    write(tmp_path / "test", {"1.tar": tar({"s1.webp": b"?", "s1.cls": b"3.5"})})
    assert "The cls member of s1 in" in refused("wds", tmp_path)
    write(tmp_path / "test", {"1.tar": tar({"s1.webp": b"?", "s1.cls": b"10"})})
    assert "has labels from 0 to 10, counted from 0, and 10 classes" in refused("wds", tmp_path)
    write(tmp_path / "test", {"1.tar": tar({"s1.webp": b"?"})})
    assert "has no member with its class" in refused("wds", tmp_path)
    write(tmp_path, {"zeroshot_classification_templates.txt": b"a photo of {c}\na photo"})
    write(tmp_path / "test", {"nshards.txt": b"1"})
    assert "has the template 'a photo'; write {} once in it" in refused("wds", tmp_path)
    write(tmp_path, {"dataset_type.txt": b"multilabel\n"})
    assert "is a set for 'multilabel', and one for classification is expected" in refused("wds", tmp_path)
