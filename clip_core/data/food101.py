"""Food-101 as published (Bossard and others, ECCV 2014), with a prompt for each class.

::

    images/apple_pie/1005649.jpg
    meta/classes.txt                       one class per line
    meta/train.txt, meta/test.txt          ``apple_pie/1005649`` per line
    meta/train.json, meta/test.json        {"apple_pie": ["apple_pie/1005649", ...], ...}

The text list of a split is read when it is there, else the JSON one. A picture's captions are the templates with its
class's name, underscores as blanks. A picture that is listed twice counts once.
"""

from __future__ import annotations

import os
from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings
from clip_core.data.listing import lines_of, read_json
from clip_core.data.settings import Templates
from clip_core.errors import ClipError


class Food101(SourceSettings):
    """The folder that holds ``images`` and ``meta``."""

    kind: Literal["food101"] = "food101"
    folder: str
    split: Literal["train", "test"] = "train"
    templates: Templates = ("a photo of {}, a type of food.",)  # OpenAI's prompt for this set

    def open(self, seed: int) -> PictureFiles:
        listing, classes, pictures = self.pictures()
        prompts = {name: [text.replace("{}", name.replace("_", " ")) for text in self.templates] for name in classes}
        examples = [(f"{key}.jpg", prompts[name]) for key, name in pictures.items()]
        return PictureFiles(listing, os.path.join(self.folder, "images"), examples)

    def pictures(self) -> tuple[str, list[str], dict[str, str]]:
        """The listing of the split, all classes, and the class of each picture, which is below ``images``.

        Raises:
            ClipError: a listing is missing or not in this layout, or a picture is of no class.
        """
        listing, keys = self._split()
        classes = lines_of(os.path.join(self.folder, "meta", "classes.txt"))
        pictures, known = {key: key.partition("/")[0] for key in keys}, set(classes)
        for key, name in pictures.items():
            if name not in known:
                raise ClipError(
                    f"{listing} names {key!r}, and {name!r} is not in meta/classes.txt; get both files again."
                )
        return listing, classes, pictures

    def _split(self) -> tuple[str, list[str]]:
        listing = os.path.join(self.folder, "meta", f"{self.split}.txt")
        if os.path.exists(listing):
            return listing, [key for key in lines_of(listing) if key]
        listing = os.path.join(self.folder, "meta", f"{self.split}.json")
        by_class = read_json(listing)
        if not isinstance(by_class, dict) or not all(isinstance(keys, list) for keys in by_class.values()):
            raise ClipError(f"{listing} is not an object of lists, one per class; get it again.")
        return listing, [str(key) for keys in by_class.values() for key in keys]
