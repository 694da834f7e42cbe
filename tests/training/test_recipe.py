"""Recipes: what is read, what is refused, and the learning rate that follows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from clip_core.architecture import SHAPES
from clip_core.errors import ClipError
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate

SHIPPED = Path(__file__).parents[2] / "configs" / "shapes.yaml"
SMALLEST = {"model": {"architecture": "shapes"}, "training": {"steps": 10}}


def test_the_shipped_recipe_trains_the_packaged_architecture():
    recipe = Recipe.read(SHIPPED)
    assert recipe.model.build() == SHAPES
    assert recipe.data.source == "shapes"


def test_an_architecture_can_be_written_out():
    written_out = Recipe.parse(SMALLEST | {"model": {"architecture": SHAPES.to_dict()}})
    assert written_out.model.build() == SHAPES


def test_a_recipe_survives_writing_and_reading(tmp_path):
    recipe = Recipe.parse(SMALLEST | {"optimizer": {"learning_rate": 1e-5, "betas": [0.8, 0.9]}})
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe
    assert recipe.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "there is no key optimiser; did you mean optimizer?"),
        ({"optimizer": {"learning_rat": 1}}, "there is no key optimizer.learning_rat; did you mean learning_rate?"),
        ({"data": {"batchsize": 1}}, "there is no key data.batchsize; did you mean batch_size?"),
        ({"training": {}}, "training needs either steps or epochs"),
        ({"training": {"steps": 1, "epochs": 1}}, "training needs either steps or epochs"),
        ({"training": {"steps": 0}}, "training.steps is 0: input should be greater than or equal to 1"),
        ({"training": {"steps": "many"}}, "training.steps is 'many'"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate is nan"),
        ({"model": {"architecture": "ViT-Z"}}, "there is no model 'ViT-Z'; choose one of shapes, RN50"),
        ({"model": {"architecture": {"embed_dim": 3}}}, "description of the architecture cannot be read"),
        ({"data": {"source": "photographs"}}, "data.source is 'photographs': input should be 'shapes'"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(change, message):
    with pytest.raises(ClipError) as caught:
        Recipe.parse(SMALLEST | change, "r.yaml")
    assert str(caught.value).startswith("r.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["model: [", "- a", "", "3", "a: 1\x00", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ClipError, match=r"r\.yaml"):
        Recipe.read(tmp_path / "r.yaml")


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    recipe = Recipe.parse(
        {
            "model": {"architecture": "shapes"},
            "training": {"steps": 13},
            "optimizer": {"learning_rate": 0.5},
            "schedule": {"warm_up_steps": 4, "final_share": 0.1},
        }
    )
    rates = [learning_rate(recipe, step, 13) for step in range(1, 15)]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert rates[8] == pytest.approx(0.5 * (0.1 + 0.9 / 2))  # half-way down
    assert rates[13] == pytest.approx(0.05)  # after the last step
    assert all(later < earlier for earlier, later in pairwise(rates[3:]))
