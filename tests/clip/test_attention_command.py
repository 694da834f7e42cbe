"""``clip attention``: maps of what in a picture speaks for a text, their drawing, and docs/attention.md about them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from clip import relevance, samples
from clip.api import LoadedModel, open_model
from clip.relevance import CELLS, MOST_TEXTS, WINDOW, Relevance, drawing
from clip_core.data import shapes
from clip_core.errors import CheckpointError, TextError
from clip_core.image import open_image
from clip_core.similarity import normalize
from tests.clip.running import ROOT, assert_refused
from tests.requested import BACKENDS

CIRCLE = samples.pictures()["a large solid red circle"]
DOCUMENT = (ROOT / "docs" / "attention.md").read_text()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return open_model("shapes", backend="numpy")


def unit(loaded: LoadedModel, texts: list[str]) -> np.ndarray:
    return normalize(loaded.model.embed_text(loaded.model.tokenizer.tokenize(texts, 32)))


def pairs(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Image.Image, list[str], list[np.ndarray]]]:
    """Pictures of two shapes of different kinds, a text for each, and the squares [left, top, right, bottom] around
    them.
    """
    squares: list[np.ndarray] = []
    paint = shapes._paint

    def recorded(picture, thing, radius, centre, random):
        squares.append(np.array([*centre, *centre]) + radius * np.array([-1, -1, 1, 1]))
        paint(picture, thing, radius, centre, random)

    monkeypatch.setattr(shapes, "_paint", recorded)
    index = 0
    while count:
        random = shapes.random_for("relevance", 0, index)
        scene, index = shapes.random_scene(random, shapes.KINDS), index + 1
        if scene.second is None or scene.first.shape == scene.second.shape:
            continue
        squares.clear()
        count -= 1
        texts = [shapes.describe(shapes.Scene(thing), ("colour",)) for thing in (scene.first, scene.second)]
        yield shapes.draw(scene, random), texts, list(squares)


def share_found(loaded: LoadedModel, count: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the shapes in so many pictures, those that the cell with the highest relevance to their text lies in."""
    hits = []
    for picture, texts, squares in pairs(count, monkeypatch):
        found = relevance.relevance(loaded, loaded.preprocess.pixels(picture), texts)
        for number, (left, top, right, bottom) in enumerate(squares):
            y, x = ((place + 0.5) * shapes.SIDE / CELLS for place in found.highest(number))
            hits.append(left <= x <= right and top <= y <= bottom)
    return float(np.mean(hits))


def test_the_most_relevant_cell_is_in_the_named_shape(loaded, monkeypatch):
    assert share_found(loaded, 3, monkeypatch) == 1


@pytest.mark.slow
def test_the_share_of_shapes_that_are_found_is_that_of_the_document(loaded, monkeypatch):
    found, total = re.search(r"in (\d+) of (\d+) texts", DOCUMENT).groups()
    share = share_found(loaded, int(total) // 2, monkeypatch)
    assert abs(share - int(found) / int(total)) <= 0.05  # where rounding decides between two cells


def test_a_cell_is_the_mean_over_the_windows_that_cover_it(loaded):
    texts = ["a red circle", "a blue star"]
    pixels = loaded.preprocess.pixels(open_image(CIRCLE))
    found = relevance.relevance(loaded, pixels, texts)
    features, none = unit(loaded, texts), unit(loaded, [""])
    np.testing.assert_allclose(found.cosines, (features @ normalize(loaded.model.embed_image(pixels[None])).T)[:, 0])
    side = shapes.SIDE // CELLS
    for row, column in ((0, 0), (3, 5), (7, 7)):
        covered = []
        for top in range(row - WINDOW + 1, row + 1):
            for left in range(column - WINDOW + 1, column + 1):
                picture = pixels.copy()
                rows = slice(max(top, 0) * side, (top + WINDOW) * side)
                columns = slice(max(left, 0) * side, (left + WINDOW) * side)
                picture[:, rows, columns] = pixels.mean(axis=(1, 2))[:, None, None]
                covered.append(picture)
        falls = normalize(loaded.model.embed_image(pixels[None])) - normalize(
            loaded.model.embed_image(np.stack(covered))
        )
        np.testing.assert_allclose(found.maps[:, row, column], (falls @ (features - none).T).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_map(backend, run, loaded, monkeypatch):
    monkeypatch.setattr(relevance, "CELLS", 2)
    monkeypatch.setattr(relevance, "WINDOW", 1)
    texts = ["a red circle", "a blue star"]
    expected = relevance.relevance(loaded, loaded.preprocess.pixels(open_image(CIRCLE)), texts)
    found = run("attention", CIRCLE, "--text", texts[0], "--text", texts[1], "--backend", backend, "--json").json
    assert (found["image"], found["backend"], found["cells"], found["window"]) == (str(CIRCLE), backend, 2, 1)
    assert [each["text"] for each in found["texts"]] == texts
    assert [each["cosine"] for each in found["texts"]] == pytest.approx(expected.cosines.tolist(), abs=1e-5)
    np.testing.assert_allclose([each["map"] for each in found["texts"]], expected.maps, atol=2e-5)
    assert np.abs(expected.maps).max() > 0.05


def test_a_map_is_drawn_over_the_picture(run, tmp_path, monkeypatch):
    monkeypatch.setattr(relevance, "CELLS", 2)
    monkeypatch.setattr(relevance, "WINDOW", 1)
    target = tmp_path / "map.png"
    command = ["attention", CIRCLE, "--text", "a red circle", "--backend", "numpy", "-o", target]
    ended = run(*command)
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"a red circle +0\.\d+ +0\.\d+ +row \d, column \d\n", ended.out)
    drawn = np.asarray(Image.open(target).convert("RGB")).astype(int)
    assert (drawn[..., 0] - drawn[..., 2] > 60).mean() > 0.01
    assert_refused(run(*command), "map.png is there already")
    assert_refused(run(*command[:-1], CIRCLE, "--force"), "is a file that is read here itself")


def test_panels_have_the_picture_the_maps_and_one_scale(loaded):
    picture = open_image(CIRCLE)
    maps = np.zeros((2, CELLS, CELLS), np.float32)
    maps[0, 2, 5], maps[1, 7, 0] = 0.25, -0.5
    cosines = np.array([0.3, -0.1], np.float32)
    pixels = loaded.preprocess.pixels(picture)
    figure = drawing(Relevance("shapes", "numpy", ["$5", "b"], pixels, cosines, maps), loaded.preprocess.wanted)
    first, *panels = figure.axes[:3]
    shown = np.asarray(first.images[0].get_array())
    np.testing.assert_allclose(shown, np.asarray(picture.convert("RGB")) / 255, atol=1e-5)
    assert [panel.get_title() for panel in panels] == ["$5\ncosine 0.300", "b\ncosine -0.100"]
    for panel, cells in zip(panels, maps):
        np.testing.assert_array_equal(panel.images[1].get_array(), cells)
        assert panel.images[1].get_clim() == (-0.5, 0.5)


def test_the_title_of_a_long_text_leaves_room_for_the_heading(loaded):
    pixels, cosines, maps = np.zeros((3, 48, 48), np.float32), np.ones(2, np.float32), np.ones((2, CELLS, CELLS))
    found = Relevance("shapes", "numpy", ["word " * 32, "b"], pixels, cosines, maps)
    figure = drawing(found, loaded.preprocess.wanted)
    figure.draw_without_rendering()
    (heading,) = figure.texts
    assert figure.axes[1].title.get_window_extent().y1 < heading.get_window_extent().y0


def test_the_embedded_model_knows_shapes_only(run, monkeypatch):
    monkeypatch.setattr(relevance, "CELLS", 2)
    monkeypatch.setattr(relevance, "WINDOW", 1)
    ended = run("attention", CIRCLE, "--text", "a cat", "--backend", "numpy")
    assert ended.code == 0
    assert "the embedded model knows drawn shapes only, and 'a cat' is none of them" in ended.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([CIRCLE], "There are no texts; give some with --text"),
        ([CIRCLE, "--text", "a star " * 50], "tokens"),
        (["none.png", "--text", "a star"], "none.png cannot be read"),
        ([CIRCLE, "--text", "a star", "-o", "a.pdf"], "only PNG files are"),
        ([CIRCLE, *["--text", "a"] * (MOST_TEXTS + 1), "-o", "a.png"], "31 texts are too many for one drawing"),
    ],
)
def test_it_refuses(arguments, part, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("attention", *arguments, "--backend", "numpy"), part)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_refused(loaded, monkeypatch):
    pixels = loaded.preprocess.pixels(open_image(CIRCLE))
    with pytest.raises(TextError, match="There are no texts"):
        relevance.relevance(loaded, pixels, [])
    monkeypatch.setattr(loaded.model, "embed_image", lambda pixels: np.full((len(pixels), 128), np.nan, np.float32))
    with pytest.raises(CheckpointError, match="features that are not finite numbers"):
        relevance.relevance(loaded, pixels, ["a star"])


def test_the_document_has_the_numbers_of_the_code():
    text = " ".join(DOCUMENT.split())
    assert f"{CELLS} by {CELLS} cells" in text
    assert f"Squares of {WINDOW} by {WINDOW} cells" in text
    assert f"{(CELLS + WINDOW - 1) ** 2 + 1} pictures" in text
