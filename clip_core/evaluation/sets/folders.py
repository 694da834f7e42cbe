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

from clip_core.data.listing import tree, warn_of_rest
from clip_core.errors import ClipError
from clip_core.evaluation.sets.labelled import Files, LabelledPictures, PublishedSettings
from clip_core.evaluation.sets.names import in_order, names_in
from clip_core.image import SUFFIXES


class Folders(PublishedSettings):
    """A folder that has a folder of pictures for each class."""

    kind: Literal["folders"] = "folders"
    names: str | None = None  # a file of class names

    def labelled(self) -> LabelledPictures:
        folders, pictures, labels = pictures_by_folder(self.folder)
        if self.names is None:
            classes = [folder.replace("_", " ") for folder in folders]
        else:
            classes = names_in(self.names, folders, self.folder)
        return LabelledPictures(pictures, labels, classes, self.prompts(classes))


def pictures_by_folder(folder: str) -> tuple[list[str], Files, np.ndarray]:
    """The folders in a folder, the pictures in each of them, and the place of the folder of each picture.

    Raises:
        ClipError: a folder cannot be read, or has no pictures.
    """
    entries = _entries(folder)
    folders = in_order(entry.name for entry in entries if entry.is_dir())
    passed, again = [entry.name for entry in entries if not entry.is_dir()], []
    below = len(os.path.join(folder, ""))
    by_class: list[list[str]] = []
    for name in folders:
        files, met_again = tree(os.path.join(folder, name))
        by_class.append([path[below:] for path in files if os.path.splitext(path)[1].lower() in SUFFIXES])
        passed += [path for path in files if os.path.splitext(path)[1].lower() not in SUFFIXES]
        again += met_again
    if not any(by_class):
        raise ClipError(f"{folder} has no pictures ({', '.join(SUFFIXES)}) in folders, one per class; check it.")
    for name, paths in zip(folders, by_class):
        if not paths:
            raise ClipError(
                f"The class {name} of {folder} has no pictures ({', '.join(SUFFIXES)}) in its folder; remove the "
                "folder, or put some there."
            )
    warn_of_rest(folder, passed, again)
    labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class])
    return folders, Files(folder, [path for paths in by_class for path in paths]), labels


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ClipError(f"{folder} cannot be read: {reason}; give a folder with a folder for each class.") from error
