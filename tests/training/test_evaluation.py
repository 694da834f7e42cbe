"""Scores of models whose right answers are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clip_core.data.shapes import HELD_OUT, KINDS
from clip_core.errors import ClipError
from clip_core.evaluation import retrieval
from clip_core.evaluation.retrieval import ranks, recall_at
from clip_core.evaluation.sets.folders import Folders
from clip_core.evaluation.sets.food101 import Food101Classes
from clip_core.evaluation.sets.shapes import Shapes
from clip_core.evaluation.shapes import SingleThings
from clip_core.evaluation.zero_shot import class_features
from clip_core.similarity import normalize
from tests.data.numbered import number_in, picture, write_picture
from tests.training.tiny import TINY
from tests.world import known


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


def test_a_rank_counts_the_foreign_targets_that_are_nearer():
    targets = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.5, 0.7, 0.1]], np.float32)
    assert ranks(queries, targets).tolist() == [0, 1, 2]
    assert [recall_at(count, ranks(queries, targets)) for count in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_equal_features_earn_no_recall():
    same = np.full((5, 4), 0.5, np.float32)
    assert ranks(same, same).tolist() == [4] * 5
    assert [recall_at(count, ranks(same, same)) for count in (1, 4, 5)] == [0, 0, 1]


def test_a_picture_is_found_by_any_of_its_captions(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 4)  # the last block is smaller
    generator = np.random.default_rng(0)
    pictures = normalize(generator.standard_normal((9, 3)))
    owners = np.repeat(np.arange(9), generator.integers(1, 4, 9))
    captions = normalize(pictures[owners] + generator.standard_normal((len(owners), 3)))
    similarities = pictures @ captions.T  # [pictures, captions]

    def place(row: np.ndarray, own: list[int]) -> int:
        """Where the first of ``own`` stands when all are sorted, the nearest first."""
        return [index in own for index in np.argsort(-row)].index(True)

    of_pictures = [place(row, np.flatnonzero(owners == number).tolist()) for number, row in enumerate(similarities)]
    # A caption of the same picture that is further away counts for nothing, one that is nearer is a hit itself.
    assert ranks(pictures, captions, [np.flatnonzero(owners == number) for number in range(9)]).tolist() == of_pictures
    of_captions = [place(row, [owner]) for row, owner in zip(similarities.T, owners)]
    assert ranks(captions, pictures, owners[:, None]).tolist() == of_captions
    assert 0 < recall_at(1, np.array(of_pictures)) < recall_at(5, np.array(of_pictures))


def test_the_rank_of_a_class_counts_those_that_are_as_near():
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    assert ranks(images, classes, np.array([[0], [1], [0], [2]])).tolist() == [0, 0, 1, 0]
    assert ranks(images, classes, np.array([[1], [2], [2], [0]])).tolist() == [2, 2, 2, 2]


def test_a_class_is_the_unit_mean_of_its_prompts_unit_features(tokenizer):
    model = Letters()
    found = class_features(model, tokenizer, [["a red star"], ["a blue ring", "a ring"]])
    texts = model.embed_text(tokenizer.tokenize(["a red star", "a blue ring", "a ring"], 24)).astype(float)
    rows = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    mean = rows[1] + rows[2]
    assert np.allclose(found, [rows[0], mean / np.linalg.norm(mean)], atol=1e-6)


def test_a_model_that_sees_nothing_scores_nothing(tokenizer):
    scores = known(Constant(), tokenizer, pictures_per_class=2, scenes=20)
    assert scores["held_out_top1"] == scores["trained_top1"] == 0
    assert scores["image_to_text_recall_at_1"] == scores["text_to_image_recall_at_1"] == 0


def test_single_things_come_in_turn_and_each_is_of_its_class():
    things = SingleThings(HELD_OUT, "held out", 2)
    assert len(things) == 2 * len(HELD_OUT)
    labels = [things[index][1] for index in range(len(things))]
    assert [KINDS[label] for label in labels] == list(HELD_OUT) * 2
    assert len({things[index][0].tobytes() for index in range(len(things))}) == len(things)
    shape, colour = KINDS[labels[0]]
    assert len(things.prompts) == len(KINDS)
    assert all(shape in prompt and colour in prompt for prompt in things.prompts[labels[0]])
    assert Shapes(pictures_per_class=2).labelled() == things


@pytest.fixture
def folders(tmp_path):
    for path, number in (("dog/9.JPEG", 1), ("dog/10.png", 2), ("big_cat/x.jpg", 3), ("ant/deep.png/y.png", 4)):
        write_picture(tmp_path / "pictures" / path, number)
    (tmp_path / "pictures" / ".cache").mkdir()
    return tmp_path / "pictures"


def contents(labelled) -> list[tuple[int, int]]:
    """The number that each picture shows, and its class."""
    return [(number_in(picture), label) for picture, label in (labelled[index] for index in range(len(labelled)))]


def test_folders_are_classes_and_their_pictures_come_in_turn(folders):
    labelled = Folders(folder=str(folders)).labelled()
    assert labelled.prompts == [["a photo of a ant."], ["a photo of a big cat."], ["a photo of a dog."]]
    assert contents(labelled) == [(4, 0), (3, 1), (2, 2), (1, 2)]


def test_linked_classes_and_all_suffixes_count_and_the_rest_is_said(folders, tmp_path):
    picture(5).save(folders / "dog" / "11.tiff")
    (tmp_path / "elsewhere").mkdir()
    picture(6).save(tmp_path / "elsewhere" / "6.gif")
    (folders / "zoo").symlink_to(tmp_path / "elsewhere")
    labelled = Folders(folder=str(folders)).labelled()
    assert contents(labelled) == [(4, 0), (3, 1), (2, 2), (6, 3), (5, 2), (1, 2)]
    (folders / "dog" / "notes.txt").write_text("no picture")
    (folders / "list.csv").write_text("no folder")
    with pytest.warns(UserWarning, match=r"pictures are passed over: 2 files \(1 with \.csv, 1 with \.txt\)\.$"):
        assert len(Folders(folder=str(folders)).labelled()) == 6


def numbered(folder, names: list[str], lines: list[str]) -> list[tuple[str, str]]:
    """Class folders, and the class name that each gets from a file with ``lines``."""
    for name in names:
        write_picture(folder / "val" / name / "0.png", 1)
    (folder / "names.txt").write_text("\n".join(lines))
    labelled = Folders(folder=str(folder / "val"), names=str(folder / "names.txt"), templates=("{}",)).labelled()
    return [
        (Path(labelled.name(index)).parent.name, labelled.prompts[labelled[index][1]][0])
        for index in range(len(labelled))
    ]


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        ([str(number) for number in range(12)], [f"class {number}" for number in range(12)]),
        ([str(number) for number in range(1, 12)], [f"class {number}" for number in range(1, 12)]),
        ([f"{number:03}" for number in range(2, 12)], [f"class {number:03}" for number in range(2, 12)]),
        ([str(number) for number in range(3, 12)], [f"{number}\tclass {number}" for number in range(11, 0, -1)]),
    ],
)
def test_numbered_folders_get_the_names_of_their_numbers(names, lines, tmp_path):
    assert numbered(tmp_path, names, lines) == [(name, f"class {name}") for name in names]


def test_a_plain_list_of_the_folders_names_may_be_in_any_order(tmp_path):
    named = numbered(tmp_path, ["Zebra", "big_cat", "ant"], ["Big Cat", "ant", "zebra"])
    assert named == [("Zebra", "zebra"), ("ant", "ant"), ("big_cat", "Big Cat")]


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        ([str(number) for number in range(3, 12)], "3 or 10"),
        (["class1", "class2", "class10"], "class10 or class2"),
        (["Zebra", "ant"], "Zebra or ant"),
        (["ice_cream", "icebox"], "ice_cream or icebox"),
    ],
)
def test_a_plain_list_whose_order_is_not_certain_is_refused(names, pair, tmp_path):
    with pytest.raises(
        ClipError, match=rf"names\.txt is a plain list, and whether {pair} comes first among .* write each"
    ):
        numbered(tmp_path, names, [f"a {number}" for number in range(len(names))])


@pytest.mark.parametrize(
    ("names", "lines", "line", "place", "stated"),
    [
        (["cat", "dog"], ["dog", "bird"], "dog", "cat", "dog"),
        (["cat", "dog"], ["house cat", "Cat, Siamese"], "Cat, Siamese", "dog", "cat"),
        (["0", "1", "2"], ["2 x", "1 y", "0 z"], "2 x", "0", "2"),
        (["00", "01"], ["x", "0: y"], "0: y", "01", "00"),
        (["0", "1"], ["0. x", "1. y"], "0. x", "0", "0"),  # else "0. x" would be the class's name
    ],
)
def test_a_plain_list_that_contradicts_the_folders_is_refused(names, lines, line, place, stated, tmp_path):
    message = f"its line '{line}', by its place that of the folder {place}, names the folder {stated}; write each line"
    with pytest.raises(ClipError, match=re.escape(message)):
        numbered(tmp_path, names, lines)


def test_a_plain_list_may_have_the_words_of_its_folders(tmp_path):
    named = numbered(tmp_path, ["bear", "cat", "dog"], ["bear, brown", "house cat", "Dog"])
    assert named == [("bear", "bear, brown"), ("cat", "house cat"), ("dog", "Dog")]


@pytest.mark.parametrize(
    "lines", ["an insect\na lion\na husky\n", "wolf\tx\ndog\ta husky\nant\tan insect\nbig_cat\ta lion"]
)
def test_class_names_come_from_a_file(folders, tmp_path, lines):
    (tmp_path / "names.txt").write_text(lines)
    settings = Folders(folder=str(folders), names=str(tmp_path / "names.txt"), templates=("{}", "the {}!"))
    assert settings.labelled().prompts == [[name, f"the {name}!"] for name in ("an insect", "a lion", "a husky")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("an insect\na lion\n", "has 2 names, and .*pictures has 3 folders"),
        ("ant\tan insect\ndog\ta husky\n", "has no name for the folder big_cat"),
        ("ant\tan insect\ndog\t\nbig_cat\ta lion", "has no name for the folder dog"),
        ("ant\tan insect\ndog\ta husky\nbig_cat\ta lion\ndog\ta wolf", "names the folder dog twice; keep one of its"),
        (None, "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(folders, tmp_path, lines, message):
    if lines is not None:
        (tmp_path / "names.txt").write_text(lines)
    with pytest.raises(ClipError, match=message):
        Folders(folder=str(folders), names=str(tmp_path / "names.txt")).labelled()


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ClipError, match="nowhere cannot be read: no such file or directory"):
        Folders(folder=str(tmp_path / "nowhere")).labelled()
    (tmp_path / "class").mkdir()
    with pytest.raises(ClipError, match="has no pictures"):
        Folders(folder=str(tmp_path)).labelled()


def test_food101_is_scored_on_its_test_split(tmp_path):
    for key, number in (("apple_pie/1", 1), ("waffles/2", 2), ("waffles/3", 3)):
        write_picture(tmp_path / "images" / f"{key}.jpg", number)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "classes.txt").write_text("apple_pie\nwaffles\n")
    (tmp_path / "meta" / "test.txt").write_text("waffles/3\nwaffles/2\napple_pie/1\n")
    labelled = Food101Classes(folder=str(tmp_path)).labelled()
    assert labelled.prompts == [["a photo of apple pie, a type of food."], ["a photo of waffles, a type of food."]]
    assert contents(labelled) == [(1, 0), (3, 1), (2, 1)]
    (tmp_path / "meta" / "test.txt").write_text("pizza/1\n")
    with pytest.raises(ClipError, match=r"names 'pizza/1', and 'pizza' is not in meta/classes\.txt"):
        Food101Classes(folder=str(tmp_path)).labelled()
