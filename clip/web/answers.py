"""What the page shows: from pictures and texts as people give them to tables and drawings, or one sentence."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import backends
from clip.api import LoadedModel, open_model
from clip.figures import png, small
from clip.parity import bounds
from clip.search import Index
from clip.similarity import check_heat_map, heat_map, similarities
from clip.zero_shot import Classifier, template_for
from clip_core.data.collection.fetching import Fetcher, Limits, NotPublic
from clip_core.errors import ClipError, DownloadError, ImageError
from clip_core.files import read_regular
from clip_core.image import MAX_FILE_BYTES, image_size, open_image

MOST_TEXTS = 1000  # categories of one question
LONGEST_TEXT = 1000  # characters of one of them, and of a template
MOST_PIXELS = 32 << 20  # of one picture, which takes 4 bytes for each while it is decoded
MOST_PICTURES = 12  # of one heat map
MOST_FOUND = 48  # results of one search
MOST_LOADED = 4  # models that are kept in memory
FETCHING = Limits(seconds=10, attempts=1)  # of a picture at an address


@dataclass(frozen=True)
class Preset:
    """Categories to begin with."""

    name: str
    categories: tuple[str, ...]
    template: str


PRESETS = (
    Preset("shapes", ("red circle", "blue circle", "turquoise star", "striped red star", "three pink hearts"), "{}"),
    Preset("hair", ("white", "black", "brown", "red", "pink", "blue", "blond"), "A person with {} hair"),
    Preset("mood", ("happy", "sad", "calm", "angry", "funny", "crying"), "A {} person"),
)


@dataclass(frozen=True)
class Row:
    """What one category gets."""

    category: str
    probability: float
    logit: float


@dataclass(frozen=True)
class AgreementRow:
    """What one framework gives for a picture and its nearest category, beside all others."""

    backend: str
    nearest: str
    probability: float
    difference: float  # of logits: the largest from the first framework's


@dataclass(frozen=True)
class Found:
    """A row of an index."""

    name: str  # of a picture, or a text itself
    score: float  # the cosine with what was searched for
    picture: Image.Image | None  # small; None where its file is not here, or not as it was


class Answers:
    """Answers questions with any of some models, from any number of threads; one at a time is computed.

    Args:
        models: names or files, of which the first answers unless another one is chosen; by default the one that made
            the index, and without an index, ``shapes``.
        backend: that answers unless another one is chosen; by default the first that is installed.
        index: the folder of an index to search in, with the model that made it.

    Attributes:
        index: what is searched in, if there is one.

    Raises:
        ClipError: the index or the first model cannot be used.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        backend: str | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._fetcher = Fetcher(FETCHING)
        self.index: Index | None = None
        if index is None:
            name = models[0] if models else "shapes"
            first = open_model(name, backend=backend)
        else:
            made_by = Index(index).stamp.source
            name = models[0] if models and made_by not in models else made_by
            self.index = Index(index, model=name if models else None, backend=backend)
            first = self.index.loaded
        self.models = list(dict.fromkeys([name, *models]))
        self.backend = first.model.backend
        self._loaded: dict[tuple[str, str], LoadedModel] = {(name, self.backend): first}

    @property
    def template(self) -> str:
        """The template that suits the first model."""
        return template_for(self._loaded_model(self.models[0], self.backend))

    def classify(
        self, picture: str | None, address: str, categories: str, template: str, model: str, backend: str
    ) -> list[Row]:
        """The probability and the logit of each category, the most probable first.

        Args:
            picture: the path of a file.
            address: of a picture on the public internet, which counts if there is no file.
            categories: one in each line.
            template: of the texts, with one ``{}`` for the category.

        Raises:
            ClipError: a sentence for the page.
        """
        names = lines(categories, "category")
        check_length(template)
        content = self._content(picture, address)
        with self._lock:
            loaded = self._loaded_model(model, backend)
            image = open_picture(content)
            scores = Classifier(loaded, names, template).score(loaded.preprocess.pixels(image)[None])
        order = np.argsort(-scores.probabilities[0], kind="stable")
        return [
            Row(names[place], float(scores.probabilities[0, place]), float(scores.logits[0, place])) for place in order
        ]

    def agreement(
        self, picture: str | None, address: str, categories: str, template: str, model: str
    ) -> tuple[list[AgreementRow], float]:
        """The same picture in every framework that is installed, and the largest difference of logits that is allowed.

        Raises:
            ClipError: a sentence for the page.
        """
        names = lines(categories, "category")
        check_length(template)
        content = self._content(picture, address)
        rows: list[AgreementRow] = []
        first: np.ndarray | None = None
        with self._lock:
            image = open_picture(content)
            for backend in backends.available():
                loaded = self._loaded_model(model, backend)
                scores = Classifier(loaded, names, template).score(loaded.preprocess.pixels(image)[None])
                first = scores.logits if first is None else first
                best = int(scores.probabilities[0].argmax())
                difference = float(np.abs(scores.logits - first).max())
                rows.append(AgreementRow(backend, names[best], float(scores.probabilities[0, best]), difference))
            return rows, bounds(loaded.logit_scale)["logits"]

    def similarity(self, pictures: Sequence[str], texts: str, model: str, backend: str) -> Image.Image:
        """A heat map of the cosines of pictures and texts.

        Args:
            pictures: paths of files.
            texts: one in each line.

        Raises:
            ClipError: a sentence for the page.
        """
        wanted = lines(texts, "text")
        if not pictures:
            raise ClipError("There are no pictures; add some.")
        if len(pictures) > MOST_PICTURES:
            raise ClipError(f"{len(pictures)} pictures are too many for one drawing; choose at most {MOST_PICTURES}.")
        check_heat_map(len(pictures), len(wanted))
        pixels, shown = [], []
        with self._lock:
            loaded = self._loaded_model(model, backend)
            for path in pictures:  # of which one at a time is held in full size
                image = open_picture(read_upload(path))
                pixels.append(loaded.preprocess.pixels(image))
                shown.append(small(image))
            names = [f"picture {number}" for number in range(1, len(shown) + 1)]
            found = similarities(loaded, names, np.stack(pixels), wanted)
            return Image.open(io.BytesIO(png(heat_map(found, shown))))

    def search(self, text: str, picture: str | None, address: str, minus: str, count: int) -> list[Found]:
        """What is nearest in the index to a text, a picture or both, the nearest first.

        Args:
            text: one, or blank.
            picture, address: as for `classify`; there may be neither.
            minus: texts that results shall be far from, one in each line.
            count: of results.

        Raises:
            ClipError: a sentence for the page.
        """
        if self.index is None:
            raise ClipError("This page has no index to search in.")
        if not 1 <= count <= MOST_FOUND:
            raise ClipError(f"Between 1 and {MOST_FOUND} results are shown; choose another number of them.")
        given = picture is not None or address.strip()
        if not given and not text.strip():
            raise ClipError("There is nothing to search for; write a text, or give a picture.")
        check_length(text)
        far = lines(minus, "text") if minus.strip() else []
        content = self._content(picture, address) if given else None
        with self._lock:
            image = None if content is None else open_picture(content)
            hits = self.index.search(text.strip() or None, image=image, minus=far, count=count)
            if self.index.store.texts:
                return [Found(hit.row["text"], hit.score, None) for hit in hits]
            return [Found(name_of(hit.row), hit.score, thumbnail(hit.row)) for hit in hits]

    def _content(self, picture: str | None, address: str) -> bytes:
        """The bytes of a picture's file, or else of what an address gives.

        Raises:
            ClipError: there is neither, or it cannot be read.
        """
        if picture is not None:
            return read_upload(picture)
        if not address.strip():
            raise ClipError("There is no picture; upload or paste one, or give its address.")
        try:
            return self._fetcher.fetch(address.strip())
        except NotPublic as error:  # which tells what names mean in the network of this machine
            raise DownloadError("The address is not one of the public internet; upload the picture.") from error

    def _loaded_model(self, name: str, backend: str) -> LoadedModel:
        """The model, which is loaded where it is not yet; only those that the page offers."""
        if name not in self.models or backend not in backends.available():
            raise ClipError("This page does not offer this model in this framework; choose others.")
        key = (name, backend)
        if key not in self._loaded:
            loaded = open_model(name, backend=backend)
            while len(self._loaded) >= MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[key] = loaded
        return self._loaded[key]


def read_upload(path: str) -> bytes:
    """What an uploaded file holds; no message names its path.

    Raises:
        ImageError: it has been deleted.
    """
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError("The picture is no longer kept here; upload it again.") from error


def open_picture(content: bytes) -> Image.Image:
    """The picture in the bytes of a file.

    Raises:
        ImageError: it cannot be used, or has too many pixels.
    """
    width, height = image_size(content)
    if width * height > MOST_PIXELS:
        raise ImageError(f"The picture has {width} x {height} pixels; at most {MOST_PIXELS} are decoded, so shrink it.")
    return open_image(content)


def thumbnail(row: dict[str, Any]) -> Image.Image | None:
    """The picture of a row of an index, small, if its file is there and is what was embedded.

    An index may come from somewhere else, and name any file of this machine: that whoever made it had this very file is
    known from its digest.
    """
    with suppress(ClipError):
        content = read_regular(row["path"], MAX_FILE_BYTES)
        if hashlib.sha256(content).hexdigest() == row["sha256"]:
            found = small(open_picture(content))
            found.info.clear()  # which may tell where a photograph was taken
            return found
    return None


def name_of(row: dict[str, Any]) -> str:
    """What the page calls a picture of an index: nothing that tells of the folders of this machine."""
    return Path(row["id"]).name if os.path.isabs(row["id"]) else row["id"]


def lines(text: str, kind: str) -> list[str]:
    """The lines that are not blank, without blanks around them.

    Raises:
        ClipError: there are none, too many, or one that is too long.
    """
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ClipError(f"There is no {kind}; write one in each line.")
    if len(found) > MOST_TEXTS:
        raise ClipError(f"There are {len(found)} lines; write at most {MOST_TEXTS}, one {kind} in each.")
    for line in found:
        check_length(line)
    return found


def check_length(text: str) -> None:
    """Refuse a text that is too long.

    Raises:
        ClipError: it is.
    """
    if len(text) > LONGEST_TEXT:
        raise ClipError(f"A text has {len(text)} characters; write at most {LONGEST_TEXT}.")


def examples() -> list[Path]:
    """Pictures that come with the package."""
    from clip import samples

    return list(samples.pictures().values())
