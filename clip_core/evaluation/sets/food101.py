"""The pictures of `clip_core.data.food101` with their classes; the default template is OpenAI's for this set."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

import numpy as np

from clip_core.data.food101 import Food101
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Files, LabelledPictures, PublishedSettings


class Food101Classes(PublishedSettings):
    """The folder that holds ``images`` and ``meta``."""

    default: ClassVar[tuple[str, ...]] = ("a photo of {}, a type of food.",)

    kind: Literal["food101"] = "food101"
    split: Literal["train", "test"] = "test"

    def labelled(self) -> LabelledPictures:
        listing, names, pictures = Food101(folder=self.folder, split=self.split).pictures()
        if not pictures:
            raise ClipError(f"{listing} names no pictures; get it again.")
        number = {name: place for place, name in enumerate(names)}
        classes = [name.replace("_", " ") for name in names]
        return LabelledPictures(
            Files(self.folder, [os.path.join("images", f"{key}.jpg") for key in pictures]),
            np.array([number[name] for name in pictures.values()]),
            classes,
            self.prompts(classes),
        )
