"""CIFAR-10 (Krizhevsky 2009), in the version for C programs.

::

    batches.meta.txt      the class names, one in each line
    test_batch.bin        for each of 10,000 pictures its label in one byte, then 32 x 32 values of red, green and blue
    data_batch_1.bin      likewise, to data_batch_5.bin: the training pictures

The files are in the folder itself or in ``cifar-10-batches-bin`` in it.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from clip_core.data.listing import lines_of
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Arrays, LabelledPictures, PublishedSettings
from clip_core.files import read_regular

SIDE = 32
ROW = 1 + 3 * SIDE * SIDE


class Cifar10(PublishedSettings):
    """The folder with the files of CIFAR-10."""

    kind: Literal["cifar10"] = "cifar10"
    split: Literal["train", "test"] = "test"

    def labelled(self) -> LabelledPictures:
        inner = os.path.join(self.folder, "cifar-10-batches-bin")
        folder = inner if os.path.isdir(inner) else self.folder
        classes = [line for line in lines_of(os.path.join(folder, "batches.meta.txt")) if line]
        batches = ["test_batch"] if self.split == "test" else [f"data_batch_{number}" for number in range(1, 6)]
        rows = np.concatenate([_rows(os.path.join(folder, f"{batch}.bin"), len(classes)) for batch in batches])
        pixels = rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # [n, 3, h, w] -> [n, h, w, 3]
        labels = rows[:, 0].astype(np.int64)
        return LabelledPictures(Arrays(self.split, pixels), labels, classes, self.prompts(classes))


def _rows(path: str, classes: int) -> np.ndarray:
    """Labels and pixels uint8 [n, 3073] of a file."""
    data = np.frombuffer(read_regular(path), np.uint8)
    if not len(data) or len(data) % ROW:
        raise ClipError(f"{path} has {len(data)} bytes, not a multiple of {ROW}; get it again.")
    rows = data.reshape(-1, ROW)
    if rows[:, 0].max() >= classes:
        raise ClipError(f"{path} has the label {rows[:, 0].max()}, and there are {classes} classes; get it again.")
    return rows
