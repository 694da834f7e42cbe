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
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clip_core.data.listing import lines_of, read_json
from clip_core.data.source import PictureFiles, SourceSettings
from clip_core.errors import ClipError


def _with_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("write {} once, where the class's name goes")
    return template


class Food101(SourceSettings):
    """The folder that holds ``images`` and ``meta``."""

    folder: str
    split: Literal["train", "test"] = "train"
    templates: Annotated[tuple[Annotated[str, AfterValidator(_with_place)], ...], Field(min_length=1)] = (
        "a photo of {}, a type of food.",  # OpenAI's prompt for this set
    )

    def open(self, seed: int) -> PictureFiles:
        listing, keys = self._split()
        classes = lines_of(os.path.join(self.folder, "meta", "classes.txt"))
        prompts = {name: [text.replace("{}", name.replace("_", " ")) for text in self.templates] for name in classes}
        examples = []
        for key in dict.fromkeys(keys):
            name = key.partition("/")[0]
            if name not in prompts:
                raise ClipError(
                    f"{listing} names {key!r}, and {name!r} is not in meta/classes.txt; get both files again."
                )
            examples.append((f"{key}.jpg", prompts[name]))
        return PictureFiles(listing, os.path.join(self.folder, "images"), examples)

    def _split(self) -> tuple[str, list[str]]:
        listing = os.path.join(self.folder, "meta", f"{self.split}.txt")
        if os.path.exists(listing):
            return listing, [key for key in lines_of(listing) if key]
        listing = os.path.join(self.folder, "meta", f"{self.split}.json")
        by_class = read_json(listing)
        if not isinstance(by_class, dict) or not all(isinstance(keys, list) for keys in by_class.values()):
            raise ClipError(f"{listing} is not an object of lists, one per class; get it again.")
        return listing, [str(key) for keys in by_class.values() for key in keys]
