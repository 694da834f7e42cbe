"""Caltech 101 (Fei-Fei and others 2004): a folder of pictures for each class.

::

    101_ObjectCategories/accordion/image_0001.jpg
    101_ObjectCategories/BACKGROUND_Google/image_0001.jpg      pictures of anything, which are left out by default

The folder is the given one, ``101_ObjectCategories`` in it, or in ``101_ObjectCategories.tar.gz`` or the
``caltech-101.zip`` that holds this. A folder's name with blanks for underscores is the class's; with ``names: openai``
those that OpenAI uses count, as ``off-center face`` for ``Faces``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from clip_core.data.trees import Layout
from clip_core.evaluation.prompts import openai_names
from clip_core.evaluation.sets.folders import pictures_by_folder
from clip_core.evaluation.sets.labelled import LabelledPictures, Published, PublishedSettings

BACKGROUND = "BACKGROUND_Google"
_FOLDER, _ARCHIVE = "101_ObjectCategories", "101_ObjectCategories.tar.gz"


class Caltech101(PublishedSettings):
    """The folder with the folders of Caltech 101."""

    kind: Literal["caltech101"] = "caltech101"
    background: bool = False  # whether BACKGROUND_Google is a class

    def layouts(self) -> Sequence[Layout]:
        folders = (_FOLDER, f"caltech101/{_FOLDER}", f"caltech-101/{_FOLDER}")
        archives = (_ARCHIVE, f"caltech-101/{_ARCHIVE}", f"caltech-101.zip/caltech-101/{_ARCHIVE}")
        return [Layout("accordion", folders, archives, inside=_FOLDER)]

    def published(self) -> Sequence[Published]:
        url = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
        digest = "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91"
        return [Published(url, digest, 137_414_764, "caltech-101.zip")]

    def labelled(self) -> LabelledPictures:
        _, tree = self.tree()
        folders, pictures, labels = pictures_by_folder(tree, without="" if self.background else BACKGROUND)
        if self.names == "openai":  # whose list begins with the background
            classes = openai_names(self.kind, len(folders) + (not self.background))[not self.background :]
        else:
            classes = self.class_names([folder.replace("_", " ") for folder in folders], folders)
        return LabelledPictures(tree.source, pictures, labels, classes, self.prompts(classes))
