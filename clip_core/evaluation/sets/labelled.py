"""What a set of pictures with classes is: pictures by number, their classes, and the prompts of these."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.settings import Section, Templates
from clip_core.data.trees import Layout, Tree, tree_of
from clip_core.download import download
from clip_core.errors import ClipError
from clip_core.evaluation.prompts import openai_names, prompts_of, resolved
from clip_core.evaluation.sets.names import names_in


class Labelled(Protocol):
    """Pictures that each belong to one of several classes."""

    @property
    def classes(self) -> Sequence[str]:
        """The name of each class, as it stands in prompts."""

    @property
    def prompts(self) -> Sequence[Sequence[str]]:
        """The texts that describe each class."""

    @property
    def labels(self) -> np.ndarray:
        """The number of each picture's class, int64 [n]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """A picture and the number of its class.

        Raises:
            ClipError: the picture cannot be used.
        """

    def name(self, index: int, /) -> str:
        """What a report calls a picture: its path below the folder, its place in an archive, or its row."""

    def fingerprint(self) -> str:
        """What tells these pictures and their classes from others, without decoding them; prompts do not count."""

    def files(self) -> Iterable[str]:
        """The files that pictures are read from, in an order of their own; nothing where they are drawn."""


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


class Published(NamedTuple):
    """A file that anyone may fetch."""

    url: str
    sha256: str  # as TensorFlow Datasets lists it
    size: int  # bytes
    file: str  # its name in the folder


class PublishedSettings(LabelledSettings):
    """The keys of all sets that are read from files."""

    default: ClassVar[tuple[str, ...]] = ("a photo of a {}.",)
    """The templates of a set that has none in its files."""

    folder: str  # of the files as they are published
    names: str | None = None  # a file of class names, or `openai`
    templates: Templates | str | None = None  # a list of them, the name of one, or a file

    def layouts(self) -> Sequence[Layout]:
        """The forms in which the set is published."""
        return ()

    def published(self) -> Sequence[Published]:
        """The files of the set that anyone may fetch."""
        return ()

    def download(self, progress: Callable[[int, int | None], None] | None = None) -> None:
        """Fetch the files of the set into its folder, unless it is there already in one of its forms.

        Raises:
            ClipError: nobody may fetch them, or they cannot be fetched or written.
        """
        files = self.published()
        if not files:
            raise ClipError(
                f"The set {self.kind} has no public address; get it from those who publish it, and give its folder."
            )
        if not any(layout.place(self.folder) for layout in self.layouts()):
            for file in files:
                target = os.path.join(self.folder, file.file)
                download(file.url, target, file.sha256, expected_size=file.size, progress=progress)

    def tree(self) -> tuple[Layout, Tree]:
        """In which form the set is there, and its files.

        Raises:
            ClipError: it is in none.
        """
        return tree_of(self.folder, self.layouts())

    def class_names(self, own: Sequence[str], called: Sequence[str] | None = None) -> list[str]:
        """The names of the classes as they stand in prompts.

        Args:
            own: the names in the files of the set.
            called: what the files call the classes, in the order of the labels, where it is not the name.

        Raises:
            ClipError: the setting ``names`` does not give as many, or one that belongs to no class for certain.
        """
        if self.names is None:
            return list(own)
        if self.names != "openai":
            return names_in(self.names, called or own, self.folder, by_label=called is None)
        return openai_names(self.kind, len(own))

    def prompts(self, classes: Sequence[str], own: Sequence[str] = ()) -> list[list[str]]:
        """The prompts of each class.

        Args:
            own: the templates in the files of the set.

        Raises:
            ClipError: the templates cannot be found or used.
        """
        return prompts_of(classes, resolved(self.templates, self.kind) or tuple(own) or self.default)


class Pictures(Protocol):
    """Pictures by number, wherever they are kept."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image:
        """Raises `ClipError` when the picture cannot be used."""

    def name(self, index: int, /) -> str: ...

    def fingerprint(self) -> str: ...

    def files(self) -> Iterable[str]:
        """The files that are read anew for each picture."""


class LabelledPictures:
    """Pictures with classes.

    Args:
        source: what they are from, for messages.
        labels: int64 [n], the class of each picture.
        classes: the name of each class.
        prompts: of each class.
        in_turn: whether the first of each class come before the second of any; otherwise pictures keep their order.

    Raises:
        ClipError: there are no pictures, or a label is of no class.
    """

    def __init__(
        self,
        source: str,
        pictures: Pictures,
        labels: np.ndarray,
        classes: Sequence[str],
        prompts: Sequence[Sequence[str]],
        in_turn: bool = True,
    ):
        if len(pictures) != len(labels) or not len(labels):
            raise ClipError(f"{source} has {len(pictures)} pictures and {len(labels)} labels; get it again.")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ClipError(
                f"{source} has labels from {labels.min()} to {labels.max()}, counted from 0, and {len(classes)} "
                "classes; get it again."
            )
        self.classes, self.prompts = classes, prompts
        self._pictures, self._labels = pictures, labels
        self._order = np.arange(len(labels))
        if not in_turn:
            return
        by_class = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(classes))
        places = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each within its class
        self._order = by_class[np.argsort(places, kind="stable")]

    @property
    def labels(self) -> np.ndarray:
        return self._labels[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        place = self._order[index]
        return self._pictures[place], int(self._labels[place])

    def name(self, index: int) -> str:
        return self._pictures.name(self._order[index])

    def fingerprint(self) -> str:
        return fingerprint_of(self._pictures.fingerprint(), self._labels, Texts(self.classes))

    def files(self) -> Iterable[str]:
        return self._pictures.files()


class Part:
    """Some pictures of a set, of the classes that have pictures in it.

    Args:
        places: int64 [n], their numbers in the set.
    """

    def __init__(self, whole: Labelled, places: np.ndarray) -> None:
        used, labels = np.unique(whole.labels, return_inverse=True)
        self._whole, self._places = whole, places
        self.classes = [whole.classes[number] for number in used]
        self.prompts = [whole.prompts[number] for number in used]
        self.labels = labels.reshape(-1)[places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._whole[int(self._places[index])][0], int(self.labels[index])

    def name(self, index: int) -> str:
        return self._whole.name(int(self._places[index]))

    def fingerprint(self) -> str:
        return fingerprint_of(self._whole.fingerprint(), self._places)

    def files(self) -> Iterable[str]:
        return self._whole.files()


class Files:
    """Picture files of a tree, by their paths."""

    def __init__(self, tree: Tree, paths: Sequence[str]):
        self._tree, self._paths = tree, Texts(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        return self._tree.picture(self._paths[index])

    def name(self, index: int) -> str:
        return self._paths[index]

    def fingerprint(self) -> str:
        return self._tree.fingerprint(list(self._paths))

    def files(self) -> Iterable[str]:
        return self._tree.files(self._paths)


class Arrays:
    """Pictures as pixels uint8 [n, h, w, 3] or, grey, [n, h, w].

    Args:
        source: the file that they are from.
    """

    def __init__(self, source: str, pixels: np.ndarray):
        self._source, self._pixels = os.path.basename(source), pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._pixels[index]))

    def name(self, index: int) -> str:
        return f"{self._source}/{index}"

    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._pixels).data).hexdigest()

    def files(self) -> Iterable[str]:
        return ()
