"""All scores of a model on a data set, from features alone: plain data for a report, and a row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from clip_core.errors import ClipError
from clip_core.evaluation import calibration, intervals
from clip_core.evaluation.calibration import Reliability
from clip_core.evaluation.conformal import Sets, prediction_sets
from clip_core.evaluation.intervals import Score
from clip_core.evaluation.retrieval import Comparison, blocks, compare, owners

NEAREST = (1, 5, 10)  # numbers of targets that count as found
ERROR = 0.1  # of prediction sets

Columns = dict[str, np.ndarray | list[str]]


class Scores(Protocol):
    """What the scores of every kind of data set have."""

    @property
    def scores(self) -> Mapping[str, Score]:
        """The main scores by name."""

    def to_dict(self) -> dict[str, Any]:
        """All of them as plain data for JSON."""

    def samples(self) -> Columns:
        """A value for each sample, by the name of the column."""


@dataclass(frozen=True)
class OfClass:
    """How well the pictures of one class are found."""

    name: str
    pictures: int
    top1: float | None  # of a class without pictures: nothing
    mistake: str | None  # the class that most of its pictures are taken for, other than its own
    mistaken: int  # how many are


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are true, before and after a temperature that one half of the pictures is fitted to."""

    temperature: float
    """What logits are divided by, for which the labels of the fitted half are the most likely."""
    fitted: np.ndarray
    """bool [n]: the pictures that it is fitted to; all that is below is of the others."""
    before: Reliability
    after: Reliability
    adaptive_before: Reliability
    adaptive_after: Reliability
    likelihood_before: float
    """The mean negative log-likelihood of the labels."""
    likelihood_after: float
    probabilities: np.ndarray
    """float64 [n]: of the class that each picture is put into, before."""
    calibrated: np.ndarray
    """float64 [n]: the same, after."""


@dataclass(frozen=True)
class ZeroShotScores:
    """Of n pictures that are each put into one of c classes.

    A picture with another class as near as its own is put into that class, so that ties are mistakes: in the scores, in
    the confusion matrix and in the table of classes alike. Only of classes of the same name and features the first one
    counts as nearer, since no model can tell them apart: OpenAI has given two classes of ImageNet the name "missile",
    and two "sunglasses".
    """

    names: Sequence[str]  # [c]
    labels: np.ndarray  # int64 [n]
    comparison: Comparison  # of pictures with classes
    scores: dict[str, Score]
    """``top1``, ``top5`` and ``top10``, as far as there are more classes: the share of pictures that have their class
    among the nearest ones. ``mean_per_class``: the mean of top-1 over classes that have pictures."""
    calibration: Calibration
    sets: Sets

    @property
    def classes(self) -> list[OfClass]:
        """The table of classes, in their order."""
        labels, predicted, counts = self.confusion
        result = []
        for number, name in enumerate(self.names):
            own = labels == number
            pictures = int(counts[own].sum())
            right = int(counts[own & (predicted == number)].sum())
            wrong = np.where(own & (predicted != number), counts, 0)
            mistaken = int(wrong.max())
            mistake = self.names[predicted[wrong.argmax()]] if mistaken else None
            result.append(OfClass(name, pictures, right / pictures if pictures else None, mistake, mistaken))
        return result

    @property
    def confusion(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The confusion matrix without its zeros: class, class that pictures were put into, and their number."""
        cells, counts = np.unique(self.labels * len(self.names) + self.comparison.nearest, return_counts=True)
        return cells // len(self.names), cells % len(self.names), counts

    def to_dict(self) -> dict[str, Any]:
        labels, predicted, counts = self.confusion
        calibration, sets = self.calibration, self.sets
        return {
            "kind": "zero_shot",
            "pictures": len(self.labels),
            "classes": len(self.names),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "calibration": {
                "temperature": calibration.temperature,
                "pictures": int((~calibration.fitted).sum()),
                "expected_error": {"before": calibration.before.error, "after": calibration.after.error},
                "adaptive_error": {
                    "before": calibration.adaptive_before.error,
                    "after": calibration.adaptive_after.error,
                },
                "negative_log_likelihood": {
                    "before": calibration.likelihood_before,
                    "after": calibration.likelihood_after,
                },
                "reliability": {
                    "before": _reliability(calibration.before),
                    "after": _reliability(calibration.after),
                },
            },
            "sets": {
                "error": sets.error,
                "least_probability": _finite(sets.least_probability),
                "least_similarity": _finite(sets.least_similarity),
                "coverage": asdict(sets.coverage),
                "size": asdict(sets.size),
                "none": asdict(sets.none),
                "none_without_own": asdict(sets.none_without_own),
            },
            "per_class": [asdict(row) for row in self.classes],
            "confusion": {"label": labels.tolist(), "predicted": predicted.tolist(), "pictures": counts.tolist()},
        }

    def samples(self) -> Columns:
        """``rank``: the number of other classes at least as near as the own one. ``margin``: by how much the own class
        is nearer than any other. ``probability``: of the predicted class. ``fitted``: whether the temperature and the
        bounds of the sets are taken from this picture."""
        predicted = self.comparison.nearest
        return {
            "label": [self.names[number] for number in self.labels],
            "predicted": [self.names[number] for number in predicted],
            "label_number": self.labels,
            "predicted_number": predicted,
            "rank": self.comparison.ranks,
            "margin": self.comparison.margins,
            "probability": self.calibration.probabilities,
            "calibrated_probability": self.calibration.calibrated,
            "set_size": self.sets.sizes,
            "set_has_label": self.sets.covered,
            "fitted": self.calibration.fitted,
        }


@dataclass(frozen=True)
class Direction:
    """Of queries that are to find a target of their own."""

    comparison: Comparison
    """Of queries with targets; the nearest is the number of a picture, or of the first caption with that text."""
    picture: np.ndarray  # int64 [n]: the picture that each query is, or belongs to
    recall: dict[int, Score]
    """Number of targets -> the share of queries that have one of their own among so many nearest."""
    median_rank: Score
    """Of the nearest own target; 1 is the nearest of all."""


@dataclass(frozen=True)
class RetrievalScores:
    """Of pictures that are to find one of their captions, and captions that are to find their picture."""

    image_to_text: Direction
    text_to_image: Direction

    @property
    def scores(self) -> dict[str, Score]:
        directions = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}
        return {
            f"{name}_recall_at_{count}": score
            for name, direction in directions.items()
            for count, score in direction.recall.items()
        } | {f"{name}_median_rank": direction.median_rank for name, direction in directions.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "retrieval",
            "pictures": len(self.image_to_text.picture),
            "captions": len(self.text_to_image.picture),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }

    def samples(self) -> Columns:
        """First the pictures, then the captions. ``picture`` and ``nearest`` are places among the pictures, or, of
        what is nearest to a picture, among the captions."""
        both = (self.image_to_text, self.text_to_image)
        return {
            "query": ["picture"] * len(self.image_to_text.picture) + ["caption"] * len(self.text_to_image.picture),
            "picture": np.concatenate([direction.picture for direction in both]),
            "nearest": np.concatenate([direction.comparison.nearest for direction in both]),
            "rank": np.concatenate([direction.comparison.ranks for direction in both]),
            "margin": np.concatenate([direction.comparison.margins for direction in both]),
        }


@dataclass(frozen=True)
class SentenceScores:
    """Of pairs of sentences that people have judged: how the cosines of their features go with the judgements."""

    similarities: np.ndarray  # float [n]
    gold: np.ndarray  # float [n]
    scores: dict[str, Score]
    """``spearman`` and ``pearson``, the coefficients of correlation, from -1 to 1."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "sentences",
            "pairs": len(self.gold),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }

    def samples(self) -> Columns:
        return {"similarity": self.similarities, "gold": self.gold}


def zero_shot_scores(
    images: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    logit_scale: float,
    *,
    seed: int = 0,
    error: float = ERROR,
) -> ZeroShotScores:
    """Put pictures into classes.

    Similarities are computed block by block and never kept, so 50,000 pictures and 1,000 classes need little memory
    beside their features.

    Args:
        images: unit features float32 [n, d].
        classes: unit features float32 [c, d].
        labels: the number of each picture's class, int [n].
        names: of the classes.
        logit_scale: the factor of the cosines in the softmax, e.g. 100.
        seed: of the halves, of which one is for temperature and bounds and the other for judging them, and of the
            confidence intervals.
        error: of the prediction sets (`clip_core.evaluation.conformal`).

    Raises:
        ClipError: there are fewer than two pictures or classes, a label is not of a class, a feature is not finite, or
            the error is out of its range.
    """
    labels = np.asarray(labels, np.int64)
    _check("picture", images)
    _check("class", classes)
    if not ((labels >= 0) & (labels < len(classes))).all():
        raise ClipError(f"Labels go from {labels.min()} to {labels.max()}; the {len(classes)} classes count from 0.")
    own = _and_later_ones_alike(classes, names)
    comparison = compare(images, classes, [own[label] for label in labels])
    right = comparison.ranks == 0
    scores = {
        f"top{count}": intervals.mean(comparison.ranks < count, seed) for count in NEAREST if count < len(classes)
    }
    of_class = np.bincount(labels)
    share = right / of_class[labels] / np.count_nonzero(of_class)
    scores["mean_per_class"] = intervals.score(lambda rows: share[rows].sum(axis=1), len(labels), seed, labels)
    fitted = np.zeros(len(labels), bool)
    fitted[np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 2]] = True
    return ZeroShotScores(
        names,
        labels,
        comparison,
        scores,
        _calibrate(images, classes, labels, comparison.nearest, fitted, logit_scale),
        prediction_sets(images, classes, labels, fitted, logit_scale, error, seed),
    )


def _and_later_ones_alike(classes: np.ndarray, names: Sequence[str]) -> list[list[int]]:
    """The number of each class, and those of later classes with the same name and the same features [c, d]."""
    own: list[list[int]] = [[] for _ in names]
    alike: dict[tuple[str, bytes], list[int]] = {}
    for number, (name, features) in enumerate(zip(names, classes)):
        earlier = alike.setdefault((name, features.tobytes()), [])
        earlier.append(number)
        for each in earlier:
            own[each].append(number)
    return own


def _calibrate(
    images: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    fitted: np.ndarray,
    logit_scale: float,
) -> Calibration:
    images_of_half, labels_of_half, others = images[fitted], labels[fitted], ~fitted
    scale = calibration.fit_scale(
        lambda: ((found, labels_of_half[place]) for place, found in blocks(images_of_half, classes)), logit_scale
    )
    right = predicted == labels

    def judge(factor: float) -> tuple[np.ndarray, Reliability, Reliability, float]:
        """Probabilities [n], and of the other half the reliability in both kinds of bins and the likelihood."""
        of_label, of_predicted = np.empty(len(labels)), np.empty(len(labels))
        for place, similarities in blocks(images, classes):
            rows = np.arange(len(similarities))
            logarithms = calibration.log_probabilities(similarities, factor)
            of_label[place], of_predicted[place] = logarithms[rows, labels[place]], logarithms[rows, predicted[place]]
        probabilities = np.exp(of_predicted)
        edges = calibration.equal_width(), calibration.equal_mass(probabilities[others])
        even, adaptive = (calibration.reliability(probabilities[others], right[others], each) for each in edges)
        return probabilities, even, adaptive, -float(of_label[others].mean())

    probabilities, before, adaptive_before, likelihood_before = judge(logit_scale)
    calibrated, after, adaptive_after, likelihood_after = judge(scale)
    return Calibration(
        temperature=logit_scale / scale,
        fitted=fitted,
        before=before,
        after=after,
        adaptive_before=adaptive_before,
        adaptive_after=adaptive_after,
        likelihood_before=likelihood_before,
        likelihood_after=likelihood_after,
        probabilities=probabilities,
        calibrated=calibrated,
    )


def retrieval_scores(
    images: np.ndarray, texts: np.ndarray, own_texts: Sequence[Sequence[int] | np.ndarray], *, seed: int = 0
) -> RetrievalScores:
    """Find captions by pictures, and pictures by captions.

    Args:
        images: unit features float32 [n, d].
        texts: unit features float32 [m, d] of distinct texts, each of which some picture has.
        own_texts: the rows of each picture's own texts, at least one. A text may belong to several pictures: it is
            right for each of them and each of them for it, and it counts as a caption of each.
        seed: of the confidence intervals, whose samples are pictures with all their captions; the targets among which
            they look stay the same.

    Raises:
        ClipError: there are fewer than two pictures or texts, or a feature is not finite.
    """
    _check("picture", images)
    _check("text", texts)
    captions = np.concatenate([np.asarray(rows, np.int64) for rows in own_texts])
    picture = np.repeat(np.arange(len(images)), [len(rows) for rows in own_texts])
    of_texts = compare(texts, images, owners(own_texts, len(texts)))
    of_captions = Comparison(*(values[captions] for values in vars(of_texts).values()))
    first = np.zeros(len(texts), np.int64)
    first[captions[::-1]] = np.arange(len(captions))[::-1]
    of_images = compare(images, texts, own_texts)
    of_images = replace(of_images, nearest=first[of_images.nearest])
    return RetrievalScores(
        _direction(of_images, np.arange(len(images)), len(texts), seed),
        _direction(of_captions, picture, len(images), seed),
    )


def _direction(comparison: Comparison, picture: np.ndarray, targets: int, seed: int) -> Direction:
    """The scores of queries, each of which belongs to a picture; a resample has all queries of the pictures drawn."""
    queries = np.bincount(picture)  # of each picture

    def share(hits: np.ndarray) -> Score:
        found = np.bincount(picture, hits)
        return intervals.score(lambda rows: found[rows].sum(axis=1) / queries[rows].sum(axis=1), len(queries), seed)

    order = np.argsort(comparison.ranks, kind="stable")
    ordered, picture_of = comparison.ranks[order], picture[order]

    def median(row: np.ndarray) -> float:
        repeated = np.repeat(ordered, np.bincount(row, minlength=len(queries))[picture_of])
        middle = (len(repeated) - 1) // 2, len(repeated) // 2
        return 1 + float(repeated[list(middle)].mean())

    return Direction(
        comparison,
        picture,
        {count: share(comparison.ranks < count) for count in NEAREST if count < targets},
        intervals.score(lambda rows: np.array([median(row) for row in rows]), len(queries), seed),
    )


def sentence_scores(similarities: np.ndarray, gold: np.ndarray, *, seed: int = 0) -> SentenceScores:
    """Compare the cosines of pairs of sentences with what people say of them.

    Args:
        similarities: float [n].
        gold: float [n]; higher means more alike.
        seed: of the confidence intervals.

    Raises:
        ClipError: there are fewer than two pairs, or a similarity is not finite.
    """
    _check("pair", similarities)

    def over(of_pair: Callable[[np.ndarray, np.ndarray], float]) -> Score:
        def statistic(rows: np.ndarray) -> np.ndarray:
            return np.array([of_pair(similarities[row], gold[row]) for row in rows])

        return intervals.score(statistic, len(gold), seed)

    return SentenceScores(similarities, gold, {"spearman": over(spearman), "pearson": over(pearson)})


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """The coefficient of correlation of values [n], from -1 to 1; 0 where one of them does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    first, second = (values - np.mean(values) for values in (first.astype(np.float64), second.astype(np.float64)))
    return float(np.clip(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)), -1, 1))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of ranks, where equal values share the mean of their ranks."""
    return pearson(average_ranks(first), average_ranks(second))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each of the values [n] from 1, float64; equal values have the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _check(what: str, features: np.ndarray) -> None:
    """Refuse what gives no score."""
    if len(features) < 2:
        raise ClipError(f"There is {len(features)} {what} to score with; give two or more.")
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        raise ClipError(
            f"Of {len(features)} features of kind {what}, {(~finite).sum()} are not finite, the first of number "
            f"{int(finite.argmin())}; compute in fp32, and check the weights."
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _reliability(found: Reliability) -> dict[str, Any]:
    """For JSON, which has no NaN for empty bins."""
    return {
        "edges": found.edges.tolist(),
        "pictures": found.counts.tolist(),
        "probability": [_finite(value) for value in found.probability.tolist()],
        "accuracy": [_finite(value) for value in found.accuracy.tolist()],
    }
