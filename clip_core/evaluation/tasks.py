"""What a model can be scored on: each task encodes its data with a model, and scores the features.

Features are kept apart from scores, so that several backends can be scored on the same data and their choices compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

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
    state,
)
from clip_core.evaluation.probe import check_library, probe
from clip_core.evaluation.scores import (
    ERROR,
    RetrievalScores,
    Scores,
    SentenceScores,
    ZeroShotScores,
    retrieval_scores,
    sentence_scores,
    zero_shot_scores,
)
from clip_core.evaluation.sentences import Pairs
from clip_core.evaluation.sets.labelled import Labelled
from clip_core.evaluation.zero_shot import means
from clip_core.similarity import normalize
from clip_core.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoder:
    """How a task encodes its data with one model."""

    model: Model
    tokenizer: Tokenizer
    batch_size: int = BATCH
    workers: int | None = None
    limit: int | None = None
    fault_share: float = 0.01
    store: Callable[[Pictures, str], Store | None] = lambda pictures, fingerprint: None
    progress: Progress = quiet

    def pictures(self, pictures: Pictures, fingerprint: str, limit: int | None = None) -> PictureFeatures:
        """The features of a set of pictures, as `encode_pictures` gives them.

        Args:
            limit: of these pictures; by default the one of all.
        """
        return encode_pictures(
            self.model,
            pictures,
            limit=limit or self.limit,
            batch_size=self.batch_size,
            workers=self.workers,
            fault_share=self.fault_share,
            store=self.store(pictures, fingerprint),
            progress=self.progress,
        )

    def texts(self, texts: Sequence[str], what: str, truncate: bool = False) -> np.ndarray:
        """The features of texts, as `encode_texts` gives them."""
        return encode_texts(self.model, self.tokenizer, texts, truncate=truncate, what=what, progress=self.progress)


@dataclass(frozen=True)
class Encoded:
    """The data of a task under one model."""

    features: Mapping[str, np.ndarray]  # unit float32 [n, d] by name, and what else scores depend on
    faults: Mapping[str, str] = field(default_factory=dict)  # what is left out -> why
    chosen: Mapping[str, Any] = field(default_factory=dict)  # what was found out on the way, as plain data for JSON


class Task(ABC):
    """Data, and what a model is scored by on it."""

    title: ClassVar[str]
    """What a report calls it."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """What the data was chosen by, for reports: the keys of a data set in a recipe."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the data is, as plain data for JSON."""

    @abstractmethod
    def encode(self, encoder: Encoder) -> Encoded:
        """Encode the data with a model.

        Raises:
            ClipError: too much of it cannot be used, or the model cannot encode it.
        """

    @abstractmethod
    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> Scores:
        """The scores of one model.

        Args:
            logit_scale: of the model, for probabilities.
            seed: of all that is drawn at random.
            error: of the prediction sets of classes.

        Raises:
            ClipError: there is too little data for scores.
        """

    @abstractmethod
    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        """What one model chooses, to be compared with what it chooses in another backend."""

    @abstractmethod
    def names(self, encoded: Encoded) -> list[str]:
        """What a report calls the samples, in the order of `Scores.samples`."""


class ZeroShot(Task):
    """Pictures with classes: each picture is put into the class that is nearest to it (paper, section 3.1).

    Raises:
        ClipError: there are fewer than two classes.
    """

    title = "zero-shot classification"

    def __init__(self, labelled: Labelled) -> None:
        if len(labelled.classes) < 2:
            raise ClipError(f"There is {len(labelled.classes)} class to choose from; give data of two classes or more.")
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
        found = encoder.pictures(OfLabelled(self.labelled), self.labelled.fingerprint())
        return Encoded(
            {"images": normalize(found.features), "classes": classes, "indices": found.indices},
            {self.labelled.name(index): fault for index, fault in found.faults.items()},
        )

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> ZeroShotScores:
        features = encoded.features
        labels = self.labelled.labels[features["indices"]]
        return zero_shot_scores(
            features["images"], features["classes"], labels, self.labelled.classes, logit_scale, seed=seed, error=error
        )

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        return {"class": choices(encoded.features["images"], encoded.features["classes"])}

    def names(self, encoded: Encoded) -> list[str]:
        return [self.labelled.name(int(index)) for index in encoded.features["indices"]]


class Probe(Task):
    """Pictures with classes: a linear probe of training pictures puts each of the others into a class.

    Args:
        train: the pictures that the probe is fitted to.
        test: those that are scored, of the same classes.
        shots: training pictures of each class; by default all.
        seed: of their choice, and of those that are held out.

    Raises:
        ClipError: the classes differ, the pictures are the same, or scikit-learn is not installed.
    """

    title = "linear probe"

    def __init__(self, train: Labelled, test: Labelled, shots: int | None = None, seed: int = 0) -> None:
        check_library()
        if list(train.classes) != list(test.classes):
            other = next(iter(set(train.classes) ^ set(test.classes)), "none")
            raise ClipError(
                f"The training pictures have {len(train.classes)} classes and the others {len(test.classes)}, or other "
                f"ones, such as {other!r}; give two parts of one data set."
            )
        if train.fingerprint() == test.fingerprint() and state(train.files()) == state(test.files()):
            raise ClipError(
                "The training pictures are those that are to be scored, of which a probe would know the classes; give "
                "others, or another split."
            )
        self.train, self.test, self.shots, self.seed = train, test, shots, seed

    @property
    def description(self) -> dict[str, Any]:
        return {
            "pictures": len(self.test),
            "training_pictures": len(self.train),
            "classes": len(self.test.classes),
            "shots": self.shots,
            "fingerprint": self.test.fingerprint(),
            "training_fingerprint": self.train.fingerprint(),
        }

    def encode(self, encoder: Encoder) -> Encoded:
        train = encoder.pictures(OfLabelled(self.train), self.train.fingerprint(), len(self.train))
        test = encoder.pictures(OfLabelled(self.test), self.test.fingerprint())
        labels = self.train.labels[train.indices]
        weights, chosen = probe(
            *(train.features, labels, self.train.classes, self.shots, self.seed),
            lambda done, total: encoder.progress("regressions", done, total, 0),
        )
        faults = {self.train.name(index): fault for index, fault in train.faults.items()}
        return Encoded(
            {
                "images": np.concatenate([test.features, np.ones((len(test.features), 1), np.float32)], axis=1),
                "classes": weights,
                "indices": test.indices,
            },
            faults | {self.test.name(index): fault for index, fault in test.faults.items()},
            chosen,
        )

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> ZeroShotScores:
        features = encoded.features
        labels = self.test.labels[features["indices"]]
        return zero_shot_scores(
            features["images"], features["classes"], labels, self.test.classes, 1.0, seed=seed, error=error
        )

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        return {"class": choices(encoded.features["images"], encoded.features["classes"])}

    def names(self, encoded: Encoded) -> list[str]:
        return [self.test.name(int(index)) for index in encoded.features["indices"]]


class Retrieval(Task):
    """Pictures with captions: each is to find the other among all; captions that are too long are cut.

    Captions of the same tokens are one text, which is right for all their pictures.
    """

    title = "retrieval"

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def description(self) -> dict[str, Any]:
        return {"pictures": len(self.source), "fingerprint": self.source.fingerprint()}

    def encode(self, encoder: Encoder) -> Encoded:
        found = encoder.pictures(OfExamples(self.source), self.source.fingerprint())
        captions = [self.source[int(index)].caption for index in found.indices]
        of_picture = [(caption,) if isinstance(caption, str) else caption for caption in captions]
        texts = [caption for own in of_picture for caption in own]
        length = encoder.model.architecture.text.context_length
        tokens = encoder.tokenizer.tokenize(texts, length, truncate=True)
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

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> RetrievalScores:
        features = encoded.features
        own = np.split(features["own"], np.cumsum(features["counts"])[:-1])
        return retrieval_scores(features["images"], features["texts"], own, seed=seed)

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        images, texts = encoded.features["images"], encoded.features["texts"]
        return {"caption of a picture": choices(images, texts), "picture of a caption": choices(texts, images)}

    def names(self, encoded: Encoded) -> list[str]:
        pictures = [f"picture {index}" for index in encoded.features["indices"]]
        counts = zip(pictures, encoded.features["counts"])
        return pictures + [f"caption {number} of {name}" for name, count in counts for number in range(count)]


class SentencePairs(Task):
    """Pairs of sentences that people have judged; those that are too long are cut."""

    title = "similarity of sentences"

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    @property
    def description(self) -> dict[str, Any]:
        return {"pairs": len(self.pairs), "fingerprint": self.pairs.fingerprint()}

    def encode(self, encoder: Encoder) -> Encoded:
        first, second = self.pairs.first[: encoder.limit], self.pairs.second[: encoder.limit]
        features = encoder.texts([*first, *second], "sentences", truncate=True)
        return Encoded({"first": features[: len(first)], "second": features[len(first) :]})

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> SentenceScores:
        first, second = encoded.features["first"], encoded.features["second"]
        return sentence_scores((first * second).sum(axis=1), self.pairs.gold[: len(first)], seed=seed)

    def choices(self, encoded: Encoded) -> dict[str, Choices]:
        return {"second sentence of a first": choices(encoded.features["first"], encoded.features["second"])}

    def names(self, encoded: Encoded) -> list[str]:
        return [f"pair {number}" for number in range(len(encoded.features["first"]))]


@dataclass(frozen=True)
class OfLabelled:
    """The pictures of a set with classes."""

    labelled: Labelled

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Image.Image:
        return self.labelled[index][0]

    def files(self) -> Iterable[str]:
        return self.labelled.files()


@dataclass(frozen=True)
class OfExamples:
    """The pictures of a source with captions."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Image.Image:
        return self.source[index].picture

    def files(self) -> Iterable[str]:
        return self.source.files()
