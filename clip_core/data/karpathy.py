"""The splits of Karpathy and Fei-Fei (CVPR 2015), in ``dataset_coco.json``, ``dataset_flickr30k.json`` and the like.

::

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test",
                 "sentences": [{"raw": "A man ...", ...}, ...], ...}, ...], ...}

Every picture of the split is one example with its captions, about five. Its file is in the folder of pictures, below
``filepath`` where there is one and a folder of that name. The training split is ``train``, to which COCO's ``restval``
belongs as well.
"""

from __future__ import annotations

import os
from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings
from clip_core.data.listing import read_json, records
from clip_core.errors import ClipError


class Karpathy(SourceSettings):
    """A file of splits and the folder of its pictures."""

    kind: Literal["karpathy"] = "karpathy"
    annotations: str  # the file
    images: str  # the folder
    split: Literal["train", "restval", "val", "test"] = "test"

    def open(self, seed: int) -> PictureFiles:
        content = read_json(self.annotations)
        pictures = records(self.annotations, content, "images", filename=str, split=str, sentences=list)
        wanted = {"train", "restval"} if self.split == "train" else {self.split}
        below = {each.get("filepath") for each in pictures} - {None}
        folders = {name for name in below if isinstance(name, str) and os.path.isdir(os.path.join(self.images, name))}
        examples = []
        for number, picture in enumerate(pictures):
            if picture["split"] not in wanted:
                continue
            folder = picture.get("filepath")
            texts = [each.get("raw") if isinstance(each, dict) else None for each in picture["sentences"]]
            if not all(isinstance(text, str) for text in texts):
                raise ClipError(f"{self.annotations}: entry {number} of 'images' has a sentence without 'raw'.")
            name = picture["filename"]
            examples.append((f"{folder}/{name}" if folder in folders else name, [str(text) for text in texts]))
        if not examples:
            found = ", ".join(sorted({each["split"] for each in pictures})) or "none"
            raise ClipError(f"{self.annotations} has no pictures of the split {self.split}; its splits are {found}.")
        return PictureFiles(self.annotations, self.images, examples)
