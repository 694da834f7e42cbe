"""docs/recipes.md: its tables are those of the code, and its recipes name every kind of tower and can be read."""

from __future__ import annotations

import re

import pytest
import yaml

from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.training.recipe import Recipe
from clip_core.training.trainable import OPTIONAL_KEYS, check_trainable
from tests.recipe_keys import BEGIN, DOCUMENT, END, keys

BEFORE, _, REST = DOCUMENT.read_text().partition(BEGIN)
RECIPES = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", BEFORE, re.MULTILINE | re.DOTALL)]


def test_the_tables_are_those_of_the_code():
    assert REST.partition(END)[0] == keys(), "run: python -m tests.recipe_keys"
    assert "| `checkpoint.keep` | whole number from 1 | `2` | The newest so many |\n" in REST
    assert "| `block` | `basic`, `bottleneck` | needed | |\n" in REST


@pytest.mark.parametrize("data", RECIPES)
def test_a_recipe_can_be_trained(data):
    recipe = Recipe.parse(data)
    check_trainable(recipe.model.build(), recipe, OPTIONAL_KEYS)
    assert (recipe.training.steps, recipe.data.batch_size) == (10, 8)


def test_every_kind_of_tower_is_in_a_recipe():
    built = [Recipe.parse(data).model.build() for data in RECIPES]
    assert {architecture.image.kind for architecture in built} == IMAGE_TOWERS.keys()
    assert {architecture.text.kind for architecture in built} == TEXT_TOWERS.keys()
