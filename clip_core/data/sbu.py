"""The SBU Captioned Photo Dataset (Ordonez and others, NeurIPS 2011): two lists, line by line the same picture.

::

    SBU_captioned_photo_dataset_urls.txt        http://static.flickr.com/2723/4385058960_b0f291553e.jpg
    SBU_captioned_photo_dataset_captions.txt    A wooden chair in the living room

The pictures lie in one folder under the last part of their address. About a fifth of the addresses are dead, so
examples are the lines whose picture is there; a picture that is named twice is one example with both captions. For the
set in the form that Hugging Face's ``datasets`` saves, see `clip_core.data.saved`.
"""

from __future__ import annotations

import os
from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings, grouped
from clip_core.data.listing import lines_of
from clip_core.errors import ClipError


class Sbu(SourceSettings):
    """The lists of SBU Captions and the folder of the pictures."""

    kind: Literal["sbu"] = "sbu"
    folder: str  # of the lists
    images: str  # the folder of the pictures

    def open(self, seed: int) -> PictureFiles:
        lists = [os.path.join(self.folder, f"SBU_captioned_photo_dataset_{kind}.txt") for kind in ("urls", "captions")]
        urls, texts = (lines_of(path) for path in lists)
        if len(urls) != len(texts):
            raise ClipError(f"{lists[0]} has {len(urls)} lines and {lists[1]} {len(texts)}; get both again.")
        try:
            present = set(os.listdir(self.images))
        except OSError as error:
            raise ClipError(f"{self.images} cannot be read: {error.strerror}; give the folder of pictures.") from error
        names = [url.rpartition("/")[2] for url in urls]
        return PictureFiles(
            f"{lists[0]}, with the pictures in {self.images},",
            self.images,
            grouped((name, text) for name, text in zip(names, texts) if name in present),
        )
