"""The scores of open_clip and CLIP_benchmark, from their own code, on the same random model and data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip import build_zero_shot_classifier
from sklearn.metrics import balanced_accuracy_score

from backends.numpy import CLIP
from clip_core.data.shapes import KINDS, Scene, Thing, describe, draw, random_for, vocabulary_captions
from clip_core.evaluation.retrieval import compare
from clip_core.evaluation.scores import retrieval_scores, zero_shot_scores
from clip_core.evaluation.zero_shot import class_features, image_features, text_features
from clip_core.preprocess import pixels
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import learn
from tests import tolerances
from tests.models import sample_weights
from tests.peers import open_clip
from tests.training.tiny import TINY

TEMPLATES = ["a photo of {}.", "a drawing of {}, small", "{}"]
NAMES = [describe(Scene(Thing(*kind, "large", "solid"))) for kind in KINDS[:12]]
CONTEXT = TINY.text.context_length


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(learn(vocabulary_captions(), 200))


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """The tokenizer as open_clip and CLIP_benchmark call theirs."""
    return lambda texts: torch.from_numpy(tokenizer.tokenize(texts, CONTEXT))


@pytest.fixture(scope="module")
def models():
    weights = sample_weights(TINY)
    return CLIP(TINY, weights), open_clip(TINY, weights)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Drawn pictures of things, float32 [60, 3, r, r]."""
    things = [Thing(*KINDS[number % 12], "large", "solid") for number in range(60)]
    drawn = [draw(Scene(thing), random_for("peers", 0, number)) for number, thing in enumerate(things)]
    return pixels(drawn, TINY.image.resolution, TINY.image.pixels)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Of the pictures; random, as the model is, and not equally many of each class."""
    return np.random.default_rng(0).integers(0, 9, 60)


def prompts() -> list[list[str]]:
    return [[template.replace("{}", name) for template in TEMPLATES] for name in NAMES]


def test_class_features_are_open_clips_weights(models, tokenizer, tokens):
    ours, theirs = models
    expected = build_zero_shot_classifier(theirs, tokens, NAMES, TEMPLATES).T.numpy()
    found = class_features(ours, tokenizer, prompts())
    bound = tolerances.CONTRACT["text_embedding"].bound
    assert np.abs(found - expected).max() <= bound < np.abs(found - expected[::-1]).max()


def test_class_features_are_clip_benchmarks_weights(models, tokenizer, tokens):
    ours, theirs = models
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    expected = zeroshot_classification.zero_shot_classifier(theirs, tokens, NAMES, templates, "cpu", amp=False)
    found = class_features(ours, tokenizer, prompts())
    assert np.abs(found - expected.T.numpy()).max() <= tolerances.CONTRACT["text_embedding"].bound


def test_accuracies_are_those_of_clip_benchmark(models, tokenizer, tokens, pictures, labels):
    ours, theirs = models
    images, classes = image_features(ours, pictures), class_features(ours, tokenizer, prompts())
    found = zero_shot_scores(images, classes, labels, NAMES, 100.0).scores
    assert np.abs(compare(images, classes, labels[:, None]).margins).min() > 1e-6  # no ties for rounding to decide
    batches = [
        (torch.from_numpy(pictures[part]), torch.from_numpy(labels[part])) for part in (slice(32), slice(32, 60))
    ]
    weights = build_zero_shot_classifier(theirs, tokens, NAMES, TEMPLATES)
    logits, targets = zeroshot_classification.run_classification(theirs, weights, batches, "cpu", amp=False)
    # As CLIP_benchmark does next, in a way that NumPy warns of.
    among = logits.topk(5).indices == targets[:, None]
    assert found["top1"].value == pytest.approx(among[:, 0].double().mean().item())
    assert found["top5"].value == pytest.approx(among.any(dim=1).double().mean().item())
    assert found["mean_per_class"].value == pytest.approx(balanced_accuracy_score(targets, logits.argmax(dim=1)))
    assert 0 < found["top1"].value < found["top5"].value < 1


def test_recall_is_that_of_clip_benchmark(models, tokenizer, tokens, pictures):
    """With five captions for each picture."""
    ours, theirs = models
    captions = [f"{template} {number}" for number in range(60) for template in ("a", "two", "red", "big", "so")]
    own = np.arange(300).reshape(60, 5)
    images, texts = image_features(ours, pictures), text_features(ours, tokenizer, captions)
    found = retrieval_scores(images, texts, own).scores
    batches = [
        (torch.from_numpy(pictures[part]), [[captions[row] for row in rows] for rows in own[part]])
        for part in (slice(32), slice(32, 60))
    ]
    expected = zeroshot_retrieval.evaluate(theirs, batches, tokens, "cpu", amp=False, recall_k_list=[1, 5, 10])
    for count in (1, 5, 10):
        assert found[f"text_to_image_recall_at_{count}"].value == pytest.approx(
            expected[f"image_retrieval_recall@{count}"]
        )
        assert found[f"image_to_text_recall_at_{count}"].value == pytest.approx(
            expected[f"text_retrieval_recall@{count}"]
        )
    assert 0 < found["image_to_text_recall_at_10"].value < 1
