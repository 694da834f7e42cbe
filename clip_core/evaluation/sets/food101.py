"""The pictures of `clip_core.data.food101` with their classes, also in ``food-101.tar.gz``, as it is published.

The default template is OpenAI's for this set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from clip_core.data.food101 import pictures_of
from clip_core.data.trees import Layout
from clip_core.evaluation.sets.labelled import Files, LabelledPictures, Published, PublishedSettings


class Food101Classes(PublishedSettings):
    """The folder that holds ``images`` and ``meta``, or ``food-101.tar.gz``."""

    default: ClassVar[tuple[str, ...]] = ("a photo of {}, a type of food.",)

    kind: Literal["food101"] = "food101"
    split: Literal["train", "test"] = "test"

    def layouts(self) -> Sequence[Layout]:
        return [Layout("meta/classes.txt", ("food-101",), ("food-101.tar.gz",), inside="food-101")]

    def published(self) -> Sequence[Published]:
        url = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
        digest = "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4"
        return [Published(url, digest, 4_996_278_331, "food-101.tar.gz")]

    def labelled(self) -> LabelledPictures:
        _, tree = self.tree()
        listing, names, pictures = pictures_of(tree, self.split)
        number = {name: place for place, name in enumerate(names)}
        labels = np.array([number[name] for name in pictures.values()], np.int64)
        classes = self.class_names([name.replace("_", " ") for name in names], names)
        files = Files(tree, [f"images/{key}.jpg" for key in pictures])
        return LabelledPictures(listing, files, labels, classes, self.prompts(classes))
