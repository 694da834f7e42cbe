"""STL-10 (Coates and others 2011), the version for C programs.

::

    stl10_binary/class_names.txt                one name in each line
    stl10_binary/test_X.bin, train_X.bin        for each picture 96 x 96 values of red, green and blue, column by column
    stl10_binary/test_y.bin, train_y.bin        a byte for each label, from 1 on

The files are in this folder, in the given folder itself, or in ``stl10_binary.tar.gz``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from clip_core.data.listing import lines_in
from clip_core.data.trees import Layout
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Arrays, LabelledPictures, Published, PublishedSettings

SIDE = 96  # pixels
VALUES = 3 * SIDE * SIDE


class Stl10(PublishedSettings):
    """The folder with the files of STL-10."""

    kind: Literal["stl10"] = "stl10"
    split: Literal["train", "test"] = "test"

    def layouts(self) -> Sequence[Layout]:
        return [Layout("class_names.txt", ("stl10_binary",), ("stl10_binary.tar.gz",), inside="stl10_binary")]

    def published(self) -> Sequence[Published]:
        url = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
        digest = "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"
        return [Published(url, digest, 2_640_397_119, "stl10_binary.tar.gz")]

    def labelled(self) -> LabelledPictures:
        layout, tree = self.tree()
        names = [line for line in lines_in(tree.read(layout.mark), os.path.join(tree.source, layout.mark)) if line]
        values = np.frombuffer(tree.read(f"{self.split}_X.bin"), np.uint8)
        labels = np.frombuffer(tree.read(f"{self.split}_y.bin"), np.uint8).astype(np.int64) - 1
        if len(values) % VALUES:
            raise ClipError(
                f"{self.split}_X.bin of {tree.source} has {len(values)} bytes, not {VALUES} a picture; get it again."
            )
        pixels = values.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)  # [n, 3, w, h] -> [n, h, w, 3]
        classes = self.class_names(names)
        return LabelledPictures(tree.source, Arrays(self.split, pixels), labels, classes, self.prompts(classes))
