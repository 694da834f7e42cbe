"""The families of pictures with classes that a recipe can name in ``evaluation.zero_shot``.

``folders``, as ImageNet's validation pictures are commonly laid out::

    n01440764/ILSVRC2012_val_00000293.JPEG    the folder is the class
    n01443537/ILSVRC2012_val_00000236.JPEG

Pictures may be in folders below it, and folders may be links. Classes are in the order of their folders' names, or of
their numbers when all names are such. What is passed over is said in a warning.

A file of class names has ``n01440764<tab>tench`` in each line, in any order and also for folders that are not there. It
may be a plain list when it is certain which line belongs to which folder: when the lines are the folders' names, when
those are the numbers from 0 or from 1 on, or when all usual ways to sort them agree. A line that begins with the name
of another folder, or with the number of any, is refused. Without a file, a folder's name with blanks for underscores is
the class's.

``food101`` is the test split of `clip_core.data.food101`, and ``shapes`` the combinations that no training on `shapes`
shows, among all combinations.

Pictures come in the order: the first of each class, the second of each class, and so on. Any number of the first ones
therefore has nearly as many of each class.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, Field

from clip_core.data.example import Texts
from clip_core.data.food101 import Food101
from clip_core.data.listing import lines_of, tree, warn_of_rest
from clip_core.data.settings import Count, Section, Templates, kind_in_place_of_source, shown
from clip_core.data.shapes import HELD_OUT
from clip_core.errors import ClipError
from clip_core.evaluation.shapes import SingleThings
from clip_core.image import SUFFIXES, open_image


class Labelled(Protocol):
    """Pictures that each belong to one of several classes."""

    @property
    def prompts(self) -> Sequence[Sequence[str]]:
        """The texts that describe each class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """A picture and the number of its class.

        Raises:
            ClipError: the picture cannot be used.
        """


class LabelledSettings(Section):
    """The keys of one family, by whose ``kind`` it is chosen."""

    kind: str
    scores: ClassVar[Mapping[str, int]] = {"zero_shot_top1": 1, "zero_shot_top5": 5}
    """Name of a score -> how many of the nearest classes count."""

    @abstractmethod
    def labelled(self) -> Labelled:
        """The pictures.

        Raises:
            ClipError: files are missing or not in the family's layout, or there is no picture in them.
        """


class Folders(LabelledSettings):
    """A folder that has a folder of pictures for each class."""

    kind: Literal["folders"] = "folders"
    folder: str
    names: str | None = None
    templates: Templates = ("a photo of a {}.",)

    def labelled(self) -> LabelledFiles:
        entries = _entries(self.folder)
        folders = [entry.name for entry in entries if entry.is_dir()]
        if all(map(_is_number, folders)):
            folders.sort(key=lambda name: (int(name), name))
        passed, again = [entry.name for entry in entries if not entry.is_dir()], []
        by_class: list[list[str]] = []
        for folder in folders:
            files, met_again = tree(os.path.join(self.folder, folder))
            by_class.append([path for path in files if os.path.splitext(path)[1].lower() in SUFFIXES])
            passed += [path for path in files if os.path.splitext(path)[1].lower() not in SUFFIXES]
            again += met_again
        warn_of_rest(self.folder, passed, again)
        return LabelledFiles(self.folder, by_class, _prompts(self.templates, self._class_names(folders)))

    def _class_names(self, folders: Sequence[str]) -> list[str]:
        if self.names is None:
            return [folder.replace("_", " ") for folder in folders]
        lines = [line for line in lines_of(self.names) if line]
        if any("\t" in line for line in lines):
            named: dict[str, str] = {}
            for folder, name in (map(str.strip, line.split("\t", 1)) for line in lines if "\t" in line):
                if folder in named:
                    raise ClipError(f"{self.names} names the folder {folder} twice; keep one of its lines.")
                named[folder] = name
            missing = [folder for folder in folders if not named.get(folder)]
            if missing:
                raise ClipError(f"{self.names} has no name for the folder {missing[0]} of {self.folder}; add it.")
            return [named[folder] for folder in folders]
        if len(lines) != len(folders):
            raise ClipError(
                f"{self.names} has {len(lines)} names, and {self.folder} has {len(folders)} folders; give a name for "
                "each, in the order of the sorted folders."
            )
        by_name = {_plain(line): line for line in lines}
        if by_name.keys() == {_plain(folder) for folder in folders} and len(by_name) == len(folders):
            return [by_name[_plain(folder)] for folder in folders]
        folders_by_key = {_key(folder): folder for folder in folders}
        for folder, line in zip(folders, lines):
            if (stated := _stated(line, folder, folders_by_key)) is not None:
                raise ClipError(
                    f"{self.names} is a plain list, and its line {shown(line)}, by its place that of the folder "
                    f"{folder}, names the folder {stated}; write each line as folder<tab>name."
                )
        other = _other_order(folders)
        if other is not None:
            here, there = next(pair for pair in zip(folders, other) if pair[0] != pair[1])
            raise ClipError(
                f"{self.names} is a plain list, and whether {here} or {there} comes first among the folders of "
                f"{self.folder} depends on who sorts them; write each line as folder<tab>name."
            )
        return lines


class Food101Classes(LabelledSettings, Food101):
    """Food-101; the templates are OpenAI's for this set."""

    kind: Literal["food101"] = "food101"
    split: Literal["train", "test"] = "test"

    def labelled(self) -> LabelledFiles:
        listing, names, pictures = self.pictures()
        by_class: dict[str, list[str]] = {name: [] for name in names}
        for key, name in pictures.items():
            by_class[name].append(os.path.join(self.folder, "images", f"{key}.jpg"))
        prompts = _prompts(self.templates, [name.replace("_", " ") for name in names])
        return LabelledFiles(listing, list(by_class.values()), prompts)


class Shapes(LabelledSettings):
    """Drawn pictures of one thing each (`clip_core.evaluation.shapes`)."""

    kind: Literal["shapes"] = "shapes"
    scores: ClassVar[Mapping[str, int]] = {"held_out_top1": 1}

    pictures_per_class: Count = 20

    def labelled(self) -> SingleThings:
        return SingleThings(HELD_OUT, "held out", self.pictures_per_class)


Family = Annotated[
    Folders | Food101Classes | Shapes,
    Field(discriminator="kind"),
    BeforeValidator(partial(kind_in_place_of_source, default="folders")),
]


class LabelledFiles:
    """Picture files, the first of each class before the second of any.

    Args:
        source: where they are from, for the message.
        by_class: the paths of each class.
        prompts: of each class.

    Raises:
        ClipError: there are none.
    """

    def __init__(self, source: str, by_class: Sequence[Sequence[str]], prompts: Sequence[Sequence[str]]):
        order = sorted((place, label) for label, paths in enumerate(by_class) for place in range(len(paths)))
        if not order:
            raise ClipError(f"{source} has no pictures ({', '.join(SUFFIXES)}) in folders, one per class; check it.")
        self.prompts = prompts
        self._paths = Texts(by_class[label][place] for place, label in order)
        self._labels = np.array([label for _, label in order])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self._paths[index]), int(self._labels[index])


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ClipError(f"{folder} cannot be read: {reason}; give a folder with a folder for each class.") from error


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _key(name: str) -> str:
    """What is the same for all spellings of a folder's name, or of its number."""
    return (name.lstrip("0") or "0") if _is_number(name) else _plain(name)


def _stated(line: str, folder: str, folders_by_key: Mapping[str, str]) -> str | None:
    """The folder that a line of a plain list names, if that is not ``folder`` or the line is numbered.

    "cat" and "cat, Siamese" may be the line of the folder ``cat``, but "0: cat" not even that of ``0``.
    """
    first = re.split(r"[\s.:,;)=]", line, maxsplit=1)[0]
    if first != line and _is_number(first) and _key(first) in folders_by_key:
        return folders_by_key[_key(first)]
    stated = folders_by_key.get(_key(line), folders_by_key.get(_key(first), folder))
    return None if stated == folder else stated


def _other_order(folders: Sequence[str]) -> list[str] | None:
    """Another order in which someone may have listed the sorted ``folders``; ``None`` when theirs is the only one."""
    if all(map(_is_number, folders)) and [int(name) for name in folders] in (
        list(range(len(folders))),
        list(range(1, len(folders) + 1)),
    ):
        return None
    ways = [
        lambda name: name,  # Python
        str.casefold,  # file managers
        lambda name: re.sub(r"[\W_]", "", name).casefold(),  # ls, in most languages
        lambda name: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)],
    ]
    return next((order for order in (sorted(folders, key=way) for way in ways) if order != list(folders)), None)


def _prompts(templates: Iterable[str], names: Iterable[str]) -> list[list[str]]:
    return [[template.replace("{}", name) for template in templates] for name in names]
