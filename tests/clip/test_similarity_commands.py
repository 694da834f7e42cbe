"""``clip similarity`` and ``clip evaluate bias``: cosines of pictures and texts, as tables and as drawings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip import samples, similarity
from clip.api import open_model
from clip.command.bias import DRAWN
from clip.similarity import Similarities, bars, check_bars, heat_map
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.similarity import normalize
from tests.clip.running import assert_refused
from tests.requested import BACKENDS

PICTURES = samples.pictures()
CIRCLE, STAR = PICTURES["a large solid red circle"], PICTURES["a large solid turquoise star"]
TEXTS = ["a large solid red circle", "a large solid turquoise star", "three small dotted pink hearts"]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The cosines [2, 3] by the model alone."""
    loaded = open_model("shapes", backend="numpy")
    pixels = np.stack([loaded.preprocess.pixels(open_image(path)) for path in (CIRCLE, STAR)])
    texts = loaded.model.embed_text(loaded.model.tokenizer.tokenize(TEXTS, 32))
    return normalize(loaded.model.embed_image(pixels)) @ normalize(texts).T


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two pictures and three texts."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (CIRCLE, STAR):
        (data / path.name).write_bytes(path.read_bytes())
    (data / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return data


def of_texts() -> list[str]:
    return [part for text in TEXTS for part in ("--texts", text)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_similarity_gives_cosines(backend, run, expected):
    found = run("similarity", CIRCLE, STAR, *of_texts(), "--backend", backend, "--json").json
    assert found["cosines"] == pytest.approx(expected, abs=1e-5)
    assert found["nearest"] == TEXTS[:2]
    assert (found["images"], found["texts"]) == ([str(CIRCLE), str(STAR)], TEXTS)


def test_similarity_lists_the_nearest_text_first(run, expected, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    lines = run("similarity", CIRCLE, "--texts-file", tmp_path / "texts.txt", "--backend", "numpy").out.splitlines()
    order = np.argsort(-expected[0])
    rows = [line.split("  ") for line in lines[2:5]]
    assert [row[0] for row in rows] == [TEXTS[place] for place in order]
    assert [float(row[-1]) for row in rows] == pytest.approx(expected[0][order], abs=1e-4)


def test_similarity_draws_and_refuses_to_replace(run, tmp_path):
    command = ["similarity", CIRCLE, *of_texts(), "--backend", "numpy", "--plot", tmp_path / "heat.png"]
    assert run(*command).code == 0
    drawn = np.asarray(Image.open(tmp_path / "heat.png").convert("RGB"))
    assert 0.3 < (drawn == 255).all(axis=2).mean() < 0.95
    assert_refused(run(*command), "heat.png is there already")
    assert_refused(run(*command[:-1], CIRCLE, "--force"), "is a file that is read here itself")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([CIRCLE], "There are no texts; give some with --texts or --texts-file"),
        ([CIRCLE, "--texts", "a " * 100], "tokens"),
        ([*[CIRCLE] * 61, "--texts", "a", "--plot", "a.png"], "61 pictures and 1 texts are too many for one drawing"),
        (["none.png", "--texts", "a"], "none.png cannot be read"),
        ([CIRCLE, "--texts", "a", "--plot", "a.pdf"], "only PNG files are"),
    ],
)
def test_similarity_refuses(arguments, part, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("similarity", *arguments, "--backend", "numpy"), part)
    assert list(tmp_path.iterdir()) == []


def test_bias_compares_the_pictures_of_a_folder_in_several_backends(run, folder, expected):
    found = run("evaluate", "bias", "--data", folder, "--backends", ",".join(BACKENDS), "--json").json
    assert list(found["backends"]) == list(BACKENDS)
    for of_backend in found["backends"].values():
        assert of_backend["cosines"] == pytest.approx(expected, abs=1e-5)
        assert of_backend["nearest"] == TEXTS[:2]
    assert found["largest_difference"] <= 2e-5
    assert (found["largest_difference"] > 0) == (len(BACKENDS) > 1)


def test_bias_draws_bars_and_a_heat_map(run, folder, expected, tmp_path):
    ended = run("evaluate", "bias", "--data", folder, "--backend", "numpy", "--plot", tmp_path / "bias.png")
    assert ended.err == ""  # of texts.txt, nothing is said
    row = next(line for line in ended.out.splitlines() if CIRCLE.name in line)
    assert row.split(f"{CIRCLE.name} ")[1].strip() == f"{TEXTS[0]} ({expected[0, 0]:.4f})"
    colours = np.asarray(Image.open(tmp_path / "bias.png").convert("RGB")).reshape(-1, 3)
    best = np.array([int(similarity.BEST[place : place + 2], 16) for place in (1, 3, 5)])
    assert (np.abs(colours - best).max(axis=1) < 3).sum() > 1000


def test_bias_draws_its_own_pictures_without_a_folder(run):
    found = run("evaluate", "bias", "--backend", "numpy", "--json").json["backends"]["numpy"]
    kinds = [" ".join(reversed(kind)) for kind in DRAWN]
    assert found["images"][::2] == kinds
    assert found["images"][1] == f"{kinds[0]}, and the words {kinds[1]!r}"
    assert [text.removeprefix("a large solid ") for text in found["nearest"][::2]] == kinds
    assert run("evaluate", "bias", "--backend", "numpy", "--texts", "a star", "--json").json["backends"]["numpy"][
        "texts"
    ] == ["a star"]


def test_bias_refuses(run, folder, tmp_path):
    bias = ["evaluate", "bias", "--backend", "numpy", "--data"]
    assert_refused(run(*bias, tmp_path / "none"), "none")
    (folder / "texts.txt").write_text("\n")
    assert_refused(run(*bias, folder), "There are no texts")
    (folder / "texts.txt").unlink()
    assert_refused(run(*bias, folder), "has no texts.txt; put a text into each of its lines, or give --texts-file")
    (folder / STAR.name).write_bytes(STAR.read_bytes()[:-100])
    assert_refused(run(*bias, folder, "--texts", "a"), STAR.name)
    assert_refused(run("evaluate", "bias", "--backends", ","), "--backends is ','; give one of torch,")


def test_bars_and_cells_are_the_cosines():
    cosines = np.array([[0.1, 0.4, -0.2], [0.3, 0.2, 0.25]], np.float32)
    found = Similarities("m", "numpy", ["a/b.png", "$c$"], ["x", "$y$", "z\n" * 3], cosines, 100.0)
    pictures = [Image.new("RGB", (300, 20)), Image.new("L", (5, 900))]
    figure = bars(found, pictures)
    drawn = [[bar.get_width() for bar in axes.patches] for axes in figure.axes[1::2]]
    assert drawn == [pytest.approx(row) for row in cosines.tolist()]
    reds = [[bar.get_facecolor()[0] > 0.74 for bar in axes.patches] for axes in figure.axes[1::2]]
    assert reds == [[False, True, False], [True, False, False]]
    (axes,) = heat_map(found, pictures).axes
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(cosines.T)
    cells = [text.get_text() for text in axes.texts]
    assert cells == [f"{value:.2f}" for value in cosines.ravel()]
    whole = Image.open(io.BytesIO(similarity.drawing(found, pictures)))
    assert whole.height > 2 * 2.2 * 100


def test_too_many_bars_are_refused():
    check_bars(100, 10)
    with pytest.raises(ClipError, match=r"^100 pictures and 11 texts are 1100 bars, too many for one drawing"):
        check_bars(100, 11)
