"""Flickr30k and Flickr8k in the folder of their files as they are published.

::

    flickr30k    dataset_flickr30k.json or flickr30k_test_karpathy.txt, and flickr30k-images
    flickr8k     dataset_flickr8k.json or flickr8k_test_karpathy.txt, and Flicker8k_Dataset; or the captions in
                 Flickr8k.token.txt or captions.txt, with the list of a split in Flickr_8k.testImages.txt

The JSON files are the splits of `karpathy`, the text files those of `flickr`; the first that is there counts. Pictures
may also be in a folder ``images`` or ``Images``, or in ``flickr30k-images.tar.gz`` or ``Flickr8k_Dataset.zip``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Literal

from clip_core.data.example import PictureFiles, SourceSettings
from clip_core.data.flickr import Flickr
from clip_core.data.karpathy import Karpathy
from clip_core.errors import ClipError


def first_of(folder: str, names: Sequence[str], what: str) -> str:
    """The path of the first of these files or folders that is in a folder.

    Raises:
        ClipError: none is.
    """
    for name in names:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise ClipError(f"{folder} has no {what}: none of {', '.join(names)}; put one of them there.")


class _Flickr(SourceSettings):
    captions: ClassVar[tuple[tuple[str, str | None], ...]]
    """The files of captions, each with the list of the split that goes with it."""
    pictures: ClassVar[tuple[str, ...]]

    folder: str  # of the files as they are published
    split: Literal["train", "val", "test"] = "test"

    def open(self, seed: int) -> PictureFiles:
        names = {captions.format(self.split): listed for captions, listed in self.captions}
        captions = first_of(self.folder, list(names), "captions")
        images = first_of(self.folder, (*self.pictures, "images", "Images"), "pictures")
        if captions.endswith(".json"):
            return Karpathy(annotations=captions, images=images, split=self.split).open(seed)
        listed = names[os.path.basename(captions)]
        if listed is not None:
            part = "dev" if self.split == "val" else self.split
            listed = first_of(self.folder, [listed.format(part)], f"list of the split {self.split}")
        return Flickr(captions=captions, images=images, listed=listed).open(seed)


class Flickr30k(_Flickr):
    """The folder with the files of Flickr30k."""

    captions: ClassVar[tuple[tuple[str, str | None], ...]] = (
        ("dataset_flickr30k.json", None),
        ("flickr30k_{}_karpathy.txt", None),
    )
    pictures: ClassVar[tuple[str, ...]] = ("flickr30k-images", "flickr30k_images", "flickr30k-images.tar.gz")

    kind: Literal["flickr30k"] = "flickr30k"


class Flickr8k(_Flickr):
    """The folder with the files of Flickr8k."""

    captions: ClassVar[tuple[tuple[str, str | None], ...]] = (
        ("dataset_flickr8k.json", None),
        ("flickr8k_{}_karpathy.txt", None),
        ("Flickr8k.token.txt", "Flickr_8k.{}Images.txt"),
        ("captions.txt", "Flickr_8k.{}Images.txt"),
    )
    pictures: ClassVar[tuple[str, ...]] = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset.zip")

    kind: Literal["flickr8k"] = "flickr8k"
