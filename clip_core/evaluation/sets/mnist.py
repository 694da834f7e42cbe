"""MNIST (LeCun and others 1998) and Fashion-MNIST (Xiao and others 2017), in the files of bytes that both have.

::

    t10k-images-idx3-ubyte.gz     magic number 2051, pictures, rows and columns in four bytes each, then the pixels
    t10k-labels-idx1-ubyte.gz     magic number 2049, and labels in four bytes, then a byte for each label
    train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz

The files may be unpacked, and in ``raw`` or ``MNIST/raw`` (``FashionMNIST/raw``) as torchvision leaves them. MNIST's
default template is OpenAI's for this set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from clip_core.data.trees import Layout, Tree, gunzipped
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Arrays, LabelledPictures, Published, PublishedSettings

IMAGES, LABELS = 2051, 2049  # magic numbers: bytes in three dimensions, and in one


class _Idx(PublishedSettings):
    own: ClassVar[tuple[str, ...]]
    """The names of the classes."""
    folder_of_torchvision: ClassVar[str]
    address: ClassVar[str]
    digests: ClassVar[dict[str, tuple[str, int]]]
    """File -> its SHA-256 and its bytes."""

    split: Literal["train", "test"] = "test"

    def layouts(self) -> Sequence[Layout]:
        folders = ("raw", f"{self.folder_of_torchvision}/raw")
        return [Layout(f"{self._files()[1]}{suffix}", folders) for suffix in ("", ".gz")]

    def published(self) -> Sequence[Published]:
        files = [f"{name}.gz" for name in self._files()]
        return [Published(f"{self.address}/{file}", *self.digests[file], file) for file in files]

    def labelled(self) -> LabelledPictures:
        layout, tree = self.tree()
        suffix = ".gz" if layout.mark.endswith(".gz") else ""
        images, labels = (f"{name}{suffix}" for name in self._files())
        pixels = _values(tree, images, IMAGES, 3)
        of_pictures = _values(tree, labels, LABELS, 1).astype(np.int64)
        classes = self.class_names(self.own)
        return LabelledPictures(tree.source, Arrays(self.split, pixels), of_pictures, classes, self.prompts(classes))

    def _files(self) -> tuple[str, str]:
        part = "t10k" if self.split == "test" else "train"
        return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


class Mnist(_Idx):
    """The folder with the files of MNIST."""

    default: ClassVar[tuple[str, ...]] = ('a photo of the number: "{}".',)
    folder_of_torchvision: ClassVar[str] = "MNIST"
    own: ClassVar[tuple[str, ...]] = tuple("0123456789")
    address: ClassVar[str] = "https://storage.googleapis.com/cvdf-datasets/mnist"
    digests: ClassVar[dict[str, tuple[str, int]]] = {
        "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
        "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
        "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
        "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    }

    kind: Literal["mnist"] = "mnist"


class FashionMnist(_Idx):
    """The folder with the files of Fashion-MNIST."""

    folder_of_torchvision: ClassVar[str] = "FashionMNIST"
    own: ClassVar[tuple[str, ...]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    address: ClassVar[str] = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
    digests: ClassVar[dict[str, tuple[str, int]]] = {
        "t10k-images-idx3-ubyte.gz": ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102),
        "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
        "train-images-idx3-ubyte.gz": ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880),
        "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
    }

    kind: Literal["fashion_mnist"] = "fashion_mnist"


def _values(tree: Tree, file: str, magic: int, dimensions: int) -> np.ndarray:
    """The bytes of a file, uint8 [n, rows, columns] or [n]."""
    name = os.path.join(tree.source, file)
    data = gunzipped(tree.read(file), name) if file.endswith(".gz") else tree.read(file)
    header = 4 * (1 + dimensions)
    found, *shape = np.frombuffer(data[:header].ljust(header, b"\0"), ">u4").tolist()
    if found != magic:
        raise ClipError(f"{name} begins with the number {found}, not {magic}; get it again.")
    values = np.frombuffer(data, np.uint8)[header:]
    if len(values) != np.prod(shape, dtype=object) or 0 in shape[1:]:
        raise ClipError(f"{name} states the shape {shape} and has {len(values)} bytes; get it again.")
    return values.reshape(shape)
