"""Scores on features whose right answers are known, and compared with scikit-learn and scipy."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from clip_core.errors import ClipError
from clip_core.evaluation import retrieval
from clip_core.evaluation.scores import (
    OfClass,
    average_ranks,
    pearson,
    retrieval_scores,
    sentence_scores,
    spearman,
    zero_shot_scores,
)
from clip_core.similarity import normalize

CLASSES = np.eye(3, dtype=np.float32)
NAMES = ["cat", "dog", "bird"]


def random_world(pictures: int = 600, classes: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of pictures and of classes, and labels of which each class but the last has some."""
    generator = np.random.default_rng(0)
    of_classes = normalize(generator.standard_normal((classes, 16)).astype(np.float32))
    labels = generator.integers(0, classes - 1, pictures)
    noise = generator.standard_normal((pictures, 16)).astype(np.float32)
    return normalize(of_classes[labels] + 0.5 * noise), of_classes, labels


def test_a_small_example_by_hand():
    images = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0.6, 0.8]], np.float32)
    found = zero_shot_scores(images, CLASSES, np.array([0, 0, 0, 1]), NAMES, 10.0)
    assert found.scores["top1"].value == 0.5
    assert found.scores["mean_per_class"].value == pytest.approx((2 / 3 + 0) / 2)
    assert set(found.scores) == {"top1", "mean_per_class"}  # the nearest five of three are all
    assert found.classes == [
        OfClass("cat", 3, 2 / 3, "dog", 1),
        OfClass("dog", 1, 0.0, "bird", 1),
        OfClass("bird", 0, None, None, 0),
    ]
    assert [column.tolist() for column in found.confusion] == [[0, 0, 1], [0, 1, 2], [2, 1, 1]]
    columns = found.samples()
    assert columns["label"] == ["cat", "cat", "cat", "dog"]
    assert columns["predicted"] == ["cat", "dog", "cat", "bird"]
    assert columns["rank"].tolist() == [0, 1, 0, 1]
    assert columns["margin"] == pytest.approx([1, -0.2, 0.2, -0.2])
    chances = np.exp(10 * images) / np.exp(10 * images).sum(axis=1, keepdims=True)
    assert columns["probability"] == pytest.approx(chances.max(axis=1))


def test_scores_are_those_of_scikit_learn():
    images, classes, labels = random_world()
    similarities = images @ classes.T
    predicted = similarities.argmax(axis=1)
    found = zero_shot_scores(images, classes, labels, [str(number) for number in range(12)], 20.0)
    for count in (1, 5, 10):
        expected = metrics.top_k_accuracy_score(labels, similarities, k=count, labels=range(12))
        assert found.scores[f"top{count}"].value == pytest.approx(expected)
        assert found.scores[f"top{count}"].low < expected < found.scores[f"top{count}"].high
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        assert found.scores["mean_per_class"].value == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    matrix = np.zeros((12, 12), int)
    rows, columns, counts = found.confusion
    matrix[rows, columns] = counts
    assert (matrix == metrics.confusion_matrix(labels, predicted, labels=range(12))).all()
    recall = metrics.recall_score(labels, predicted, average=None, labels=range(11))
    assert [row.top1 for row in found.classes] == [*(pytest.approx(value) for value in recall), None]
    others = ~found.calibration.fitted
    chances = np.exp(20 * similarities.astype(float))
    chances /= chances.sum(axis=1, keepdims=True)
    assert found.calibration.likelihood_before == pytest.approx(
        metrics.log_loss(labels[others], chances[others], labels=range(12))
    )
    assert found.calibration.likelihood_after < found.calibration.likelihood_before
    assert found.calibration.after.error < found.calibration.before.error


def test_equal_features_earn_nothing():
    """Also where a product of matrices rounds equal columns differently, as with 81 classes of 64 numbers."""
    same = normalize(np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32))
    labels = np.arange(81)
    found = zero_shot_scores(same.repeat(81, 0), same.repeat(81, 0), labels, [str(label) for label in labels], 100.0)
    assert {name: score.value for name, score in found.scores.items()} == dict.fromkeys(found.scores, 0)
    assert found.comparison.ranks.tolist() == [80] * 81
    assert found.comparison.nearest.tolist() == [1] + [0] * 80
    assert all(row.top1 == 0 for row in found.classes)
    both = retrieval_scores(same.repeat(81, 0), same.repeat(81, 0), labels[:, None])
    assert both.scores["image_to_text_recall_at_10"].value == both.scores["text_to_image_recall_at_10"].value == 0
    assert both.scores["image_to_text_median_rank"].value == 81


def test_of_classes_that_nothing_tells_apart_the_first_is_chosen():
    images, classes, labels = random_world()
    names = ["missile", "missile", *(str(number) for number in range(2, 12))]
    classes[1] = classes[0]
    similarities = images @ classes.T
    found = zero_shot_scores(images, classes, labels, names, 20.0)
    assert (found.comparison.nearest == similarities.argmax(axis=1)).all()
    by_order = np.argsort(-similarities, axis=1, kind="stable")
    for count in (1, 5, 10):
        expected = (by_order[:, :count] == labels[:, None]).any(axis=1).mean()
        assert found.scores[f"top{count}"].value == pytest.approx(expected)
    other = zero_shot_scores(images, classes, labels, [str(number) for number in range(12)], 20.0)
    assert other.scores["top1"].value < found.scores["top1"].value
    assert other.classes[0].top1 == found.classes[1].top1 == 0 < found.classes[0].top1


def test_a_similarity_that_is_not_a_number_is_no_hit():
    broken = np.array([[1, 0, 0], [np.nan, 0, 0]], np.float32)
    assert retrieval.ranks(broken, CLASSES).tolist() == [0, 2]
    assert retrieval.ranks(CLASSES[:2], np.vstack([CLASSES[:2], broken[1:]])).tolist() == [1, 1]


@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_change_nothing(block, monkeypatch):
    images, classes, labels = random_world(100)
    expected = zero_shot_scores(images, classes, labels, [""] * 12, 20.0).samples()
    monkeypatch.setattr(retrieval, "BLOCK", block)
    found = zero_shot_scores(images, classes, labels, [""] * 12, 20.0).samples()
    for name, column in expected.items():
        assert np.asarray(found[name]).tolist() == pytest.approx(np.asarray(column).tolist(), abs=1e-6), name


def test_seeds_determine_all():
    images, classes, labels = random_world(50)
    first, same, other = (zero_shot_scores(images, classes, labels, [""] * 12, 20.0, seed=seed) for seed in (3, 3, 4))
    assert first.to_dict() == same.to_dict()
    assert (first.calibration.fitted != other.calibration.fitted).any()
    assert first.calibration.fitted.sum() == 25


def test_all_scores_are_plain_data():
    images, classes, labels = random_world(50)
    found = zero_shot_scores(images, classes, labels, [str(number) for number in range(12)], 20.0)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["scores"]["top1"] == {
        "value": found.scores["top1"].value,
        "low": found.scores["top1"].low,
        "high": found.scores["top1"].high,
    }
    assert sum(plain["confusion"]["pictures"]) == plain["pictures"] == 50
    assert plain["sets"]["error"] == 0.1
    assert len(plain["per_class"]) == plain["classes"] == 12


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (CLASSES[:1], [0], r"^There is 1 picture to score with; give two or more\.$"),
        (CLASSES, [0, 1, 3], r"^Labels go from 0 to 3; the 3 classes count from 0\.$"),
        (CLASSES, [0, 1, -1], r"^Labels go from -1 to 1; the 3 classes"),
        (np.where(CLASSES == 1, np.nan, CLASSES), [0, 1, 2], r"^Of 3 features of kind picture, 3 are not finite"),
    ],
)
def test_what_gives_no_scores_is_refused(images, labels, message):
    with pytest.raises(ClipError, match=message):
        zero_shot_scores(images, CLASSES, np.array(labels), NAMES, 10.0)


def test_retrieval_by_hand():
    """Two pictures with two captions and one; a text that two pictures share is right for both."""
    images = np.array([[1, 0, 0], [0, 1, 0], [0, 0.6, 0.8]], np.float32)
    texts = np.array([[0, 1, 0], [0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    found = retrieval_scores(images, texts, [[2, 3], [0], [0, 1]])
    by_image, by_text = found.image_to_text, found.text_to_image
    assert by_image.comparison.ranks.tolist() == [0, 0, 1]
    assert by_image.comparison.nearest.tolist() == [0, 2, 1]  # captions, in the order of their pictures
    assert by_text.comparison.ranks.tolist() == [0, 2, 0, 0, 2]
    assert by_text.picture.tolist() == [0, 0, 1, 2, 2]
    values = {name: score.value for name, score in found.scores.items()}
    assert values == pytest.approx(
        {
            "image_to_text_recall_at_1": 2 / 3,
            "text_to_image_recall_at_1": 3 / 5,
            "image_to_text_median_rank": 1,
            "text_to_image_median_rank": 1,
        }
    )
    assert found.samples()["query"] == ["picture"] * 3 + ["caption"] * 5
    assert found.samples()["rank"].tolist() == [0, 0, 1, 0, 2, 0, 0, 2]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["captions"] == 5


def test_resamples_of_captions_are_of_pictures():
    """The captions of a picture are alike, so twice as many of them tell no more."""
    generator = np.random.default_rng(0)
    images = normalize(generator.standard_normal((60, 8)).astype(np.float32))
    texts = normalize(images + 0.6 * generator.standard_normal((60, 8)).astype(np.float32))
    once = retrieval_scores(images, texts, np.arange(60)[:, None])
    found = retrieval_scores(images, np.concatenate([texts, texts]), np.arange(120).reshape(2, 60).T)
    for name in ("text_to_image_recall_at_1", "text_to_image_median_rank"):
        assert found.scores[name] == once.scores[name]
    assert once.scores["text_to_image_recall_at_1"].low < once.scores["text_to_image_recall_at_1"].value < 1


def test_the_median_rank_is_numpys_over_all_queries():
    generator = np.random.default_rng(1)
    images = normalize(generator.standard_normal((9, 4)).astype(np.float32))
    texts = normalize(generator.standard_normal((20, 4)).astype(np.float32))
    own = np.split(np.arange(20), [1, 4, 6, 8, 9, 12, 15, 18])
    found = retrieval_scores(images, texts, own)
    assert found.scores["text_to_image_median_rank"].value == 1 + np.median(found.text_to_image.comparison.ranks)
    assert found.scores["image_to_text_median_rank"].value == 1 + np.median(found.image_to_text.comparison.ranks)


def test_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    gold = np.round(generator.uniform(0, 5, 200) * 2) / 2  # with many ties
    cosines = (np.round(gold + generator.normal(0, 1, 200), 1) / 10).astype(np.float32)
    assert average_ranks(gold) == pytest.approx(stats.rankdata(gold))
    found = sentence_scores(cosines, gold)
    assert found.scores["spearman"].value == pytest.approx(stats.spearmanr(cosines, gold).statistic)
    assert found.scores["pearson"].value == pytest.approx(stats.pearsonr(cosines, gold).statistic)
    assert found.scores["spearman"].low < found.scores["spearman"].value < found.scores["spearman"].high
    assert found.to_dict()["pairs"] == 200
    assert spearman(cosines, -gold) == pytest.approx(-found.scores["spearman"].value)


def test_a_perfect_order_is_1_and_what_does_not_vary_is_0():
    values = np.array([0.1, 0.2, 0.9, 1.0])
    assert spearman(values, values**3) == pytest.approx(1)
    assert pearson(values, values**3) < 1
    assert pearson(np.full(4, 0.1), values) == spearman(values, np.full(4, 0.3)) == 0
