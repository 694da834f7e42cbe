"""ImageNet's validation pictures (Russakovsky and others 2015), and the new ones of ImageNetV2 (Recht and others 2019).

``imagenet`` has its pictures in class folders, in the given folder or in ``val`` in it, or all in one, as they are
published::

    val/n01440764/ILSVRC2012_val_00000293.JPEG
    ILSVRC2012_img_val.tar                          ILSVRC2012_val_00000001.JPEG and so on, or the same in a folder
    ILSVRC2012_devkit_t12.tar.gz                    says of which class each of those is; may be unpacked

``imagenetv2`` has them in folders with the numbers of the classes, in the given folder or as published::

    imagenetv2-matched-frequency.tar.gz             imagenetv2-matched-frequency-format-val/0/... to 999/...

Classes are in the order of their WordNet numbers. Neither set has names for them that a prompt could use, so by default
they are OpenAI's (``names: openai``), from an installed clip-benchmark or open_clip. A file of names may have
``n01440764<tab>tench`` in each line, or all 1,000 names in their order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from clip_core.data.listing import lines_in
from clip_core.data.trees import Layout, Tree, tree_of
from clip_core.errors import ClipError
from clip_core.evaluation.sets.devkit import CLASSES, synsets
from clip_core.evaluation.sets.folders import is_picture, pictures_by_folder
from clip_core.evaluation.sets.labelled import Files, LabelledPictures, Published, PublishedSettings

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_IN_DEVKIT = "ILSVRC2012_devkit_t12/data"
_DEVKIT = Layout(_TRUTH, (_IN_DEVKIT, "data"), ("ILSVRC2012_devkit_t12.tar.gz",), inside=_IN_DEVKIT)
_FOLDERS = ("val", "ILSVRC2012_img_val")


class _ImageNet(PublishedSettings):
    names: str | None = "openai"  # a file of class names, or `openai`

    def _in_folders(self, tree: Tree) -> tuple[list[str], Files, np.ndarray]:
        """As `pictures_by_folder`, of all classes."""
        folders, pictures, labels = pictures_by_folder(tree)
        if len(folders) != CLASSES:
            raise ClipError(
                f"{tree.source} has {len(folders)} folders, and {self.kind} has {CLASSES} classes; give the whole set, "
                "or read a part of it as the kind folders."
            )
        return folders, pictures, labels


class ImageNet(_ImageNet):
    """The folder with ImageNet's validation pictures."""

    kind: Literal["imagenet"] = "imagenet"

    def layouts(self) -> Sequence[Layout]:
        return [
            Layout("n01440764", _FOLDERS),
            Layout("ILSVRC2012_val_00000001.JPEG", _FOLDERS, ("ILSVRC2012_img_val.tar",)),
        ]

    def labelled(self) -> LabelledPictures:
        layout, tree = self.tree()
        if layout.mark == "n01440764":
            folders, pictures, labels = self._in_folders(tree)
        else:
            folders, by_picture = self._truth()
            paths = [path for path in tree.by_folder()[""] if is_picture(path)]
            pictures, labels = Files(tree, paths), np.array([self._label(path, by_picture, tree) for path in paths])
            if len(paths) < len(by_picture):
                warnings.warn(f"{tree.source} has {len(paths)} of the {len(by_picture)} pictures.", stacklevel=2)
        classes = self.class_names(folders, folders)
        return LabelledPictures(tree.source, pictures, labels, classes, self.prompts(classes))

    def _truth(self) -> tuple[list[str], list[int]]:
        """The WordNet number of each class, and the class of each picture in the order of their numbers."""
        try:
            _, devkit = tree_of(self.folder, [_DEVKIT])
        except ClipError as error:
            raise ClipError(
                f"The pictures of {self.folder} are not in class folders, so the devkit of ImageNet has to say of "
                f"which class each of them is: {error}"
            ) from error
        numbers = synsets(devkit.read("meta.mat"), os.path.join(devkit.source, "meta.mat"))
        wordnet = sorted(numbers[number] for number in range(1, CLASSES + 1))
        place = {name: label for label, name in enumerate(wordnet)}
        path = os.path.join(devkit.source, _TRUTH)
        lines = [line for line in lines_in(devkit.read(_TRUTH), path) if line]
        for line in lines:
            if not line.isascii() or not line.isdecimal() or not 1 <= int(line[:9]) <= CLASSES:
                raise ClipError(f"{path} has the line {line!r:.60}, not a number from 1 to {CLASSES}; get it again.")
        return wordnet, [place[numbers[int(line)]] for line in lines]

    @staticmethod
    def _label(path: str, by_picture: Sequence[int], tree: Tree) -> int:
        number = os.path.splitext(path)[0].rpartition("_")[2]
        if not number.isascii() or not number.isdecimal() or not 1 <= int(number[:9]) <= len(by_picture):
            raise ClipError(
                f"{tree.source} has the picture {path}, and the devkit knows ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{len(by_picture):08}.JPEG; remove it."
            )
        return by_picture[int(number) - 1]


_VARIANTS = {  # -> SHA-256 and bytes of the archive
    "matched-frequency": ("f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c", 1_264_079_360),
    "threshold0.7": ("32142bfe998f9cfa4141be691f6a80eeb1e27b24bd532a668eb08c26d98897a2", 1_249_906_176),
    "top-images": ("85e4ace30f3f0d660152062254b8759dda66267b27f7ec0fd8d5768f1073a04b", 1_245_927_936),
}


class ImageNetV2(_ImageNet):
    """The folder with the pictures of ImageNetV2, of one of its three variants."""

    kind: Literal["imagenetv2"] = "imagenetv2"
    variant: Literal["matched-frequency", "threshold0.7", "top-images"] = "matched-frequency"

    def published(self) -> Sequence[Published]:
        file = f"imagenetv2-{self.variant}.tar.gz"
        url = f"https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/{file}"
        return [Published(url, *_VARIANTS[self.variant], file)]

    def layouts(self) -> Sequence[Layout]:
        folder = f"imagenetv2-{self.variant}-format-val"
        return [Layout("999", (folder,), (f"imagenetv2-{self.variant}.tar.gz",), inside=folder)]

    def labelled(self) -> LabelledPictures:
        _, tree = self.tree()
        folders, pictures, labels = self._in_folders(tree)
        if folders != [str(number) for number in range(CLASSES)]:
            raise ClipError(f"The folders of {tree.source} do not have the numbers from 0 to 999; get the set again.")
        classes = self.class_names(folders)
        return LabelledPictures(tree.source, pictures, labels, classes, self.prompts(classes))
