"""The recipes that come with the repository say what their sources say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_core.models import ARCHITECTURES, MODELS
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate
from clip_core.training.trainable import OPTIONAL_KEYS, check_trainable, with_initial_scale

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    recipe = Recipe.read(path)
    assert recipe.model.build().image.resolution in (64, 112, 224)
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


@pytest.mark.parametrize(("name", "rate"), [("b-32-224", 5e-4), ("b-16-112", 4e-5)])
def test_low_resource_recipes(name, rate):
    recipe = Recipe.read(CONFIGS / "clip" / f"low-resource-{name}.yaml")
    image, patch, resolution = (f"{name[0].upper()}/{name[2:4]}@{name[5:]}", int(name[2:4]), int(name[5:]))
    assert recipe.model.build() == ARCHITECTURES[f"{image}+B"].architecture
    tower = recipe.model.build().image
    assert (tower.patch, tower.resolution, tower.width) == (patch, resolution, 768)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.decay) == (0.2, "all")
    assert (recipe.data.batch_size, recipe.training.epochs, recipe.training.precision) == (128, 4, "fp16")
    assert learning_rate(recipe, 2000, 100_000) == pytest.approx(rate)
    assert learning_rate(recipe, 100_000, 100_000) < 1e-10


def test_laion_coco_recipe():
    recipe = Recipe.read(CONFIGS / "clip" / "laion-coco.yaml")
    assert recipe.model.build() == MODELS["ViT-B/32"].architecture
    assert recipe.data.batch_size == 8 * 4096
    assert (recipe.optimizer.gradient_clip, recipe.optimizer.logit_scale_bounds) == (20.0, (1.0, 100.0))
    assert learning_rate(recipe, 2, 16_000) == pytest.approx(5e-4)
    assert learning_rate(recipe, 16_000, 16_000) == pytest.approx(5e-6, rel=1e-3)


def test_the_mixer_is_trained_as_the_transformer_beside_it():
    mixer, transformer = (Recipe.read(CONFIGS / "clip" / f"{name}.yaml") for name in ("mixer-b-32", "laion-coco"))
    assert mixer.model.build() == ARCHITECTURES["Mixer-B/32"].architecture
    assert mixer == transformer.model_copy(update={"model": mixer.model})


def test_siglip_recipe():
    recipe = Recipe.read(CONFIGS / "clip" / "siglip-b-16.yaml")
    assert recipe.model.build() == ARCHITECTURES["ViT-B-16-SigLIP"].architecture
    check_trainable(recipe.model.build(), recipe, OPTIONAL_KEYS)
    assert (recipe.loss.kind, recipe.loss.initial_logit_scale, recipe.loss.initial_logit_bias) == ("sigmoid", 10, -10)
    assert (recipe.data.batch_size, recipe.optimizer.betas) == (32768, (0.9, 0.95))
    assert learning_rate(recipe, 3000, recipe.training.steps) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("coco", "m3it"), ("textcap", "m3it"), ("sbu", "saved"), ("combined", "combined"), ("yfcc7m", "webdataset")],
)
def test_simple_clip_recipes(name, kind):
    recipe = Recipe.read(CONFIGS / "clip" / f"simple-clip-{name}.yaml")
    assert recipe.model.build() == ARCHITECTURES["simple-clip-resnet50"].architecture
    pretrained = recipe.model.pretrained
    assert (pretrained.image, pretrained.text) == ("torchvision/resnet50", "distilbert-base-uncased")
    assert (recipe.data.source.kind, recipe.data.batch_size) == (kind, 256)
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay, recipe.optimizer.betas) == ("adam", 0, (0.9, 0.999))
    assert recipe.loss.initial_logit_scale == 5
    assert with_initial_scale({"logit_bias": np.zeros((), np.float32)}, recipe.loss)["logit_bias"] == 0
    assert recipe.model.build().text.context_length == 100
    assert learning_rate(recipe, 1, 57_800) == pytest.approx(1e-4, rel=1e-6)
    assert learning_rate(recipe, 57_800, 57_800) == pytest.approx(1e-8, rel=1e-2)
