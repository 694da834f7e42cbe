"""The recipes that come with the repository say what their sources say."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    recipe = Recipe.read(path)
    assert recipe.model.build().image.resolution in (64, 224)
    assert path.read_text().startswith("# ")


def test_passl_recipe():
    recipe = Recipe.read(CONFIGS / "clip" / "vit-b-32.yaml")
    assert (recipe.loss.reduction, recipe.optimizer.decay, recipe.optimizer.epsilon) == ("sum", "all", 1e-8)
    assert recipe.data.batch_size == 8 * 128
    assert learning_rate(recipe, 1, 100) > 0.99e-5
    assert learning_rate(recipe, 100, 100) < 1e-8


@pytest.mark.parametrize("name", ["cc3m-finetune", "cc3m-scratch"])
def test_nnabla_recipes(name):
    recipe = Recipe.read(CONFIGS / "clip" / f"{name}.yaml")
    assert recipe.optimizer.weight_decay * recipe.optimizer.learning_rate == pytest.approx(1e-4)  # NNabla's own meaning
    # NNabla-CLIP counts iterations i from 0: lr * (i + 1) / W, then lr / 2 * (1 + cos(pi * (i - W) / (T - W))).
    assert learning_rate(recipe, 1, 100_000) == pytest.approx(5e-4 / 10_000)
    assert learning_rate(recipe, 10_000, 100_000) == pytest.approx(5e-4)
    assert learning_rate(recipe, 55_001, 100_000) == pytest.approx(2.5e-4, rel=1e-3)
