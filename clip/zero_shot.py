"""Which label fits a picture best: logits and probabilities of pictures against labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip.api import LoadedModel
from clip_core import similarity
from clip_core.batching import embed_texts
from clip_core.errors import CheckpointError, TextError
from clip_core.evaluation.zero_shot import image_features
from clip_core.models import SHAPES

PHOTO_TEMPLATE = "a photo of a {}."  # OpenAI's models do best with a sentence
PLAIN_TEMPLATE = "{}"


@dataclass(frozen=True)
class Scores:
    """Pictures by labels [n, m].

    Of a model with a logit bias, which was trained to judge each pair by itself, each probability is that of its own
    label alone; otherwise those of a picture add up to 1.
    """

    logits: np.ndarray
    probabilities: np.ndarray


class Classifier:
    """Compares pictures with labels, each put into ``template``; the labels are encoded once.

    Args:
        template: a text with one ``{}`` for the label.
        truncate: cut texts that are too long for the model; otherwise they are refused.

    Raises:
        TextError: there are no labels, one occurs twice or cannot be used, or the template has no place for one.
    """

    def __init__(self, loaded: LoadedModel, labels: Sequence[str], template: str, truncate: bool = False) -> None:
        remedy = "shorten it, or cut it with --truncate"
        tokens = label_tokens(loaded, labels, template, remedy, truncate)
        self.loaded, self.labels = loaded, list(labels)
        with np.errstate(all="ignore"):  # what comes of it is looked at with the logits
            self._texts = similarity.normalize(embed_texts(loaded.model, tokens))

    def score(self, pixels: np.ndarray) -> Scores:
        """Compare each picture of ``pixels`` float32 [n, 3, r, r] with each label.

        Raises:
            CheckpointError: the model's weights are such that a logit is no finite number.
        """
        with np.errstate(all="ignore"):
            images = image_features(self.loaded.model, pixels)
        return scores(self.loaded, images, self._texts)


def template_for(loaded: LoadedModel) -> str:
    """The template that suits a model where nobody gives one."""
    return PLAIN_TEMPLATE if loaded.model.architecture == SHAPES else PHOTO_TEMPLATE


def label_tokens(
    loaded: LoadedModel, labels: Sequence[str], template: str, remedy: str, truncate: bool = False
) -> np.ndarray:
    """Tokens int64 [m, context] of labels, each put into ``template``.

    Args:
        remedy: what to do with a label that is too long.

    Raises:
        TextError: there are no labels, one occurs twice or cannot be used, or the template has no place for one.
    """
    if not labels:
        raise TextError("There are no labels; give some with --labels or --labels-file.")
    label, occurrences = Counter(labels).most_common(1)[0]
    if occurrences > 1:
        raise TextError(f"The label {label!r} occurs more than once; give each label once.")
    if template.count("{}") != 1:
        raise TextError(
            f"The template {template!r} has {template.count('{}')} places for the label; it needs one {{}}."
        )
    texts = [template.replace("{}", label) for label in labels]
    length = loaded.model.architecture.text.context_length
    for label, text in zip(labels, texts):
        try:
            loaded.model.tokenizer.check(text, None if truncate else length, remedy)
        except TextError as error:
            raise TextError(f"The label {label!r:.100} cannot be used: {error}") from error
    return loaded.model.tokenizer.tokenize(texts, length, truncate=True)


def scores(loaded: LoadedModel, images: np.ndarray, texts: np.ndarray) -> Scores:
    """Compare features of pictures [n, d] with those of labels [m, d].

    Raises:
        CheckpointError: a logit is no finite number.
    """
    with np.errstate(all="ignore"):
        logits = similarity.logits(images, texts, loaded.logit_scale)
        if loaded.logit_bias is not None:
            logits += logits.dtype.type(loaded.logit_bias)
    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"{loaded.name} gives logits that are not finite numbers; look at its weights with clip inspect."
        )
    alone = loaded.logit_bias is not None
    return Scores(logits, (similarity.pair_probabilities if alone else similarity.probabilities)(logits))
