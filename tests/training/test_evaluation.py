"""Scores of models whose right answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.data.shapes import HELD_OUT, KINDS
from clip_core.evaluation.retrieval import recall_at
from clip_core.evaluation.shapes import evaluate
from clip_core.evaluation.zero_shot import class_features, top1
from tests.training.conftest import TINY


class Constant:
    """A model that gives every picture and every text the same feature."""

    architecture = TINY

    def embed_image(self, pixels):
        return np.ones((len(pixels), 4), np.float32)

    def embed_text(self, tokens):
        return np.ones((len(tokens), 4), np.float32)


class Letters:
    """A model whose text feature counts each token id, so that only equal texts have equal features."""

    architecture = TINY

    def embed_text(self, tokens):
        return np.stack([np.bincount(row, minlength=TINY.text.vocabulary_size) for row in tokens]).astype(np.float32)


def test_recall_counts_the_rows_whose_own_target_is_among_the_nearest():
    targets = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0.8, 0.6]], np.float32)
    assert recall_at(1, queries, targets) == pytest.approx(1 / 3)
    assert recall_at(2, queries, targets) == 1


def test_equal_features_earn_no_recall():
    same = np.full((5, 4), 0.5, np.float32)
    assert recall_at(1, same, same) == 0
    assert recall_at(5, same, same) == 1


def test_top1_is_the_share_of_right_classes():
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    assert top1(images, classes, [0, 1, 0, 2]) == 0.75


def test_a_class_is_the_unit_mean_of_its_prompts_unit_features(tokenizer):
    model = Letters()
    found = class_features(model, tokenizer, [["a red star"], ["a blue ring", "a ring"]])
    texts = model.embed_text(tokenizer.tokenize(["a red star", "a blue ring", "a ring"], 24)).astype(float)
    rows = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    mean = rows[1] + rows[2]
    assert np.allclose(found, [rows[0], mean / np.linalg.norm(mean)], atol=1e-6)


def test_a_model_that_sees_nothing_scores_chance_or_less(tokenizer):
    scores = evaluate(Constant(), tokenizer, pictures_per_class=2, captions=20)
    assert scores["held_out_classes"] == len(KINDS) == 81
    assert scores["held_out_pictures"] == 2 * len(HELD_OUT)
    assert scores["captions"] == 20
    assert scores["held_out_top1"] <= 1 / len(HELD_OUT)
    assert scores["image_to_text_recall_at_1"] == scores["text_to_image_recall_at_1"] == 0
