"""What the page of ``clip web`` answers, without a browser."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backends
import clip
from clip import samples
from clip.embedding import embed_into
from clip.search import Index
from clip.web import answers as module
from clip.web.answers import MOST_FOUND, MOST_PICTURES, MOST_TEXTS, PRESETS, Answers, examples
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
        ((None, "http://127.0.0.1:1/x.png", "a", "{}", "shapes", "numpy"), "not one of the public internet"),
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


def test_a_picture_that_is_no_longer_kept(answers, tmp_path):
    with pytest.raises(ClipError, match=r"^The picture is no longer kept here; upload it again\.$"):
        answers.classify(str(tmp_path / "gone.png"), "", CATEGORIES, "{}", "shapes", "numpy")


def test_a_picture_with_too_many_pixels(answers, tmp_path):
    Image.new("1", (8192, 4097)).save(tmp_path / "large.png")
    with pytest.raises(ClipError, match="has 8192 x 4097 pixels; at most 33554432 are decoded"):
        answers.classify(str(tmp_path / "large.png"), "", CATEGORIES, "{}", "shapes", "numpy")


def test_models_and_frameworks_are_switched(files, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOADED", 2)
    other = str(files[".safetensors"])
    answers = Answers(["shapes", other], "numpy")
    asked = [(model, backend) for backend in backends.available() for model in ("shapes", other)] * 2
    found = {}
    for model, backend in asked:
        rows = answers.classify(CIRCLE, "", CATEGORIES, "{}", model, backend)
        logits = np.array([row.logit for row in sorted(rows, key=lambda row: row.category)])
        np.testing.assert_allclose(logits, found.setdefault(model, logits), atol=1e-3)
        assert len(answers._loaded) <= 2
    assert not np.allclose(found["shapes"], found[other], atol=0.1)


def test_questions_wait_while_a_model_is_loaded(files, monkeypatch):
    other = str(files[".safetensors"])
    answers = Answers(["shapes", other], "numpy")
    loading, go_on, loads = threading.Event(), threading.Event(), []

    def slowly(name: str, backend: str) -> clip.api.LoadedModel:
        loads.append(name)
        loading.set()
        assert go_on.wait(30)
        return clip.api.open_model(name, backend=backend)

    monkeypatch.setattr(module, "open_model", slowly)
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(answers.classify, CIRCLE, "", CATEGORIES, "{}", model, "numpy")
            for model in [other] * 4 + ["shapes"] * 4
        ]
        assert loading.wait(30)
        assert not any(each.done() for each in asked[:4])
        go_on.set()
        assert [len(each.result(30)) for each in asked] == [3] * 8
    assert loads == [other]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with four pictures, of which one tells where it was taken."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in examples()[:4]:
        shutil.copy(path, folder)
    taken = Image.Exif()
    taken[0x010E] = "at home"
    Image.open(examples()[0]).convert("RGB").save(folder / "photograph.jpg", exif=taken)
    return folder


@pytest.fixture(scope="module")
def searching(pictures, tmp_path_factory) -> Answers:
    target = tmp_path_factory.mktemp("search")
    embed_into(target / "embeddings", [str(pictures)], backend="numpy")
    Index.build(target / "embeddings", target / "index.lance")
    return Answers(backend="numpy", index=target / "index.lance")


def test_an_index_is_searched(searching, pictures):
    assert searching.models == ["shapes"]
    assert searching.index.loaded is searching._loaded["shapes", "numpy"]
    wanted = searching.index.search("a red circle", count=5)
    found = searching.search("a red circle", None, " ", "", 5)
    assert [each.score for each in found] == [hit.score for hit in wanted]
    assert [each.name for each in found] == [Path(hit.row["path"]).name for hit in wanted]
    assert all(max(each.picture.size) <= 512 and not each.picture.info for each in found)
    assert "photograph.jpg" in [each.name for each in found]
    same = searching.search("", str(pictures / "photograph.jpg"), "", "a red circle", 2)
    image = pictures / "photograph.jpg"
    assert [each.score for each in same] == [
        hit.score for hit in searching.index.search(image=image, minus="a red circle", count=2)
    ]


def test_only_files_that_were_embedded_are_shown(searching, pictures):
    path = pictures / "photograph.jpg"
    content = path.read_bytes()
    try:
        Image.new("RGB", (8, 8)).save(path)  # an index may come from somewhere else, and name any file
        found = {each.name: each.picture for each in searching.search("a red circle", None, "", "", 5)}
    finally:
        path.write_bytes(content)
    assert [name for name, picture in found.items() if picture is None] == ["photograph.jpg"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((" ", None, "", "a star", 5), "There is nothing to search for; write a text, or give a picture"),
        (("a", None, "", "", 0), f"Between 1 and {MOST_FOUND} results"),
        (("a", None, "", "", MOST_FOUND + 1), f"Between 1 and {MOST_FOUND} results"),
        (("a", None, "", "a", 5), "cancel each other out"),
        (("a" * 1001, None, "", "", 5), "A text has 1001 characters"),
        (("", None, "http://10.0.0.1/a.png", "", 5), r"^The address is not one of the public internet"),
    ],
)
def test_searches_that_are_refused(searching, arguments, sentence):
    with pytest.raises(ClipError, match=sentence):
        searching.search(*arguments)


def test_a_public_link_is_refused(run):
    assert_refused(run("web", "--share"), "--share is not offered")
