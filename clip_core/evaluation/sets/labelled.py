"""What a set of pictures with classes is: pictures by number, their classes, and the prompts of these."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.settings import Section, Templates
from clip_core.evaluation.prompts import prompts_of, resolved
from clip_core.image import open_image


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


class PublishedSettings(LabelledSettings):
    """The keys of all sets that are read from files."""

    default: ClassVar[tuple[str, ...]] = ("a photo of a {}.",)
    """The templates of a set that has none in its files."""

    folder: str  # of the files as they are published
    templates: Templates | str | None = None

    def prompts(self, classes: Sequence[str], own: Sequence[str] = ()) -> list[list[str]]:
        """The prompts of each class.

        Args:
            own: the templates in the set's own files.

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


class LabelledPictures:
    """Pictures with classes, the first of each class before the second of any.

    Args:
        labels: int64 [n], the class of each picture.
        classes: the name of each class.
        prompts: of each class.
    """

    def __init__(
        self, pictures: Pictures, labels: np.ndarray, classes: Sequence[str], prompts: Sequence[Sequence[str]]
    ):
        self.classes, self.prompts = classes, prompts
        self._pictures, self._labels = pictures, labels
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


class Files:
    """Picture files, by their paths below a folder."""

    def __init__(self, folder: str, paths: Sequence[str]):
        self._folder, self._paths = folder, Texts(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image(os.path.join(self._folder, self._paths[index]))

    def name(self, index: int) -> str:
        return self._paths[index]

    def fingerprint(self) -> str:
        return self._paths.fingerprint()


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
