"""Small sets in the published layouts, made of the pictures that foolbox carries."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Sample = tuple[Image.Image, int]


def photographs(name: str) -> list[Sample]:
    """Pictures of a set and their labels: ``cifar10``, ``cifar100``, ``mnist``, ``fashionMNIST`` or ``imagenet``."""
    found = find_spec("foolbox")
    assert found is not None
    assert found.submodule_search_locations
    files = sorted((Path(found.submodule_search_locations[0]) / "data").glob(f"{name}_*"))
    samples = [(Image.open(io.BytesIO(file.read_bytes())), int(file.stem.rpartition("_")[2])) for file in files]
    assert len(samples) == 20
    return samples


def in_turn(samples: Iterable[Sample]) -> list[tuple[bytes, int]]:
    """Pixels and label of each, the first of each class before the second of any."""
    by_class: dict[int, list[tuple[bytes, int]]] = {}
    for picture, label in samples:
        by_class.setdefault(label, []).append((picture.tobytes(), label))
    places = range(max(map(len, by_class.values())))
    return [by_class[label][at] for at in places for label in sorted(by_class) if at < len(by_class[label])]


def read(labelled: Any, indices: Iterable[int] | None = None) -> list[tuple[bytes, int]]:
    """What a set gives, by default all of it in its order."""
    found = (labelled[index] for index in (range(len(labelled)) if indices is None else indices))
    return [(picture.tobytes(), label) for picture, label in found]


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def tar(files: Mapping[str, bytes], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def encoded(picture: Image.Image, form: str) -> bytes:
    """A picture in a form without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, form, lossless=True)
    return buffer.getvalue()


def jpeg(picture: Image.Image, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").resize((side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def values(samples: Iterable[Sample]) -> np.ndarray:
    """Values uint8 [n, 3 h w], all red ones of a picture before its green ones."""
    return np.stack([np.asarray(picture).transpose(2, 0, 1).ravel() for picture, _ in samples])


def python_2_pickle(content: Any) -> bytes:
    """A pickle of protocol 2 as Python 2 writes it: texts and bytes are both its ``str``."""

    def written(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(written(key) + written(each) for key, each in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(written, value)) + b"e"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, np.ndarray):
            shape = b"".join(map(written, value.shape))
            dtype = b"cnumpy\ndtype\n" + written("u1") + b"K\0K\1\x87R(K\3" + written("|")
            dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + written("b") + b"\x87R"
            return made + b"(K\1(" + shape + b"t" + dtype + b"\x89" + written(value.tobytes()) + b"tb"
        data = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data

    return b"\x80\2" + written(content) + b"."


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100 = [f"fine_{number}" for number in range(100)]


def cifar10() -> dict[str, dict[str, bytes]]:
    """Folder -> files of CIFAR-10, its first ten pictures for the test and the others for training."""
    parts = dict(zip(["test_batch", *(f"data_batch_{number}" for number in range(1, 6))], _parts("cifar10")))
    pickled = {
        part: python_2_pickle({"batch_label": part, "labels": [label for _, label in samples], "data": values(samples)})
        for part, samples in parts.items()
    }
    rows = {
        f"{part}.bin": b"".join(bytes([label]) + values([(picture, label)]).tobytes() for picture, label in samples)
        for part, samples in parts.items()
    }
    return {
        "cifar-10-batches-py": pickled | {"batches.meta": python_2_pickle({"num_vis": 3072, "label_names": CIFAR10})},
        "cifar-10-batches-bin": rows | {"batches.meta.txt": "\n".join([*CIFAR10, "", ""]).encode()},
    }


def cifar100() -> dict[str, dict[str, bytes]]:
    parts = dict(zip(("test", "train"), _parts("cifar100")))
    pickled = {
        part: python_2_pickle(
            {
                "coarse_labels": [label % 20 for _, label in samples],
                "fine_labels": [label for _, label in samples],
                "data": values(samples),
            }
        )
        for part, samples in parts.items()
    }
    rows = {
        f"{part}.bin": b"".join(
            bytes([label % 20, label]) + values([(picture, label)]).tobytes() for picture, label in samples
        )
        for part, samples in parts.items()
    }
    names = {"fine_label_names": CIFAR100, "coarse_label_names": [f"coarse_{number}" for number in range(20)]}
    return {
        "cifar-100-python": pickled | {"meta": python_2_pickle(names)},
        "cifar-100-binary": rows
        | {f"{name}.txt": "".join(f"{each}\n" for each in of_kind).encode() for name, of_kind in names.items()},
    }


def _parts(name: str) -> list[list[Sample]]:
    """Ten pictures, and then two at a time; the rest goes to the last part that is asked for."""
    samples = photographs(name)
    return [samples[:10], *(samples[start : start + 2] for start in range(10, 20, 2))]


def mnist(name: str, suffix: str = "") -> dict[str, bytes]:
    """The files of MNIST or of Fashion-MNIST: ten pictures for the test, ten for training."""
    samples = photographs(name)
    files = {}
    for part, of_part in (("t10k", samples[:10]), ("train", samples[10:])):
        files[f"{part}-images-idx3-ubyte"] = idx(np.stack([np.asarray(picture) for picture, _ in of_part]))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.array([label for _, label in of_part], np.uint8))
    return {f"{file}{suffix}": gzip.compress(data) if suffix else data for file, data in files.items()}


STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def stl10() -> dict[str, bytes]:
    """The files of STL-10: pixels column by column, labels from 1 on."""
    samples = [(picture.resize((96, 96)), label) for picture, label in photographs("cifar10")]
    files = {"class_names.txt": "".join(f"{name}\n" for name in STL10).encode()}
    for part, of_part in (("test", samples[:10]), ("train", samples[10:])):
        columns = np.stack([np.asarray(picture).transpose(2, 1, 0) for picture, _ in of_part])  # [n, 3, w, h]
        files[f"{part}_X.bin"] = columns.tobytes()
        files[f"{part}_y.bin"] = bytes(label + 1 for _, label in of_part)
    return files
