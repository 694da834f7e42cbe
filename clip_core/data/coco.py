"""COCO captions (Chen and others, arXiv 1504.00325): ``annotations/captions_train2017.json`` and a folder of pictures.

::

    {"images": [{"id": 391895, "file_name": "000000391895.jpg", ...}, ...],
     "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man ..."}, ...]}

Every picture is one example with its captions, about five. A picture that no annotation names is counted as a fault.
"""

from __future__ import annotations

from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings
from clip_core.data.listing import read_json, records
from clip_core.errors import ClipError


class Coco(SourceSettings):
    """An annotations file and the folder of its pictures."""

    kind: Literal["coco"] = "coco"
    annotations: str  # the file
    images: str  # the folder

    def open(self, seed: int) -> PictureFiles:
        content = read_json(self.annotations)
        pictures = records(self.annotations, content, "images", id=int, file_name=str)
        files = {picture["id"]: picture["file_name"] for picture in pictures}
        texts: dict[str, list[str]] = {name: [] for name in files.values()}
        for annotation in records(self.annotations, content, "annotations", image_id=int, caption=str):
            if annotation["image_id"] not in files:
                raise ClipError(
                    f"{self.annotations} has a caption for picture {annotation['image_id']}, which its list of images "
                    "lacks; get the file again."
                )
            texts[files[annotation["image_id"]]].append(annotation["caption"])
        return PictureFiles(self.annotations, self.images, list(texts.items()))
