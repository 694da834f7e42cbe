"""COCO captions (Chen and others, arXiv 1504.00325): ``annotations/captions_train2017.json`` and a folder of pictures.

::

    {"images": [{"id": 391895, "file_name": "000000391895.jpg", ...}, ...],
     "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man ..."}, ...]}

In place of the two, a folder may be named that has them as they are published, of 2017, or else of 2014; the test split
of ``dataset_coco.json`` (`karpathy`) counts where there is neither. Every picture is one example with its captions,
about five. A picture that no annotation names is counted as a fault.
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import model_validator

from clip_core.data.captioned import first_of
from clip_core.data.example import PictureFiles, SourceSettings
from clip_core.data.karpathy import Karpathy
from clip_core.data.listing import read_json, records
from clip_core.data.settings import SettingError
from clip_core.errors import ClipError


class Coco(SourceSettings):
    """An annotations file and the folder of its pictures, or the folder that has both."""

    kind: Literal["coco"] = "coco"
    annotations: str | None = None  # the file
    images: str | None = None  # the folder of the pictures, or an archive of them
    folder: str | None = None  # in place of both: it has `annotations/captions_val2017.json` and `val2017`, or of 2014

    @model_validator(mode="after")
    def _both_or_folder(self) -> Coco:
        for name in ("annotations", "images"):
            if self.folder is None and getattr(self, name) is None:
                raise SettingError((name,), "the key {} is missing.")
        return self

    def open(self, seed: int) -> PictureFiles:
        annotations, images = self.annotations, self.images
        if annotations is None:
            names = [f"annotations/captions_val{year}.json" for year in (2017, 2014)]
            annotations = first_of(self.folder or "", [*names, "dataset_coco.json"], "captions")
        if images is None:
            year = "val2014" if "2017" not in os.path.basename(annotations) else "val2017"
            images = first_of(self.folder or "", [year, f"{year}.zip"], "pictures")
        if os.path.basename(annotations) == "dataset_coco.json":
            return Karpathy(annotations=annotations, images=images).open(seed)
        content = read_json(annotations)
        pictures = records(annotations, content, "images", id=int, file_name=str)
        files = {picture["id"]: picture["file_name"] for picture in pictures}
        texts: dict[str, list[str]] = {name: [] for name in files.values()}
        for annotation in records(annotations, content, "annotations", image_id=int, caption=str):
            if annotation["image_id"] not in files:
                raise ClipError(
                    f"{annotations} has a caption for picture {annotation['image_id']}, which its list of images "
                    "lacks; get the file again."
                )
            texts[files[annotation["image_id"]]].append(annotation["caption"])
        return PictureFiles(annotations, images, list(texts.items()))
