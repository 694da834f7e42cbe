"""Typographic attacks: the name of another class is written onto each picture, and some models follow it.

The attack is that of Goh and others, Multimodal Neurons in Artificial Neural Networks (2021): a label on a piece of
paper. Here the label is drawn. Its wrong class, its size and its place are chosen by seed and number of the picture.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip_core.data.example import fingerprint_of
from clip_core.errors import ClipError, ImageError
from clip_core.evaluation.agreement import Choices, choices
from clip_core.evaluation.scores import ERROR, ZeroShotScores, zero_shot_scores
from clip_core.evaluation.sets.labelled import Labelled
from clip_core.evaluation.tasks import Encoded, Encoder, ZeroShot
from clip_core.image import in_eight_bits
from clip_core.similarity import normalize

HEIGHTS = 0.10, 0.18  # of the letters, by the shorter side of the picture
MARGIN = 0.35  # of the paper around the letters, by their height
WIDEST = 0.96  # of the paper, by the width of the picture
PAPER, INK = (250, 250, 245), (20, 20, 20)
NO_CHARACTER = "\uffff"  # which no font has


class Typographic(ZeroShot):
    """Zero-shot classification of pictures before and after the name of another class is written onto them.

    The scores are ``top1_before`` and ``top1_after``, the share that is put into its own class, and
    ``follows_the_text``, the share that is put into the written class. All else that is told is of the written-on
    pictures.

    Args:
        labelled: pictures of two classes or more.
        seed: of what is written, how large, and where.

    Raises:
        ClipError: there is one class alone, or the name of one cannot be written.
    """

    title = "typographic attack"

    def __init__(self, labelled: Labelled, seed: int = 0) -> None:
        super().__init__(labelled)
        self.written = Written(labelled, seed)

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {"written_seed": self.written.seed}

    def encode(self, encoder: Encoder) -> Encoded:
        before = super().encode(encoder)
        after = encoder.pictures(self.written, self.written.fingerprint())
        indices, of_before, of_after = np.intersect1d(before.features["indices"], after.indices, return_indices=True)
        features = {
            "images": before.features["images"][of_before],
            "written": normalize(after.features[of_after]),
            "classes": before.features["classes"],
            "indices": indices,
        }
        return Encoded(
            features, {**before.faults} | {self.labelled.name(index): why for index, why in after.faults.items()}
        )

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> ZeroShotScores:
        classes, indices = encoded.features["classes"], encoded.features["indices"]
        own, written = self.labelled.labels[indices], self.written.labels[indices]

        def scores(pictures: str, labels: np.ndarray) -> ZeroShotScores:
            features = encoded.features[pictures]
            return zero_shot_scores(
                features, classes, labels, self.labelled.classes, logit_scale, seed=seed, error=error
            )

        after = scores("written", own)
        return replace(
            after,
            scores={
                "top1_before": scores("images", own).scores["top1"],
                "top1_after": after.scores["top1"],
                "follows_the_text": scores("written", written).scores["top1"],
            },
        )

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        features = encoded.features
        return {
            "class before": choices(features["images"], features["classes"]),
            "class after": choices(features["written"], features["classes"]),
        }


class Written:
    """The pictures of a set, each with the name of a class that is not its own; arguments as of `Typographic`."""

    def __init__(self, labelled: Labelled, seed: int) -> None:
        for name in labelled.classes:
            check_letters(name)
        self.labelled, self.seed = labelled, seed
        others = np.random.default_rng(seed).integers(1, len(labelled.classes), len(labelled))
        self.labels = (labelled.labels + others) % len(labelled.classes)  # int64 [n], of what is written

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Image.Image:
        generator = np.random.default_rng((self.seed, index))
        return write(self.labelled[index][0], self.labelled.classes[self.labels[index]], generator)

    def fingerprint(self) -> str:
        return fingerprint_of(self.labelled.fingerprint(), self.labels, [self.seed])

    def files(self) -> Iterable[str]:
        return self.labelled.files()


def write(image: Image.Image, text: str, generator: np.random.Generator) -> Image.Image:
    """A copy of a picture in RGB with ``text`` on a piece of paper, wholly inside of it.

    Args:
        image: of any mode and size.
        generator: of the size and the place.

    Raises:
        ImageError: the picture's mode has no conversion to RGB.
    """
    try:
        picture, text = in_eight_bits(image, "The picture").convert("RGB"), unaccented(text)
    except ValueError as error:
        raise ImageError(f"The picture has mode {image.mode}, which cannot be written on: {error}.") from error
    font = _font(max(6, round(generator.uniform(*HEIGHTS) * min(picture.size))))
    while font.size > 6 and _paper(font, text)[0] > WIDEST * picture.width:
        font = _font(int(font.size) - 1)
    width, height = _paper(font, text)
    left, top = (int(generator.uniform(0, max(0, room))) for room in (picture.width - width, picture.height - height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, left + width, top + height), PAPER)
    draw.text((left + width / 2, top + height / 2), text, INK, font, anchor="mm")
    return picture


def unaccented(text: str) -> str:
    """``text`` without the accents of its letters, which the font of Pillow does not have."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def check_letters(text: str) -> None:
    """Refuse a text that the font of Pillow cannot write.

    Raises:
        ClipError: naming the first letter that is missing.
    """
    font = _font(20)
    nothing = bytes(font.getmask(NO_CHARACTER))
    for letter in unaccented(text):
        if not letter.isspace() and bytes(font.getmask(letter)) == nothing:
            raise ClipError(
                f"The class {text!r} cannot be written onto pictures: the font has no {letter!r}; give names in Latin "
                "letters, with a file of --names where the set takes one."
            )


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ClipError("This Pillow cannot write: it is built without FreeType; install Pillow from PyPI.")
    return font


def _paper(font: ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    """Width and height of the paper for a text."""
    left, top, right, bottom = font.getbbox(text)
    margin = 2 * MARGIN * font.size
    return round(right - left + margin), round(max(bottom - top, font.size) + margin)
