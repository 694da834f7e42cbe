"""What the page shows: from pictures and texts as people give them to tables and drawings, or one sentence."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import backends
from clip.api import LoadedModel, open_model
from clip.figures import png
from clip.parity import bounds
from clip.similarity import check_heat_map, heat_map, similarities
from clip.zero_shot import Classifier, template_for
from clip_core.data.collection.fetching import Fetcher, Limits
from clip_core.errors import ClipError
from clip_core.image import MAX_FILE_BYTES, open_image

MOST_TEXTS = 1000  # categories of one question
MOST_PICTURES = 12  # of one heat map
MOST_LOADED = 4  # models that are kept in memory


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


class Answers:
    """Answers questions with any of some models, one at a time.

    Args:
        models: names or files, of which the first answers unless another one is chosen.
        backend: that answers unless another one is chosen; by default the first that is installed.
        limits: on pictures that are fetched from addresses.

    Raises:
        ClipError: the first model cannot be loaded.
    """

    def __init__(self, models: Sequence[str], backend: str | None = None, limits: Limits | None = None) -> None:
        self.models = list(dict.fromkeys(models))
        self._loaded: dict[tuple[str, str], LoadedModel] = {}
        self._lock = threading.Lock()
        self._fetcher = Fetcher(limits or Limits(seconds=10, attempts=1))
        first = open_model(self.models[0], backend=backend)
        self.backend = first.model.backend
        self._loaded[self.models[0], self.backend] = first

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
        image = self.image(picture, address)
        with self._lock:
            loaded = self._loaded_model(model, backend)
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
        image = self.image(picture, address)
        rows: list[AgreementRow] = []
        first: np.ndarray | None = None
        with self._lock:
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
        images = [read_picture(path) for path in pictures]
        with self._lock:
            loaded = self._loaded_model(model, backend)
            pixels = np.stack([loaded.preprocess.pixels(image) for image in images])
            found = similarities(loaded, [f"picture {number + 1}" for number in range(len(images))], pixels, wanted)
        return Image.open(io.BytesIO(png(heat_map(found, images))))

    def image(self, picture: str | None, address: str) -> Image.Image:
        """The picture of a file, or else of an address.

        Raises:
            ClipError: there is neither, or it cannot be used.
        """
        if picture is not None:
            return read_picture(picture)
        if not address.strip():
            raise ClipError("There is no picture; upload or paste one, or give its address.")
        return open_image(self._fetcher.fetch(address.strip()))

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


def read_picture(path: str) -> Image.Image:
    """The picture in a file, whose path no message names.

    Raises:
        ImageError: it cannot be used.
    """
    with open(path, "rb") as file:
        return open_image(file.read(MAX_FILE_BYTES + 1))


def lines(text: str, kind: str) -> list[str]:
    """The lines that are not blank, without blanks around them.

    Raises:
        ClipError: there are none, or too many.
    """
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ClipError(f"There is no {kind}; write one in each line.")
    if len(found) > MOST_TEXTS:
        raise ClipError(f"There are {len(found)} lines; write at most {MOST_TEXTS}, one {kind} in each.")
    return found


def examples() -> list[Path]:
    """Pictures that come with the package."""
    from clip import samples

    return list(samples.pictures().values())
