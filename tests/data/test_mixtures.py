"""Mixtures: which part each place of an epoch comes from, and how a recipe names them."""

from __future__ import annotations

from collections import Counter

import pytest

from clip_core.data.mixture import Mixture
from clip_core.errors import ClipError
from clip_core.training.recipe import Recipe
from tests.data.numbered import Numbered, loader, number_in, numbers, open_source, write_picture


def epochs(mixture: Mixture, count: int) -> list[list[int]]:
    return [[mixture.order(epoch, position, 4).example for position in range(len(mixture))] for epoch in range(count)]


def test_without_weights_an_epoch_has_each_example_once():
    mixture = Mixture([Numbered(3), Numbered(5)], None, seed=0)
    assert [number_in(mixture[index].picture) for index in range(8)] == [0, 1, 2, 0, 1, 2, 3, 4]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs(mixture, 4))


def test_weights_are_shares_of_every_epoch():
    mixture = Mixture([Numbered(10), Numbered(30)], [3, 1], seed=0)
    assert mixture.places == [30, 10]
    found = epochs(mixture, 6)
    for epoch in found:
        assert Counter(index < 10 for index in epoch) == {True: 30, False: 10}
        assert Counter(index for index in epoch if index < 10) == dict.fromkeys(range(10), 3)
    large = [index for epoch in found for index in epoch if index >= 10]
    assert Counter(large) == dict.fromkeys(range(10, 40), 2)  # none is left out: three epochs are one round
    assert sorted(large[:30]) == list(range(10, 40)) != large[:30]


def test_places_are_rounded_to_the_whole_epoch():
    assert Mixture([Numbered(5), Numbered(5), Numbered(4)], [1, 1, 1], seed=0).places == [5, 5, 4]
    assert Mixture([Numbered(1), Numbered(99)], [0.2, 0.8], seed=0).places == [20, 80]
    with pytest.raises(ClipError, match="Part 1 of the mixture has no place among 10 examples"):
        Mixture([Numbered(5), Numbered(5)], [1, 1e-6], seed=0)


def test_a_mixture_in_batches_follows_the_seed_in_any_number_of_workers():
    def found(seed: int, workers: int = 0) -> list[list[int]]:
        batches = loader(Mixture([Numbered(10), Numbered(30)], [3, 1], seed), 8, seed, workers)
        result = [next(batches).examples.tolist() for _ in range(10)]
        batches.close()
        return result

    assert found(1) == found(1, workers=2)
    assert found(1) != found(2)
    for start in (0, 5):
        epoch = [index for batch in found(1)[start : start + 5] for index in batch]
        assert Counter(index < 10 for index in epoch) == {True: 30, False: 10}


def parts(tmp_path):
    for name, count in (("a", 3), ("b", 6)):
        for number in range(count):
            write_picture(tmp_path / name / f"{number}.png", number)
            (tmp_path / name / f"{number}.txt").write_text(f"{name}{number}")
    return [{"kind": "paired", "folder": str(tmp_path / name)} for name in "ab"]


def test_a_recipe_mixes_sources(tmp_path):
    data = {"source": {"kind": "combined", "parts": parts(tmp_path), "weights": [0.5, 0.5]}, "batch_size": 4}
    recipe = Recipe.parse({"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": data})
    source = recipe.data.source.open(0)
    assert len(source) == 9
    assert [source[index].caption[0] for index in (0, 2, 3, 8)] == ["a0", "a2", "b0", "b5"]
    recipe.write(tmp_path / "r.yaml")
    assert Recipe.read(tmp_path / "r.yaml") == recipe
    assert len(numbers(next(loader(source, 4)))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"folde": "x"},
            "there is no key data.source.parts.1.folde; did you mean data.source.parts.1.folder? Valid keys are kind, ",
        ),
        ({"kind": "combined"}, "data.source.parts.1.kind is 'combined'; choose one of shapes, table"),
        ({"kind": None}, "data.source.parts.1.kind is None; choose one of shapes"),
        ({"batch_size": 3}, "there is no key data.source.parts.1.batch_size"),
    ],
)
def test_a_faulty_part_is_named(change, message, tmp_path):
    first, second = parts(tmp_path)
    with pytest.raises(ClipError) as caught:
        open_source("combined", {"parts": [first, second | change]}, 0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 0], "data.source.weights.1 is 0: input should be greater than or equal to"),
        ([1, "much"], "data.source.weights.1 is 'much': input should be a valid number"),
        ([1, 2, 3], "data.source.weights has 3 weights for 2 parts; give one for each part."),
        (3, "data.source.weights is 3"),
    ],
)
def test_faulty_weights_are_named(weights, message, tmp_path):
    with pytest.raises(ClipError) as caught:
        open_source("combined", {"parts": parts(tmp_path), "weights": weights}, 0)
    assert message in str(caught.value)


def test_weights_in_some_parts_only_are_refused(tmp_path):
    first, second = parts(tmp_path)
    with pytest.raises(ClipError, match=r"data\.source\.parts have a weight in some parts only; give weights, one for"):
        open_source("combined", {"parts": [first | {"weight": 1}, second]}, 0)
    with pytest.raises(ClipError, match=r"data\.source\.parts is "):
        open_source("combined", {"parts": [first]}, 0)
