"""What the page of ``clip web`` answers, without a browser."""

from __future__ import annotations

import numpy as np
import pytest

import backends
import clip
from clip import samples
from clip.web.answers import MOST_PICTURES, MOST_TEXTS, PRESETS, Answers, examples
from clip_core.errors import ClipError
from clip_core.image import open_image
from tests.clip.running import assert_refused

CATEGORIES = "red circle\n\n  blue circle \nred star"
CIRCLE = str(samples.pictures()["a large solid red circle"])


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers(["shapes"], "numpy")


def test_a_picture_gets_the_numbers_of_the_model(answers):
    rows = answers.classify(CIRCLE, "", CATEGORIES, "{}", "shapes", "numpy")
    model, preprocess = clip.load("shapes", backend="numpy")
    logits, _ = model(preprocess(open_image(CIRCLE))[None], model.tokenize(["red circle", "blue circle", "red star"]))
    assert rows[0].category == "red circle"
    found = {row.category: row.logit for row in rows}
    np.testing.assert_allclose(
        [found[name] for name in ("red circle", "blue circle", "red star")], logits[0], atol=1e-4
    )
    assert sum(row.probability for row in rows) == pytest.approx(1)
    assert sorted(rows, key=lambda row: -row.probability) == rows


def test_every_framework_agrees(answers):
    rows, bound = answers.agreement(CIRCLE, "", CATEGORIES, "{}", "shapes")
    assert [row.backend for row in rows] == list(backends.available())
    assert {row.nearest for row in rows} == {"red circle"}
    assert rows[0].difference == 0
    assert all(row.difference <= 2 * bound < 0.01 for row in rows)


def test_a_heat_map(answers):
    drawing = answers.similarity([str(path) for path in examples()[:3]], "a red circle\na star", "shapes", "numpy")
    assert min(drawing.size) > 100


def test_presets_have_a_place_for_the_category():
    assert [preset.template.format(preset.categories[0]) for preset in PRESETS] == [
        "red circle",
        "A person with white hair",
        "A happy person",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((None, " ", CATEGORIES, "{}", "shapes", "numpy"), "There is no picture"),
        ((CIRCLE, "", "\n", "{}", "shapes", "numpy"), "There is no category"),
        ((CIRCLE, "", "a\n" * (MOST_TEXTS + 1), "{}", "shapes", "numpy"), "at most 1000"),
        ((CIRCLE, "", "a\na", "{}", "shapes", "numpy"), "occurs more than once"),
        ((CIRCLE, "", "a", "no place", "shapes", "numpy"), "{}"),
        ((CIRCLE, "", "a", "{}", "/etc/passwd", "numpy"), "does not offer this model"),
        ((CIRCLE, "", "a", "{}", "shapes", "other"), "does not offer this model"),
        ((None, "http://127.0.0.1:1/x.png", "a", "{}", "shapes", "numpy"), "not an address of the public"),
        ((None, "file:///etc/passwd", "a", "{}", "shapes", "numpy"), "http"),
    ],
)
def test_faults_are_sentences(answers, arguments, sentence):
    with pytest.raises(ClipError, match=sentence.replace("{}", r"\{\}")):
        answers.classify(*arguments)


def test_pictures_that_are_none_are_refused_without_their_path(answers, tmp_path):
    (tmp_path / "drawing.svg").write_text("<svg onload='alert(1)'/>")
    with pytest.raises(ClipError) as error:
        answers.classify(str(tmp_path / "drawing.svg"), "", CATEGORIES, "{}", "shapes", "numpy")
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(ClipError, match="too many for one drawing"):
        answers.similarity([CIRCLE] * (MOST_PICTURES + 1), "a", "shapes", "numpy")


def test_a_public_link_is_refused(run):
    assert_refused(run("web", "--share"), "--share is not offered")
