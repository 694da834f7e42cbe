"""Typographic attacks: what is written, where, and what a model that reads is found to do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import ClipError, ImageError
from clip_core.evaluation.tasks import Encoded
from clip_core.evaluation.typographic import PAPER, Typographic, Written, check_letters, unaccented, write

CLASSES = ["cat", "dog", "an owl"]


class Plain:
    """Pictures of one colour."""

    def __init__(self, count: int = 60, classes=CLASSES) -> None:
        self.classes, self.labels = classes, np.arange(count) % len(classes)
        self.prompts = [[name] for name in classes]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return Image.new("RGB", (90, 60), (200, 0, 0)), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{index}.png"

    def fingerprint(self) -> str:
        return f"plain {len(self)}"


@pytest.mark.parametrize("size", [(8, 8), (30, 4000), (4000, 30), (500, 375), (64, 64), (1, 1)])
@pytest.mark.parametrize("text", ["ox", "a piece of paper"])
def test_what_is_written_is_wholly_inside(size, text):
    red = (200, 0, 0)
    for seed in range(3):
        found = np.asarray(write(Image.new("RGB", size, red), text, np.random.default_rng(seed)))
        assert found.shape == (size[1], size[0], 3)
        written = np.argwhere((found != red).any(axis=2))
        (top, left), (bottom, right) = written.min(axis=0), written.max(axis=0)
        paper = found[top : bottom + 1, left : right + 1]
        assert (paper != red).any(axis=2).all()  # one rectangle
        if min(size) > 60:
            assert paper.max(axis=2).min() < 150  # the ink, which small letters blend with the paper
            border = np.concatenate([paper[0], paper[-1], paper[:, 0], paper[:, -1]])
            assert (border == PAPER).all()  # no letter is cut off


def test_equal_seeds_write_equally():
    picture = Image.new("RGB", (90, 60))
    first, again, other = (np.asarray(write(picture, "dog", np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert not np.asarray(picture).any()  # it is a copy that is written on


def test_each_picture_gets_another_class_and_an_own_place():
    written = Written(Plain(), seed=0)
    assert (written.labels != Plain().labels).all()
    assert set(written.labels) == {0, 1, 2}
    first, second = (np.asarray(written[index]) for index in (0, 3))
    assert (first != second).any()
    assert (np.asarray(Written(Plain(), seed=0)[0]) == first).all()
    assert written.fingerprint() != Written(Plain(), seed=1).fingerprint()


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("P", 9), ("RGBA", 9), ("I;16", 60_000), ("1", 1), ("CMYK", 9)])
def test_pictures_of_every_mode_are_written_on(mode, colour):
    assert write(Image.new(mode, (90, 60), colour), "dog", np.random.default_rng(0)).mode == "RGB"


def test_a_mode_without_a_way_to_rgb_is_a_fault_of_the_picture():
    with pytest.raises(ImageError, match=r"^The picture has mode La, which cannot be written on: "):
        write(Image.new("La", (90, 60)), "dog", np.random.default_rng(0))


def test_names_that_cannot_be_written_are_refused():
    assert unaccented("Café Ångström") == "Cafe Angstrom"
    check_letters("Café")
    with pytest.raises(ClipError, match=r"^The class '猫' cannot be written onto pictures: the font has no '猫'; "):
        Typographic(Plain(classes=["dog", "猫"]))
    with pytest.raises(ClipError, match=r"^There is 1 class to choose from; give data of two classes or more"):
        Typographic(Plain(classes=["dog"]))


@pytest.mark.parametrize("reads", [True, False])
def test_a_model_that_reads_follows_the_text(reads):
    task = Typographic(Plain())
    classes, labels = np.eye(3, dtype=np.float32), task.labelled.labels
    after = task.written.labels if reads else labels
    features = {"images": classes[labels], "written": classes[after], "classes": classes, "indices": np.arange(60)}
    found = task.score(Encoded(features), 100.0, 0)
    scores = {name: score.value for name, score in found.scores.items()}
    assert scores == {"top1_before": 1, "top1_after": 1 - reads, "follows_the_text": float(reads)}
    choices = task.choices(Encoded(features))
    assert choices["class before"].nearest.tolist() == labels.tolist()
    assert choices["class after"].nearest.tolist() == after.tolist()
