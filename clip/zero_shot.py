"""Which label fits a picture best: logits and probabilities of pictures against labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clip.api import Loaded
from clip_core import similarity
from clip_core.errors import TextError
from clip_core.preprocess import pixels


@dataclass(frozen=True)
class Scores:
    """Pictures by labels [n, m]."""

    logits: np.ndarray
    probabilities: np.ndarray


def score(loaded: Loaded, images: Sequence[Image.Image], labels: Sequence[str], template: str) -> Scores:
    """Compare each picture with each label put into ``template``.

    Raises:
        TextError: there are no labels, one occurs twice, or the template has no place for one.
    """
    if not labels:
        raise TextError("There are no labels; give some with --labels or --labels-file.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise TextError(f"The label {twice!r} occurs more than once; give each label once.")
    if template.count("{}") != 1:
        raise TextError(
            f"The template {template!r} has {template.count('{}')} places for the label; it needs one {{}}."
        )
    texts = [template.replace("{}", label) for label in labels]
    image_features = loaded.model.embed_image(pixels(images, loaded.model.architecture.image.resolution))
    text_features = loaded.model.embed_text(loaded.tokenize(texts))
    logits = similarity.logits(image_features, text_features, logit_scale(loaded))
    return Scores(logits, similarity.probabilities(logits))


def logit_scale(loaded: Loaded) -> float:
    """What the cosines of the model are multiplied by."""
    return float(np.exp(loaded.model.export()["logit_scale"]))
