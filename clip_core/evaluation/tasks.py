"""What a model can be scored on: each task encodes its data with a model, and scores the features.

Features are kept apart from scores, so that several backends can be scored on the same data and their choices compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clip_core.backend import Model
from clip_core.data.example import Source
from clip_core.errors import ClipError
from clip_core.evaluation.agreement import Choices, choices
from clip_core.evaluation.features import (
    BATCH,
    PictureFeatures,
    Pictures,
    Progress,
    Store,
    encode_pictures,
    encode_texts,
    quiet,
)
from clip_core.evaluation.sentences import Sentences
from clip_core.evaluation.scores import (
    Scores,
    retrieval_scores,
    sentence_scores,
    zero_shot_scores,
)
from clip_core.evaluation.sets.labelled import Labelled
from clip_core.similarity import normalize

@dataclass(frozen=True)
class Encoder:
    """How a task encodes its data with one model."""

    model: Model
    batch_size: int = BATCH
    workers: int | None = None
    limit: int | None = None
    fault_share: float = 0.01
    store: Callable[[str], Store | None] = lambda fingerprint: None
    progress: Progress = quiet

    def pictures(self, pictures: Pictures, fingerprint: str) -> PictureFeatures:
        """The features of a set of pictures, as `encode_pictures` gives them."""
        return encode_pictures(
            self.model,
            pictures,
            limit=self.limit,
            batch_size=self.batch_size,
            workers=self.workers,
            fault_share=self.fault_share,
            store=self.store(fingerprint),
            progress=self.progress,
        )

    def texts(self, texts: Sequence[str], what: str, truncate: bool = False) -> np.ndarray:
        """The features of texts, as `encode_texts` gives them."""
        return encode_texts(
            self.model, self.model.tokenizer, texts, truncate=truncate, what=what, progress=self.progress
        )


@dataclass(frozen=True)
class Encoded:
    """The data of a task under one model."""

    features: Mapping[str, np.ndarray]  # unit float32 [n, d] by name, and what else scores depend on
    faults: Mapping[str, str] = field(default_factory=dict)  # what is left out -> why


class Task(Protocol):
    """Data, and what a model is scored by on it."""

    @property
    def description(self) -> dict[str, Any]:
        """What the data is, as plain data for JSON."""

    def encode(self, encoder: Encoder) -> Encoded:
        """Encode the data with a model.

        Raises:
            ClipError: too much of it cannot be used, or the model cannot encode it.
        """

    def score(self, encoded: Encoded, logit_scale: float, seed: int) -> Scores:
        """The scores of one model.

        Args:
            logit_scale: of the model, for probabilities.
            seed: of all that is drawn at random.

        Raises:
            ClipError: there is too little data for scores.
        """

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        """What one model chooses, to be compared with what it chooses in another backend."""


class ZeroShot:
    """Pictures with classes: each picture is put into the class that is nearest to it (paper, section 3.1)."""

    def __init__(self, labelled: Labelled) -> None:
        self.labelled = labelled

    @property
    def description(self) -> dict[str, Any]:
        return {
            "pictures": len(self.labelled),
            "classes": len(self.labelled.classes),
            "prompts": sum(map(len, self.labelled.prompts)),
            "fingerprint": self.labelled.fingerprint(),
        }

    def encode(self, encoder: Encoder) -> Encoded:
        prompts = self.labelled.prompts
        of_prompts = encoder.texts([prompt for of_class in prompts for prompt in of_class], "prompts")
        classes = means(of_prompts, [len(of_class) for of_class in prompts])
        found = encoder.pictures(_WithoutClasses(self.labelled), self.labelled.fingerprint())
        return Encoded(
            {"images": normalize(found.features), "classes": classes, "indices": found.indices},
            {self.labelled.name(index): fault for index, fault in found.faults.items()},
        )

    def score(self, encoded: Encoded, logit_scale: float, seed: int) -> ZeroShotScores:
        features = encoded.features
        labels = self.labelled.labels[features["indices"]]
        return zero_shot_scores(
            features["images"], features["classes"], labels, self.labelled.classes, logit_scale, seed=seed
        )

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        return {"class": choices(encoded.features["images"], encoded.features["classes"])}


class Retrieval:
    """Pictures with captions: each is to find the other among all; captions that are too long are cut.

    Captions of the same tokens are one text, which is right for all their pictures.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def description(self) -> dict[str, Any]:
        return {"pictures": len(self.source), "fingerprint": self.source.fingerprint()}

    def encode(self, encoder: Encoder) -> Encoded:
        found = encoder.pictures(_WithoutCaptions(self.source), self.source.fingerprint())
        captions = [self.source[int(index)].caption for index in found.indices]
        of_picture = [(caption,) if isinstance(caption, str) else caption for caption in captions]
        texts = [caption for own in of_picture for caption in own]
        length = encoder.model.architecture.text.context_length
        tokens = encoder.model.tokenizer.tokenize(texts, length, truncate=True)
        _, first, text_of = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
        return Encoded(
            {
                "images": normalize(found.features),
                "texts": encoder.texts([texts[place] for place in first], "captions", truncate=True),
                "indices": found.indices,
                "own": text_of.reshape(-1),  # the text of each caption; NumPy 2.0 gives it a second dimension
                "counts": np.array([len(own) for own in of_picture]),
            },
            {f"picture {index}": fault for index, fault in found.faults.items()},
        )

    def score(self, encoded: Encoded, logit_scale: float, seed: int) -> RetrievalScores:
        features = encoded.features
        own = np.split(features["own"], np.cumsum(features["counts"])[:-1])
        return retrieval_scores(features["images"], features["texts"], own, seed=seed)

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        images, texts = encoded.features["images"], encoded.features["texts"]
        return {"caption of a picture": choices(images, texts), "picture of a caption": choices(texts, images)}


class SentencePairs:
    """Pairs of sentences that people have judged: how the cosines go with the judgements."""

    def __init__(self, sentences: Sentences) -> None:
        self.sentences = sentences

    @property
    def description(self) -> dict[str, Any]:
        return {"pairs": len(self.sentences.gold), "fingerprint": self.sentences.fingerprint()}

    def encode(self, encoder: Encoder) -> Encoded:
        count = len(self.sentences.gold) if encoder.limit is None else min(encoder.limit, len(self.sentences.gold))
        both = [*self.sentences.first[:count], *self.sentences.second[:count]]
        features = encoder.texts(both, "sentences", truncate=True)
        return Encoded({"first": features[:count], "second": features[count:]})

    def score(self, encoded: Encoded, logit_scale: float, seed: int) -> SentenceScores:
        first, second = encoded.features["first"], encoded.features["second"]
        return sentence_scores((first * second).sum(axis=1), self.sentences.gold[: len(first)], seed=seed)

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        """The nearest of all second sentences for each first one."""
        return {"second sentence": choices(encoded.features["first"], encoded.features["second"])}


def means(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean of the unit features [n, d] of each of c groups, made unit again: [c, d].

    Args:
        counts: of each group; their sum is n.
    """
    return normalize(np.stack([part.mean(axis=0) for part in np.split(features, np.cumsum(counts)[:-1])]))


@dataclass(frozen=True)
class _WithoutClasses:
    """The pictures of a set with classes."""

    labelled: Labelled

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Image.Image:
        return self.labelled[index][0]


@dataclass(frozen=True)
class _WithoutCaptions:
    """The pictures of a source with captions."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Image.Image:
        example = self.source[index]
        return example.picture
