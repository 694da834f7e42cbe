"""Sets in the form of CLIP_benchmark: shards of WebDataset, with the names of the classes and templates beside them.

::

    test/nshards.txt                                  how many shards there are
    test/0.tar                                        s0000000.webp  s0000000.cls  s0000001.webp ...
    classnames.txt                                    one name in each line
    zeroshot_classification_templates.txt             one template in each line, with {c} for the name
    dataset_type.txt                                  what the set is for, where it is not for classes

A sample is a picture and a ``cls`` member with the number of its class, of one stem. About 40 sets are published in
this form.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import numpy as np
from PIL import Image

from clip_core.data.listing import lines_of
from clip_core.data.shards import Samples
from clip_core.data.wds import shards_of
from clip_core.errors import ClipError
from clip_core.evaluation.prompts import checked
from clip_core.evaluation.sets.labelled import LabelledPictures, PublishedSettings

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


class Wds(PublishedSettings):
    """A folder of CLIP_benchmark's shards, with the lists of classes and templates."""

    kind: Literal["wds"] = "wds"
    split: str = "test"

    def labelled(self) -> LabelledPictures:
        pictures = Labels(Samples(shards_of(self.folder, self.split, "classification"), "cls", "class"), self.folder)
        path = os.path.join(self.folder, CLASSES)
        names = lines_of(path)
        if not all(names):
            raise ClipError(f"{path} has an empty line where the name of a class should be; get it again.")
        classes = self.class_names(names)
        path = os.path.join(self.folder, TEMPLATES)
        found = lines_of(path) if self.templates is None and os.path.exists(path) else []
        own = checked((line.replace("{c}", "{}") for line in found if line), path) if found else ()
        return LabelledPictures(self.folder, pictures, pictures.labels(), classes, self.prompts(classes, own))


class Labels:
    """Samples with the number of a class each."""

    def __init__(self, samples: Samples, folder: str):
        self._samples, self._folder = samples, folder

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Image.Image:
        return self._samples.picture(index)

    def name(self, index: int) -> str:
        return self._samples.name(index).replace(os.path.join(self._folder, ""), "")

    def fingerprint(self) -> str:
        return self._samples.fingerprint()

    def files(self) -> Iterable[str]:
        return self._samples.files()

    def labels(self) -> np.ndarray:
        """The class of each sample, int64 [n].

        Raises:
            ClipError: a sample has none.
        """
        found = []
        for index, text in enumerate(self._samples.texts()):
            if isinstance(text, ClipError):
                raise text
            if not text.strip().isdigit():
                raise ClipError(
                    f"The cls member of {self._samples.name(index)} holds {text[:60]!r}, where a whole number is "
                    "expected; get the shard again."
                )
            found.append(int(text[:18]))
        return np.array(found, np.int64)
