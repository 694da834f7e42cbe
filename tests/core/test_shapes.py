"""The drawn world: what pictures show, what captions say, and that nothing held out is ever trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from random import Random

import numpy as np
import pytest

from clip_core.data.shapes import (
    COLOURS,
    HELD_OUT,
    KINDS,
    RADII,
    SHAPES,
    SIDE,
    SYNONYMS,
    TEMPLATES,
    TEXTURES,
    TRAINED,
    Scene,
    Thing,
    TrainingSet,
    caption,
    describe,
    draw,
    random_for,
    random_scene,
    training_example,
    vocabulary_captions,
)
from clip_core.models import SHAPES as ARCHITECTURE
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import learn

RED_SQUARE = Thing("square", "red", "large", "solid")
BLUE_CROSS = Thing("cross", "blue", "small", "striped")


def mask_of(picture, colour: str, within: int = 40) -> np.ndarray:
    """Where ``picture`` has about this colour, bool [64, 64]."""
    return np.abs(np.asarray(picture).astype(int) - COLOURS[colour]).sum(axis=2) < within


def parts(mask: np.ndarray) -> int:
    """The number of connected areas; single pixels at the tips of thin shapes do not count."""
    todo = {tuple(place) for place in np.argwhere(mask)}
    sizes = []
    while todo:
        edge = [todo.pop()]
        size = 0
        while edge:
            size += 1
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & todo
            todo -= near
            edge.extend(near)
        sizes.append(size)
    return sum(size > 15 for size in sizes)


def digest(example) -> str:
    return hashlib.sha256(example.picture.tobytes() + example.caption.encode()).hexdigest()


def test_an_example_depends_on_seed_and_index_alone():
    forwards = [digest(training_example(3, index)) for index in range(30)]
    backwards = [digest(training_example(3, index)) for index in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert forwards == [digest(example) for example in TrainingSet(3, 30)]
    assert len(set(forwards)) == 30
    assert not set(forwards) & {digest(training_example(4, index)) for index in range(30)}


def test_other_purposes_draw_other_numbers():
    purposes = ("training", "held out", "trained", "retrieval", "vocabulary")
    assert len({random_for(purpose, 0, 0).random() for purpose in purposes}) == len(purposes)


def test_held_out_combinations_never_occur_in_training_and_all_others_do():
    seen = set()
    for index in range(4000):
        scene = random_scene(random_for("training", 0, index), TRAINED)
        seen |= {(thing.shape, thing.colour) for thing in (scene.first, scene.second) if thing is not None}
    assert seen == set(TRAINED)
    assert not seen & set(HELD_OUT)
    assert len(HELD_OUT) + len(TRAINED) == len(KINDS) == len(SHAPES) * len(COLOURS)


def test_the_scene_of_a_training_example_is_one_of_trained_kinds():
    for index in range(500):
        scene = training_example(0, index).scene
        for thing in (scene.first, scene.second):
            assert thing is None or (thing.shape, thing.colour) in TRAINED


def test_every_shape_and_colour_is_trained_with_many_partners():
    partners = defaultdict(set)
    for shape, colour in TRAINED:
        partners[shape].add(colour)
        partners[colour].add(shape)
    assert set(partners) == set(SHAPES) | set(COLOURS)
    assert min(map(len, partners.values())) >= 7


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene(RED_SQUARE), "a large solid red square"),
        (Scene(BLUE_CROSS, count=3), "three small striped blue crosses"),
        (
            Scene(RED_SQUARE, relation="left of", second=BLUE_CROSS),
            "a large solid red square left of a small striped blue cross",
        ),
        (
            Scene(BLUE_CROSS, relation="above", second=RED_SQUARE),
            "a small striped blue cross above a large solid red square",
        ),
    ],
)
def test_description(scene, words):
    assert describe(scene) == words


def test_description_backwards_and_with_fewer_attributes():
    scene = Scene(RED_SQUARE, relation="above", second=BLUE_CROSS)
    assert describe(scene, backwards=True) == "a small striped blue cross below a large solid red square"
    assert describe(scene, named=["colour"]) == "a red square above a blue cross"
    assert describe(Scene(Thing("ring", "orange", "small", "solid")), named=["colour"]) == "an orange ring"


def test_equal_descriptions_mean_equal_scenes():
    scenes = {random_scene(random_for("test", 0, index), KINDS) for index in range(3000)}
    assert len(scenes) > 1500
    assert len({describe(scene) for scene in scenes}) == len(scenes)


def test_a_caption_is_a_description_in_other_words():
    scene = Scene(BLUE_CROSS, count=2)
    captions = {caption(scene, Random(seed)) for seed in range(600)}
    plain = {"two small striped blue crosses", "two blue crosses", "two striped crosses", "two crosses"}
    assert plain <= captions
    assert {word for text in captions for word in text.split()} >= {"little", "tiny", "stripy", "banded", "pluses"}
    frames = [template.split("{}") for template in TEMPLATES]
    assert all(any(text.startswith(a) and text.endswith(b) and "two " in text for a, b in frames) for text in captions)


def test_synonyms_are_words_of_their_own():
    replaced = [word for words in SYNONYMS.values() for word in words]
    assert len(set(replaced)) == len(replaced)
    assert not set(replaced) & {*SHAPES, *COLOURS, *TEXTURES, *SYNONYMS}


def test_a_picture_is_rgb_of_the_right_side():
    picture = training_example(0, 0).picture
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_group_has_as_many_things_as_it_says(shape, count):
    for seed in range(5):
        scene = Scene(Thing(shape, "red", "large", "solid"), count=count)
        assert parts(mask_of(draw(scene, Random(seed)), "red", within=60)) == count


def test_large_things_are_larger_than_small_ones():
    for shape in SHAPES:
        areas = {
            size: [
                mask_of(draw(Scene(Thing(shape, "blue", size, "solid")), Random(seed)), "blue").sum()
                for seed in range(20)
            ]
            for size in RADII
        }
        assert min(areas["large"]) > 1.4 * max(areas["small"])


@pytest.mark.parametrize(("relation", "axis"), [("left of", 1), ("above", 0)])
def test_a_pair_stands_as_the_relation_says(relation, axis):
    for seed in range(40):
        second = Thing("ring", "blue", "large", "dotted")
        picture = draw(Scene(RED_SQUARE, relation=relation, second=second), Random(seed))
        first_at, second_at = (np.argwhere(mask_of(picture, colour)).mean(axis=0) for colour in ("red", "blue"))
        assert second_at[axis] - first_at[axis] > 20
        assert abs(second_at[1 - axis] - first_at[1 - axis]) < 8


def test_textures_are_white_marks_on_the_colour():
    shares = {}
    for texture in TEXTURES:
        inside = []
        for seed in range(20):
            random = Random(seed)
            picture = draw(Scene(Thing("square", "blue", "large", texture)), random)
            white = np.asarray(picture).min(axis=2) > 235
            blue = mask_of(picture, "blue")
            inside.append(white.sum() / (white.sum() + blue.sum()))
        shares[texture] = np.median(inside)
    assert shares["solid"] == 0
    assert all(0.1 < shares[texture] < 0.75 for texture in TEXTURES if texture != "solid")


def test_the_vocabulary_is_that_of_the_shapes_model():
    tokenizer = BytePairTokenizer(learn(vocabulary_captions(), ARCHITECTURE.text.vocabulary_size - 514))
    assert tokenizer.vocabulary_size == ARCHITECTURE.text.vocabulary_size
    assert list(TrainingSet(1, 3).captions()) == list(vocabulary_captions())
    for word in (*SHAPES, *COLOURS, *TEXTURES, "small", "large", "two", "three", "four", "above", "below"):
        assert len(tokenizer.encode(word)) == 1, word
