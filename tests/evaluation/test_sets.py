"""Published sets of pictures with classes: each layout made small, and read as torchvision reads it where it does."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import warnings
from functools import cache
from hashlib import sha256
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
    idx,
    in_turn,
    jpeg,
    mnist,
    photographs,
    python_2_pickle,
    read,
    stl10,
    tar,
    write,
    zipped,
)
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from scipy.io import savemat

from clip_core.data import trees
from clip_core.errors import ClipError
from clip_core.evaluation.sets import SETS
from clip_core.evaluation.sets.devkit import synsets
from clip_core.evaluation.sets.mnist import Mnist
from clip_core.image import open_image
from tests.serving import Pictures, running


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


# What is wrong with the files is said


def test_a_folder_without_the_set_says_what_it_has(tmp_path):
    write(tmp_path, dict.fromkeys(("a", "b", "c", "d", "e", "f", "g"), b""))
    assert refused("cifar10", tmp_path) == (
        f"{tmp_path} has a, b, c, d, e and 2 more, but not cifar-10-batches-py or batches.meta or "
        "cifar-10-python.tar.gz or cifar-10-batches-bin or batches.meta.txt or cifar-10-binary.tar.gz; give the folder "
        "that has them."
    )
    (tmp_path / "empty").mkdir()
    for kind in ("imagenet", "imagenetv2", "cifar100", "stl10", "caltech101", "food101", "mnist", "fashion_mnist"):
        assert f"{tmp_path / 'empty'} has nothing in it, but not " in refused(kind, tmp_path / "empty")
        assert "nowhere cannot be read: no such file" in refused(kind, tmp_path / "nowhere")


@pytest.mark.parametrize("version", ["cifar-10-batches-py", "cifar-10-batches-bin"])
def test_damaged_cifar_is_refused(version, tmp_path):
    files = cifar10()[version]
    name = "test_batch.bin" if version.endswith("bin") else "test_batch"
    whole = files[name]
    for cut in (0, 1, 100, len(whole) // 2 + 1, len(whole) - 1):
        write(tmp_path, files | {name: whole[:cut]})
        assert f"{name} of {tmp_path} " in refused("cifar10", tmp_path)
    names = "batches.meta.txt" if version.endswith("bin") else "batches.meta"
    short = b"airplane\nautomobile\n" if version.endswith("bin") else python_2_pickle({"label_names": ["a", "b"]})
    write(tmp_path, files | {names: short})
    assert "counted from 0, and 2 classes; get it again" in refused("cifar10", tmp_path)


def test_a_pickle_that_calls_is_refused(tmp_path):
    write(tmp_path, cifar10()["cifar-10-batches-py"] | {"test_batch": b"\x80\2cos\nsystem\nU\5touch\x85R."})
    assert f"test_batch of {tmp_path} is a pickle of something that is not a dictionary" in refused("cifar10", tmp_path)
    for name, labels in (
        ("labels", [1] * 9),
        ("labels", ["1"] * 10),
        ("labels", [2**30] * 10),
        ("fine_labels", [1] * 10),
    ):
        data = {name: labels, "data": np.zeros((10, 3072), np.uint8)}
        write(tmp_path, {"test_batch": python_2_pickle(data)})
        assert "has no list labels of 10 whole numbers" in refused("cifar10", tmp_path)
    write(tmp_path, {"test_batch": python_2_pickle({"labels": [1], "data": np.zeros((1, 3), np.uint8)})})
    assert "has no array data of uint8 [n, 3072]" in refused("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(np.zeros((2, 2), np.uint8)), "begins with the number 2050, not 2051"),
        (idx(np.zeros((2, 3, 3), np.uint8))[:-1], r"states the shape \[2, 3, 3\] and has 17 bytes"),
        (idx(np.zeros((2, 3, 3), np.uint8)), "has 2 pictures and 10 labels; get it again"),
        (b"", "begins with the number 0, not 2051"),
    ],
)
def test_damaged_idx_files_are_refused(data, message, tmp_path):
    write(tmp_path, mnist("mnist") | {"t10k-images-idx3-ubyte": data})
    assert re.search(message, refused("mnist", tmp_path))
    write(tmp_path / "packed", mnist("mnist", ".gz"))
    path = tmp_path / "packed" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    assert "idx3-ubyte.gz is damaged or cut short" in refused("mnist", tmp_path / "packed")


def test_damaged_stl10_is_refused(tmp_path):
    write(tmp_path, stl10() | {"test_X.bin": bytes(3)})
    assert f"test_X.bin of {tmp_path} has 3 bytes, not 27648 a picture" in refused("stl10", tmp_path)
    write(tmp_path, stl10() | {"test_y.bin": bytes(10)})
    assert "has labels from -1 to -1, counted from 0, and 10 classes" in refused("stl10", tmp_path)


def test_damaged_archives_are_refused(tmp_path, monkeypatch, cache_folder):
    inner = {f"101_ObjectCategories/{path}": data for path, data in objects().items()}
    path = tmp_path / "101_ObjectCategories.tar.gz"
    whole = tar(inner, compressed=True)
    for data, message in (
        (whole[: len(whole) // 2], "is damaged or cut short"),
        (whole[:20], "is damaged or cut short"),
        (b"<html>", "is not an uncompressed tar file"),
        (tar(inner)[:-10240], "is cut short|has no end mark"),
        (tar(inner | {"./101_ObjectCategories/accordion/image_0001.jpg": b"?"}), "accordion/image_0001.jpg twice"),
    ):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert re.search(message, refused("caltech101", tmp_path))
        assert not list(cache_folder.rglob("*.tar"))
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(trees, "_SMALL", 1 << 19)
    with pytest.warns(UserWarning, match="is compressed"):
        assert "has more than 524288 bytes inside, 50 times its own" in refused("caltech101", tmp_path)
    assert not list(cache_folder.rglob("*.tar"))


def test_a_damaged_zip_is_refused(tmp_path):
    whole = zipped({"caltech-101/101_ObjectCategories.tar.gz": b"x" * 5000})
    for data, message in (
        (whole[:-10], "is not a whole zip file"),
        (whole[:40] + bytes(4) + whole[44:], "is damaged"),
        (zipped({"other": b"x"}), r"has no caltech-101/101_ObjectCategories\.tar\.gz"),
        (whole, "is not a gzip|damaged or cut short"),
    ):
        write(tmp_path, {"caltech-101.zip": data})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert re.search(message, refused("caltech101", tmp_path))


def test_a_broken_picture_is_named(tmp_path):
    files = {f"101_ObjectCategories/{path}": data for path, data in objects().items()}
    files["101_ObjectCategories/accordion/image_0001.jpg"] = b"?"
    write(tmp_path, {"101_ObjectCategories.tar.gz": tar(files, compressed=True)})
    with pytest.warns(UserWarning, match="is compressed"):
        labelled = opened("caltech101", tmp_path)
    with pytest.raises(ClipError, match=r"^accordion/image_0001\.jpg in .*101_ObjectCategories: The picture given as"):
        labelled[1]


def test_an_empty_class_and_foreign_names_are_refused(tmp_path):
    write(tmp_path / "set", {"cat/1.jpg": b"?", "dog/notes.txt": b""})
    assert "The class dog of" in refused("folders", tmp_path / "set")
    (tmp_path / "set" / "dog" / "notes.txt").rename(tmp_path / "set" / "dog" / "1.jpg")
    (tmp_path / "names").write_text("cat\ta cat\nwolf\ta wolf\n")
    assert "has no name for the folder dog" in refused("folders", tmp_path / "set", names=str(tmp_path / "names"))
    write(tmp_path, cifar10()["cifar-10-batches-bin"])
    (tmp_path / "names").write_text("\n".join(CIFAR10[::-1]))
    assert opened("cifar10", tmp_path, names=str(tmp_path / "names")).classes == CIFAR10
    (tmp_path / "names").write_text("\n".join(["plane", "car", *CIFAR10[2:]]))
    assert opened("cifar10", tmp_path, names=str(tmp_path / "names")).classes[:2] == ["plane", "car"]


def test_the_fingerprint_tells_pictures_and_labels_apart(tmp_path):
    files = cifar10()["cifar-10-batches-bin"]
    write(tmp_path / "a", files)
    write(tmp_path / "b", files | {"test_batch.bin": files["test_batch.bin"][:-1] + b"?"})
    found = [opened("cifar10", tmp_path / place).fingerprint() for place in ("a", "a", "b")]
    assert found[0] == found[1] != found[2]
    assert opened("cifar10", tmp_path / "a", templates="simple-clip").fingerprint() == found[0]


# Downloads


def test_a_set_is_downloaded_once(tmp_path, monkeypatch):
    files = {path: data for path, data in mnist("mnist", ".gz").items() if path.startswith("t10k")}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Pictures({f"/{name}": data for name, data in files.items()})
    with running(server.handler) as address:
        monkeypatch.setattr(Mnist, "address", address)
        digests = {name: (sha256(data).hexdigest(), len(data)) for name, data in files.items()}
        monkeypatch.setattr(Mnist, "digests", digests)
        settings = Mnist(folder=str(tmp_path / "new" / "mnist"))
        seen: list[tuple[int, int | None]] = []
        settings.download(lambda done, total: seen.append((done, total)))
        settings.download()
        assert sorted(server.asked) == [f"/{name}" for name in sorted(files)]
        assert seen == [(size, size) for _, size in digests.values()]
        assert len(settings.labelled()) == 10
        monkeypatch.setattr(Mnist, "digests", {name: ("0" * 64, size) for name, (_, size) in digests.items()})
        with pytest.raises(ClipError, match="is not the file asked for"):
            Mnist(folder=str(tmp_path / "other")).download()
        assert not list((tmp_path / "other").glob("t10k*"))


def test_every_published_file_has_a_digest_and_what_has_none_says_so():
    public = {kind for kind in SETS if kind != "shapes" and SETS[kind](kind=kind, folder="x").published()}
    assert public == {"imagenetv2", "cifar10", "cifar100", "stl10", "caltech101", "food101", "mnist", "fashion_mnist"}
    for kind in public:
        settings = SETS[kind](kind=kind, folder="x")
        for file in settings.published():
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            # Once it is there, it is what the set is read from.
            places = [layout.mark for layout in settings.layouts()] + [
                archive.partition("/")[0] for layout in settings.layouts() for archive in layout.archives
            ]
            assert file.file in places or file.file.startswith("t10k-images")
    with pytest.raises(ClipError, match="The set imagenet has no public address; get it from those who publish it"):
        SETS["imagenet"](kind="imagenet", folder="x").download()
