"""TextCaps (Sidorov and others, arXiv 2003.12462): ``TextCaps_0.1_train.json`` and the folder ``train_images``.

::

    {"dataset_name": "textcaps", "data": [{"image_id": "011e7e629fb9ae7b", "caption_str": "A box ...", ...}, ...]}

There is one entry per caption; the entries of a picture, about five, are one example. The picture is
``<image_id>.jpg`` in the folder of images.
"""

from __future__ import annotations

from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings, grouped
from clip_core.data.listing import read_json, records


class TextCaps(SourceSettings):
    """An annotations file and the folder of its pictures."""

    kind: Literal["textcaps"] = "textcaps"
    annotations: str  # the file
    images: str  # the folder

    def open(self, seed: int) -> PictureFiles:
        entries = records(self.annotations, read_json(self.annotations), "data", image_id=str, caption_str=str)
        rows = ((f"{entry['image_id']}.jpg", entry["caption_str"]) for entry in entries)
        return PictureFiles(self.annotations, self.images, grouped(rows))
