"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the versions for Python and for C programs.

::

    cifar-10-batches-py/      batches.meta, test_batch, data_batch_1 to data_batch_5: pickles
    cifar-10-batches-bin/     batches.meta.txt, test_batch.bin, data_batch_1.bin to data_batch_5.bin
    cifar-100-python/         meta, test, train: pickles
    cifar-100-binary/         fine_label_names.txt, test.bin, train.bin

The files are in one of these folders, in the given folder itself, or in ``cifar-10-python.tar.gz`` and its like. The
classes of CIFAR-100 are the 100 fine ones. Underscores in names become blanks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from clip_core import pickled_arrays, pickles
from clip_core.data.listing import lines_in
from clip_core.data.trees import Layout, Tree
from clip_core.errors import CheckpointError, ClipError
from clip_core.evaluation.sets.labelled import Arrays, LabelledPictures, Published, PublishedSettings

SIDE = 32  # pixels
MOST_CLASSES = 100
VALUES = 3 * SIDE * SIDE  # of a picture: all red ones, all green ones, all blue ones


class _Form(NamedTuple):
    """Where one of the sets has what."""

    key: str  # of the class names in a pickle
    labels: str  # the key of the labels in a pickle
    labels_before: int  # bytes before the values of a picture; the last of them is its label
    test: tuple[str, ...]
    train: tuple[str, ...]


class _Cifar(PublishedSettings):
    form: ClassVar[_Form]

    split: Literal["train", "test"] = "test"

    def labelled(self) -> LabelledPictures:
        layout, tree = self.tree()
        files = self.form.test if self.split == "test" else self.form.train
        if layout.mark.endswith(".txt"):
            names = [line for line in lines_in(tree.read(layout.mark), os.path.join(tree.source, layout.mark)) if line]
            batches = [self._of_bytes(tree, f"{file}.bin") for file in files]
        else:
            names = _texts(_unpickled(tree, layout.mark).get(self.form.key), f"{self.form.key} of {layout.mark}", tree)
            batches = [self._of_pickle(tree, file) for file in files]
        pixels = np.concatenate([values for values, _ in batches])
        labels = np.concatenate([found for _, found in batches])
        classes = self.class_names([name.replace("_", " ") for name in names])
        pictures = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # [n, 3, h, w] -> [n, h, w, 3]
        return LabelledPictures(tree.source, Arrays(self.split, pictures), labels, classes, self.prompts(classes))

    def _of_bytes(self, tree: Tree, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Values uint8 [n, 3072] and labels int64 [n]."""
        data, row = np.frombuffer(tree.read(file), np.uint8), self.form.labels_before + VALUES
        if not len(data) or len(data) % row:
            raise ClipError(f"{file} of {tree.source} has {len(data)} bytes, not a multiple of {row}; get it again.")
        rows = data.reshape(-1, row)
        return rows[:, -VALUES:], rows[:, -VALUES - 1].astype(np.int64)

    def _of_pickle(self, tree: Tree, file: str) -> tuple[np.ndarray, np.ndarray]:
        batch = _unpickled(tree, file)
        data, labels = batch.get("data"), batch.get(self.form.labels)
        values = data.values if isinstance(data, pickled_arrays.Array) else None
        if values is None or values.dtype != np.uint8 or values.ndim != 2 or values.shape[1] != VALUES:
            raise ClipError(f"{file} of {tree.source} has no array data of uint8 [n, {VALUES}]; get it again.")
        if (
            not isinstance(labels, list)
            or len(labels) != len(values)
            or not all(type(label) is int and 0 <= label < MOST_CLASSES for label in labels)
        ):
            raise ClipError(
                f"{file} of {tree.source} has no list {self.form.labels} of {len(values)} whole numbers from 0 to "
                f"{MOST_CLASSES - 1}; get it again."
            )
        return values, np.array(labels, np.int64)


class Cifar10(_Cifar):
    """The folder with the files of CIFAR-10."""

    form: ClassVar[_Form] = _Form(
        "label_names", "labels", 1, ("test_batch",), tuple(f"data_batch_{number}" for number in range(1, 6))
    )

    kind: Literal["cifar10"] = "cifar10"

    def layouts(self) -> Sequence[Layout]:
        return _layouts("cifar-10", "batches.meta", "batches-py", "batches.meta.txt", "batches-bin")

    def published(self) -> Sequence[Published]:
        digest = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        return [_published("cifar-10-binary.tar.gz", digest, 170_052_171)]


class Cifar100(_Cifar):
    """The folder with the files of CIFAR-100."""

    form: ClassVar[_Form] = _Form("fine_label_names", "fine_labels", 2, ("test",), ("train",))

    kind: Literal["cifar100"] = "cifar100"

    def layouts(self) -> Sequence[Layout]:
        return _layouts("cifar-100", "meta", "python", "fine_label_names.txt", "binary")

    def published(self) -> Sequence[Published]:
        digest = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        return [_published("cifar-100-binary.tar.gz", digest, 168_513_733)]


def _layouts(name: str, pickled: str, of_pickles: str, listed: str, of_bytes: str) -> Sequence[Layout]:
    """The version for Python and that for C programs, each by the file of its names and its folder."""
    return [
        Layout(pickled, (f"{name}-{of_pickles}",), (f"{name}-python.tar.gz",), f"{name}-{of_pickles}"),
        Layout(listed, (f"{name}-{of_bytes}",), (f"{name}-binary.tar.gz",), f"{name}-{of_bytes}"),
    ]


def _published(file: str, digest: str, size: int) -> Published:
    return Published(f"https://www.cs.toronto.edu/~kriz/{file}", digest, size, file)


def _unpickled(tree: Tree, file: str) -> dict[str, Any]:
    rules = pickles.Rules(pickles.PYTHON_2_OPERATIONS, pickled_arrays.find)
    try:
        content = pickles.load(memoryview(tree.read(file)), rules)
    except CheckpointError as error:
        raise ClipError(f"{file} of {tree.source} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ClipError(f"{file} of {tree.source} is a pickle of something that is not a dictionary; get it again.")
    return content


def _texts(found: object, what: str, tree: Tree) -> list[str]:
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise ClipError(f"The entry {what} of {tree.source} is not a list of texts; get it again.")
    return found
