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
from clip_core.data.listing import json_in, lines_in
from clip_core.data.settings import Templates
from clip_core.data.trees import Folder, Tree
from clip_core.errors import ClipError


class Food101(SourceSettings):
    """The folder that holds ``images`` and ``meta``."""

    kind: Literal["food101"] = "food101"
    folder: str
    split: Literal["train", "test"] = "train"
    templates: Templates = ("a photo of {}, a type of food.",)  # OpenAI's prompt for this set

    def open(self, seed: int) -> PictureFiles:
        listing, classes, pictures = pictures_of(Folder(self.folder), self.split)
        prompts = {name: [text.replace("{}", name.replace("_", " ")) for text in self.templates] for name in classes}
        examples = [(f"{key}.jpg", prompts[name]) for key, name in pictures.items()]
        return PictureFiles(listing, os.path.join(self.folder, "images"), examples)


def pictures_of(tree: Tree, split: str) -> tuple[str, list[str], dict[str, str]]:
    """The listing of a split, all classes, and the class of each picture, which is below ``images``.

    Raises:
        ClipError: a listing is missing or not in this layout, or a picture is of no class.
    """
    listing, keys = _split_of(tree, split)
    of_classes = "meta/classes.txt"
    classes = lines_in(tree.read(of_classes), os.path.join(tree.source, of_classes))
    pictures, known = {key: key.partition("/")[0] for key in keys}, set(classes)
    for key, name in pictures.items():
        if name not in known:
            raise ClipError(f"{listing} names {key!r}, and {name!r} is not in {of_classes}; get both files again.")
    return listing, classes, pictures


def _split_of(tree: Tree, split: str) -> tuple[str, list[str]]:
    path = f"meta/{split}.txt"
    if tree.has(path):
        listing = os.path.join(tree.source, path)
        return listing, [key for key in lines_in(tree.read(path), listing) if key]
    path = f"meta/{split}.json"
    listing = os.path.join(tree.source, path)
    by_class = json_in(tree.read(path), listing)
    if not isinstance(by_class, dict) or not all(isinstance(keys, list) for keys in by_class.values()):
        raise ClipError(f"{listing} is not an object of lists, one per class; get it again.")
    return listing, [str(key) for keys in by_class.values() for key in keys]
