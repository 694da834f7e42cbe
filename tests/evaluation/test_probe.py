"""Linear probes: what they are fitted to, the search of C, and that they are scikit-learn's on open_clip's features."""

from __future__ import annotations

import builtins
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from backends.numpy import CLIP
from clip_core.errors import ClipError
from clip_core.evaluation.probe import DECADES, ITERATIONS, chosen, probe, search
from clip_core.evaluation.sets.labelled import Part
from clip_core.evaluation.tasks import Encoder, Probe
from clip_core.installation import requirement
from clip_core.preprocess import pixels
from tests.models import sample_weights
from tests.peers import open_clip
from tests.training.tiny import TINY


class Colours:
    """Pictures of noise around one colour for each class, so that some are mistaken."""

    def __init__(self, count: int, classes: int = 3, purpose: int = 0) -> None:
        self.classes = ["red", "green", "blue"][:classes]
        self.prompts = [[name] for name in self.classes]
        self.labels = np.arange(count) % classes
        self.purpose = purpose

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        label = int(self.labels[index])
        noise = np.random.default_rng((self.purpose, index)).integers(0, 200, (40, 40, 3))
        noise[..., label] += 12
        return Image.fromarray(noise.astype(np.uint8)), label

    def name(self, index: int) -> str:
        return f"{self.purpose}/{index}"

    def fingerprint(self) -> str:
        return f"{self.purpose} {len(self)}"


def noisy(classes: int = 3, each: int = 20, noise: float = 1.0):
    """Features around a centre for each class, and labels."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    centres = generator.standard_normal((classes, 6))
    return (centres[labels] + noise * generator.standard_normal((len(labels), 6))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns_on_open_clips_features(classes):
    weights = sample_weights(TINY)
    train, test = Colours(48, classes), Colours(30, classes, purpose=1)
    task = Probe(train, test, seed=3)
    encoded = task.encode(Encoder(CLIP(TINY, weights), None, workers=0))
    peer = open_clip(TINY, weights)

    def theirs(pictures):
        of_pictures = pixels([pictures[index][0] for index in range(len(pictures))], TINY.image.resolution)
        with torch.no_grad():
            return peer.encode_image(torch.from_numpy(of_pictures)).numpy()

    fitted = LogisticRegression(C=encoded.chosen["C"], max_iter=ITERATIONS).fit(theirs(train), train.labels)
    found = task.score(encoded, 100.0, 0)
    assert found.scores["top1"].value == pytest.approx(fitted.score(theirs(test), test.labels), abs=1 / len(test))
    assert 1 / classes < found.scores["top1"].value < 1
    logits = encoded.features["images"] @ encoded.features["classes"].T
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = fitted.predict_proba(theirs(test))
    assert np.abs(probabilities - expected).max() < 0.03  # which L-BFGS makes of a difference of 1e-6
    assert np.abs(probabilities - expected[:, ::-1]).max() > 0.3
    assert task.names(encoded)[:2] == ["1/0", "1/1"]


@pytest.mark.parametrize("peak", [-6, -2.5, 0, 1.125, 5.75])
def test_the_search_finds_a_peak(peak):
    tried = []

    def accuracy(value: float) -> float:
        tried.append(value)
        return -abs(np.log10(value) - peak)

    assert search(accuracy) == pytest.approx(10**peak)
    assert len(tried) == len(set(tried)) <= 16
    assert 10**-DECADES <= min(tried) < max(tried) <= 10**DECADES


def test_of_equal_accuracies_the_smallest_c_is_taken():
    assert search(lambda value: 0.5) == pytest.approx(10**-DECADES)


def test_the_c_that_is_chosen_is_the_best_on_the_held_out_pictures():
    features, labels = noisy(noise=2.0, each=40)
    _, found = probe(features, labels, ["a", "b", "c"], seed=1)
    fit, judge = chosen(labels, ["a", "b", "c"], None, 1)

    def accuracy(value):
        fitted = LogisticRegression(C=value, max_iter=ITERATIONS).fit(features[fit], labels[fit])
        return fitted.score(features[judge], labels[judge])

    assert accuracy(found["C"]) >= max(accuracy(value) for value in (1e-6, 1e-4, 1e-2, 1.0))
    assert found == {"C": found["C"], "fitted_pictures": 120, "held_out_pictures": 24}


def test_shots_are_what_is_fitted_to():
    labels = np.repeat([0, 1, 2], 20)
    fit, judge = chosen(labels, ["a", "b", "c"], 5, seed=0)
    assert np.bincount(labels[fit]).tolist() == [5, 5, 5]
    assert np.bincount(labels[judge]).tolist() == [4, 4, 4]
    assert not set(fit) & set(judge)
    assert [len(part) for part in chosen(labels, ["a", "b", "c"], 1, seed=0)] == [3, 3]
    assert (chosen(labels, ["a", "b", "c"], 5, seed=0)[0] == fit).all()
    assert (chosen(labels, ["a", "b", "c"], 5, seed=1)[0] != fit).any()
    features, _ = noisy()
    assert probe(features, labels, ["a", "b", "c"], shots=5)[1]["fitted_pictures"] == 15


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        (None, r"^The class 'b' has 1 training pictures, and a probe needs 2; give more pictures\.$"),
        (1, r"^The class 'b' has 1 training pictures, and a probe needs 2; .* or fewer --shots\.$"),
        (9, r"^The class 'a' has 8 training pictures, and a probe needs 13; .* or fewer --shots\.$"),
    ],
)
def test_a_class_with_too_few_pictures_is_refused(shots, message):
    labels = np.array([0] * 8 + [1])
    with pytest.raises(ClipError, match=message):
        chosen(labels, ["a", "b"], shots, seed=0)


def test_sets_of_other_classes_are_refused():
    with pytest.raises(ClipError, match=r"have 2 classes and the others 3, or other ones, such as 'blue'; give two"):
        Probe(Colours(8, 2), Colours(9, 3))


def test_the_parts_of_a_set_share_its_classes():
    whole = Colours(10)
    first, second = Part(whole, np.arange(7)), Part(whole, np.arange(7, 10))
    assert first.classes == second.classes == whole.classes
    assert second.labels.tolist() == whole.labels[7:].tolist()
    assert second.name(0) == "0/7"
    assert first.fingerprint() != second.fingerprint()


def test_without_scikit_learn_a_probe_is_refused_at_once(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "sklearn":
            raise ImportError("No module named 'sklearn'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ClipError, match=rf"needs scikit-learn \(No module named 'sklearn'\); .* {re.escape(requirement('probe'))}\."
    ):
        Probe(Colours(4), Colours(4))
