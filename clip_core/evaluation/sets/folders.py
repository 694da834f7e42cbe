"""A folder for each class, as ImageNet's validation pictures are commonly laid out.

::

    n01440764/ILSVRC2012_val_00000293.JPEG    the folder is the class
    n01443537/ILSVRC2012_val_00000236.JPEG

Pictures may be in folders below it, and folders may be links. Classes are in the order of their folders' names, or of
their numbers when all names are such. A class without pictures is refused, and what is passed over is said in a
warning.

A file of class names has ``n01440764<tab>tench`` in each line, in any order and also for folders that are not there. It
may be a plain list when it is certain which line belongs to which folder: when the lines are the folders' names, when
those are the numbers from 0 or from 1 on, or when all usual ways to sort them agree. A line that begins with the name
of another folder, or with the number of any, is refused. Without a file, a folder's name with blanks for underscores is
the class's.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from clip_core.data.listing import warn_of_rest
from clip_core.data.trees import Folder, Tree
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Files, LabelledPictures, PublishedSettings
from clip_core.evaluation.sets.names import in_order
from clip_core.image import SUFFIXES


class Folders(PublishedSettings):
    """A folder that has a folder of pictures for each class."""

    kind: Literal["folders"] = "folders"

    def labelled(self) -> LabelledPictures:
        folders, pictures, labels = pictures_by_folder(Folder(self.folder))
        classes = self.class_names([folder.replace("_", " ") for folder in folders], folders)
        return LabelledPictures(self.folder, pictures, labels, classes, self.prompts(classes))


def pictures_by_folder(tree: Tree, without: str = "") -> tuple[list[str], Files, np.ndarray]:
    """The folders of a tree, the pictures in each of them, and the place of the folder of each picture.

    Args:
        without: a folder that is no class.

    Raises:
        ClipError: a folder cannot be read, or has no pictures.
    """
    found = tree.by_folder()
    folders = in_order(folder for folder in found if folder not in ("", without))
    by_class = [[path for path in found[folder] if is_picture(path)] for folder in folders]
    if not any(by_class):
        raise ClipError(f"{tree.source} has no pictures ({', '.join(SUFFIXES)}) in folders, one per class; check it.")
    for folder, paths in zip(folders, by_class):
        if not paths:
            raise ClipError(
                f"The class {folder} of {tree.source} has no pictures ({', '.join(SUFFIXES)}) in its folder; remove "
                "the folder, or put some there."
            )
    warn_of_rest(tree.source, [*found[""], *(path for each in folders for path in found[each] if not is_picture(path))])
    labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class])
    return folders, Files(tree, [path for paths in by_class for path in paths]), labels


def is_picture(path: str) -> bool:
    """Whether the name of a file is that of a picture."""
    return os.path.splitext(path)[1].lower() in SUFFIXES
