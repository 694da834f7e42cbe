"""Which label fits a picture best: logits and probabilities of pictures against labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip.api import Loaded
from clip_core import similarity
from clip_core.errors import CheckpointError, TextError
from clip_core.evaluation.zero_shot import image_features, text_features


@dataclass(frozen=True)
class Scores:
    """Pictures by labels [n, m]."""

    logits: np.ndarray
    probabilities: np.ndarray


def score(loaded: Loaded, pixels: np.ndarray, labels: Sequence[str], template: str) -> Scores:
    """Compare each picture with each label put into ``template``.

    Args:
        pixels: float32 [n, 3, r, r].
        template: a text with one ``{}`` for the label.

    Raises:
        TextError: there are no labels, one occurs twice, or the template has no place for one.
        CheckpointError: the model's weights are such that a logit is no finite number.
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
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        logits = similarity.logits(
            image_features(loaded.model, pixels),
            text_features(loaded.model, loaded.model.tokenizer, texts),
            loaded.logit_scale,
        )
    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"{loaded.name} gives logits that are not finite numbers; look at its weights with clip inspect."
        )
    return Scores(logits, similarity.probabilities(logits))
