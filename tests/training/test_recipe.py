"""Recipes: what is read, what is refused, and the learning rate that follows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.models import ARCHITECTURES, MODELS, SHAPES, TOWERS
from clip_core.training import plain_yaml
from clip_core.training.cautions import cautions
from clip_core.training.recipe import Recipe, installed_recipes, recipe_file
from clip_core.training.schedule import learning_rate

SHIPPED = Path(__file__).parents[2] / "configs" / "shapes.yaml"
SMALLEST = {"model": {"architecture": "shapes"}, "training": {"steps": 10}}


def test_the_shipped_recipe_trains_the_packaged_architecture():
    recipe = Recipe.read(SHIPPED)
    assert recipe.model.build() == SHAPES
    assert recipe.data.source.kind == "shapes"


def test_the_towers_of_any_two_models_make_a_third():
    named = {"embed_dim": 64, "image": "ViT-B/32", "text": "Mixer-B/32"}
    found = Recipe.parse(SMALLEST | {"model": {"architecture": named}}).model.build()
    image, text = MODELS["ViT-B/32"].architecture.image, ARCHITECTURES["Mixer-B/32"].architecture.text
    assert found == Architecture(64, image, text)
    with pytest.raises(ClipError, match=r"There is no text tower 'S/16@112'; choose one of S, B, L, shapes, RN50, "):
        Recipe.parse(SMALLEST | {"model": {"architecture": named | {"text": "S/16@112"}}})


def test_an_architecture_can_be_written_out():
    written_out = Recipe.parse(SMALLEST | {"model": {"architecture": SHAPES.to_dict()}})
    assert written_out.model.build() == SHAPES


def test_towers_can_be_named(tmp_path):
    """Alone or both, and overrides reach into them."""
    description = {"embed_dim": 512, "image": "M/14@112", "text": "S"}
    recipe = Recipe.parse(SMALLEST | {"model": {"architecture": description}})
    assert recipe.model.build() == Architecture(512, TOWERS["image"]["M/14@112"], TOWERS["text"]["S"])
    mixed = Recipe.parse(SMALLEST | {"model": {"architecture": description | {"text": SHAPES.to_dict()["text"]}}})
    assert (mixed.model.build().image, mixed.model.build().text) == (TOWERS["image"]["M/14@112"], SHAPES.text)
    (tmp_path / "recipe.yaml").write_text("model: {architecture: {embed_dim: 8, image: M/14@112, text: S}}\n")
    overrides = {"training.steps": 1, "model.architecture.image.layers": 1, "model.architecture.text": "B"}
    changed = Recipe.read(tmp_path / "recipe.yaml", overrides).model.build()
    assert changed == Architecture(8, replace(TOWERS["image"]["M/14@112"], layers=1), TOWERS["text"]["B"])


def test_a_recipe_survives_writing_and_reading(tmp_path):
    recipe = Recipe.parse(SMALLEST | {"optimizer": {"learning_rate": 1e-5, "betas": [0.8, 0.9]}})
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe
    assert recipe.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "there is no key optimiser; did you mean optimizer?"),
        (
            {"optimizer": {"learning_rat": 1}},
            "there is no key optimizer.learning_rat; did you mean optimizer.learning_rate?",
        ),
        ({"data": {"batchsize": 1}}, "there is no key data.batchsize; did you mean data.batch_size?"),
        ({"training": {}}, "training: give either training.steps or training.epochs, the length of the run."),
        (
            {"training": {"steps": 1, "epochs": 1}},
            "training: give either training.steps or training.epochs, the length of the run.",
        ),
        ({"training": {"steps": 0}}, "training.steps is 0: input should be greater than or equal to 1"),
        ({"training": {"steps": "many"}}, "training.steps is 'many'"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate is nan"),
        (
            {"model": {"architecture": "ViT-Z"}},
            "model.architecture is 'ViT-Z': there is no such model; choose one that clip models lists",
        ),
        (
            {"model": {"architecture": {"embed_dim": 8, "image": "M/14", "text": "S"}}},
            "model.architecture: There is no image tower 'M/14'; choose one of M/14@112, S/16@112,",
        ),
        (
            {"model": {"architecture": {"embed_dim": 3}}},
            "model.architecture: The description of the architecture cannot be read",
        ),
        (
            {"data": {"source": {"kind": "photographs"}}},
            "data.source.kind is 'photographs'; choose one of shapes, table",
        ),
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


def overridden(tmp_path, text: str, **overrides) -> Recipe:
    (tmp_path / "r.yaml").write_text(text)
    return Recipe.read(tmp_path / "r.yaml", {key.replace("__", "."): value for key, value in overrides.items()})


WITH_EVALUATION = """
model: {architecture: shapes}
training: {steps: 10}
data: {source: {kind: shapes, examples: 200}}
evaluation: {every_steps: 5, zero_shot: {kind: shapes}}
"""


def test_overrides_reach_any_depth_and_whole_sections(tmp_path):
    changed = overridden(
        tmp_path,
        WITH_EVALUATION,
        data__augmentation__crop="resized",
        data__augmentation__scale=[0.5, 1],
        loss={"kind": "sigmoid", "initial_logit_scale": 10},
        training__steps=None,
        training__epochs=3,
        evaluation__zero_shot__pictures_per_class=7,
        evaluation__retrieval={"kind": "shapes", "examples": 50},
        evaluation__retrieval__examples=60,
    )
    assert (changed.data.augmentation.crop, changed.data.augmentation.scale) == ("resized", (0.5, 1.0))
    assert (changed.loss.kind, changed.loss.initial_logit_scale) == ("sigmoid", 10.0)
    assert (changed.training.steps, changed.training.epochs) == (None, 3)
    assert changed.evaluation.zero_shot.pictures_per_class == 7
    assert changed.evaluation.retrieval.examples == 60
    assert changed.evaluation.every_steps == 5


def test_overrides_reach_into_a_named_architecture(tmp_path):
    changed = overridden(tmp_path, WITH_EVALUATION, model__architecture__logit_bias=True)
    assert changed.model.build() == replace(SHAPES, logit_bias=True)
    assert overridden(tmp_path, WITH_EVALUATION, model__architecture="RN50").model.architecture == "RN50"
    with pytest.raises(ClipError, match=r"r\.yaml: model\.architecture: The description .* cannot be read"):
        overridden(tmp_path, WITH_EVALUATION, model__architecture__embed_dim=None)


def test_null_removes_what_is_there(tmp_path):
    assert overridden(tmp_path, WITH_EVALUATION, evaluation=None).evaluation is None
    assert overridden(tmp_path, WITH_EVALUATION, data__source__examples=None).data.source.examples == 1_000_000
    assert overridden(tmp_path, WITH_EVALUATION, evaluation=None, evaluation__retrieval__kind=None).evaluation is None
    assert overridden(tmp_path, "model: {architecture: shapes}", training__steps=3).training.steps == 3


def test_overrides_reach_into_lists(tmp_path):
    mixture = {"kind": "combined", "parts": [{"kind": "shapes", "examples": count} for count in (30, 40, 50)]}
    changes = {"data__source": mixture, "data__source__parts__1__examples": 41, "data__source__parts__2": None}
    changed = overridden(tmp_path, WITH_EVALUATION, **changes)
    assert [part.examples for part in changed.data.source.parts] == [30, 41]
    assert overridden(
        tmp_path, WITH_EVALUATION, optimizer__betas=[0.5, 0.6], optimizer__betas__0=0.7
    ).optimizer.betas == (
        0.7,
        0.6,
    )


def test_a_fault_is_blamed_on_the_override_or_on_the_file(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(WITH_EVALUATION)
    for overrides, blamed in (
        ({"training.seed": 3, "data.batch_size": "abc"}, "The override data.batch_size: data.batch_size is 'abc'"),
        ({"data": {"batch_sise": 3}}, "The override data: there is no key data.batch_sise"),
        ({"training.steps.x": 4}, "The override training.steps.x: training.steps is 10"),
        ({"data.batch": 3}, "The override data.batch: there is no key data.batch;"),
    ):
        with pytest.raises(ClipError) as caught:
            Recipe.read(file, overrides)
        assert str(caught.value).startswith(blamed)
    file.write_text(WITH_EVALUATION + "dta: {}\n")
    with pytest.raises(ClipError) as caught:
        Recipe.read(file, {"data.batch_size": 4})
    assert str(caught.value).startswith(f"{file}: there is no key dta")


@pytest.mark.parametrize(
    ("text", "value"),
    [(",", ","), ("@", "@"), ("a: b: c", "a: b: c"), ("%d", "%d"), ("1e-5", 1e-5), ("[1, 2]", [1, 2]), ("", None)],
)
def test_a_value_that_is_no_yaml_is_a_text(text, value):
    assert plain_yaml.load_value(text, "here") == value


@pytest.mark.parametrize("text", ["[1", "{a: 1", "'x", "&a b", "!!python/name:os x"])
def test_a_value_that_is_begun_or_refused_is_no_text(text):
    with pytest.raises(ClipError, match=r"^here"):
        plain_yaml.load_value(text, "here")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 1}, "there is no key learning_rate; did you mean optimizer.learning_rate or training?"),
        (
            {"training.batch_size": 4},
            "there is no key training.batch_size; did you mean data.batch_size or evaluation.batch_size or "
            "training.micro_batch_size?",
        ),
        ({"training.steps.x": 4}, "training.steps is 10, so it has no x that could be set; set all of it."),
        (
            {"data.augmentation.sclae": 4},
            "there is no key data.augmentation.sclae; did you mean data.augmentation.scale?",
        ),
        ({"": 4}, "there is no key ''; did you mean "),
        ({"data.augmentation.scale": [1, 0.5]}, "data.augmentation: The scale of a random crop is (1.0, 0.5)"),
        ({"evaluation.every_steps": None}, "the key evaluation.every_steps is missing"),
        (
            {"evaluation.retrieval": {"kind": "combined", "parts": [{"kind": "shapes"}, {"kind": "shape"}]}},
            "evaluation.retrieval.parts.1.kind is 'shape'; choose one of shapes",
        ),
        ({"x" * 1000: 1}, f"there is no key '{'x' * 60}...'; did you mean"),
        ({"training.seed": "y" * 1000}, f"training.seed is '{'y' * 60}...': input should be a valid integer"),
        ({"data.augmentation.flip": True}, "data.augmentation.flip is True: give a number"),
        ({"data.augmentation.brightness": 1e30}, "data.augmentation.brightness is 1e+30"),
        ({"evaluation.zero_shot.pictures_per_class": 10**30}, "evaluation.zero_shot.pictures_per_class is 10"),
        ({"training.seed": True}, "training.seed is True: give a number"),
        ({"training.seed": 10**5000}, "training.seed is a number of 16610 bits"),
        ({"optimizer.betas": [[0] * 9, 1]}, "optimizer.betas.0 is a list of 9: input should be a valid number"),
        ({"model.architecture": 5}, "model.architecture is 5: there is no such model"),
    ],
)
def test_an_override_that_cannot_be_names_the_key_as_it_is_written(tmp_path, overrides, message):
    (tmp_path / "r.yaml").write_text(WITH_EVALUATION)
    with pytest.raises(ClipError) as caught:
        Recipe.read(tmp_path / "r.yaml", overrides)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "line 1: there are no anchors (&) and aliases (*) in a recipe; write it out."),
        ("a: 1\nb: *x", "line 2: there are no anchors (&) and aliases (*) in a recipe; write it out."),
        ("a:\n  b: 2\n  <<: {b: 1}", "line 3: there are no merge keys (<<) in a recipe; write the keys out."),
        ("a: !!python/object/apply:os.getcwd []", "line 1: there are no tags (!) in a recipe"),
        ("a: {b: 1,\n c: 2, b: 3}", "line 2: the key b is there twice; remove one of them."),
        ("1: 2", "line 1: a key is not a text"),
        ("a: 0x" + "f" * 5000, "line 1: a number has more than 100 digits"),
        ("a: 1" + ":1" * 100_000, "line 1: a number has more than 100 digits"),
        ("[" * 100_000, "line 1: more than 20 lists and sections are within each other."),
        ("- a\n" * 60_000, "line 20000: there are more than 20,000 values"),
        ("a:\n" + " b\n" * 80_000, "there is no key a; did you mean data?"),
        ("x" * (1 << 19), "has 524288 bytes; at most 262144 are read here"),
        ("a: !" + "b" * 200_000 + "!c d", "is not YAML: "),
    ],
    ids=lambda value: value[:12],
)
def test_a_recipe_that_would_explode_is_refused_at_once(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ClipError) as caught:
        Recipe.read(tmp_path / "r.yaml")
    assert str(caught.value).startswith(str(tmp_path / "r.yaml"))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_date_is_a_text_and_a_list_may_be_there_twice(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {architecture: shapes}\ntraining: {steps: 1_000}\ndata: {source: {kind: paired, folder: 2024-13-45}}"
    )
    recipe = Recipe.read(tmp_path / "r.yaml")
    assert (recipe.data.source.folder, recipe.training.steps) == ("2024-13-45", 1000)
    twice = ["a {}"]
    parsed = Recipe.parse(
        SMALLEST
        | {
            "data": {
                "source": {
                    "kind": "combined",
                    "parts": [{"kind": "food101", "folder": "f", "templates": twice} for _ in range(2)],
                }
            }
        }
    )
    parsed.write(tmp_path / "w.yaml")
    assert Recipe.read(tmp_path / "w.yaml") == parsed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"logit_scale_bounds": [100, 0.01]}}, "logit_scale_bounds is [100, 0.01]: give the lower bound"),
        ({"optimizer": {"logit_scale_bounds": [0, 100]}}, "optimizer.logit_scale_bounds.0 is 0"),
        ({"optimizer": {"logit_scale_bounds": [1, 1e39]}}, "optimizer.logit_scale_bounds.1 is 1e+39"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate is 0"),
        ({"optimizer": {"learning_rate": 1e-50}}, "optimizer.learning_rate is 1e-50"),
        (
            {"optimizer": {"learning_rate": 0.1, "text_learning_rate": 2, "weight_decay": 0.5}},
            "optimizer.weight_decay is 0.5, and a learning rate 2, whose product is",
        ),
        ({"data": {"batch_size": 1}}, "data.batch_size is 1: a picture has to be told from others of its batch"),
        ({"data": {"batch_size": 10**30}}, f"data.batch_size is {10**30}: input should be less than or equal to 10"),
        ({"data": {"source": {"kind": "shapes", "examples": 10**30}}}, f"data.source.examples is {10**30}"),
        ({"data": {"workers": 10**9}}, "data.workers is 1000000000"),
        ({"training": {"steps": 10**8}}, "training.steps is 100000000: input should be less than or equal to 99999999"),
        ({"training": {"steps": True}}, "training.steps is True: give a number"),
        ({"optimizer": {"gradient_clip": True}}, "optimizer.gradient_clip is True: give a number"),
    ],
    ids=str,
)
def test_a_recipe_that_trains_nothing_or_cannot_be_counted_is_refused(change, message):
    with pytest.raises(ClipError) as caught:
        Recipe.parse(SMALLEST | change)
    assert message in str(caught.value)


def test_epochs_that_make_more_steps_than_checkpoints_have_names_for_are_refused():
    training = Recipe.parse(SMALLEST | {"training": {"epochs": 1000}}).training
    assert training.total_steps(99_999) == 99_999_000
    with pytest.raises(ClipError, match=r"makes 100,000,000 steps, and a run has at most 99,999,999; lower it"):
        training.total_steps(100_000)


def test_a_scale_may_be_held_in_its_place_and_plain_adam_decays_as_it_likes():
    optimizer = {"logit_scale_bounds": [20, 20], "name": "adam", "learning_rate": 2, "weight_decay": 2}
    assert Recipe.parse(SMALLEST | {"optimizer": optimizer}).optimizer.logit_scale_bounds == (20, 20)


@pytest.mark.parametrize(
    ("change", "caution"),
    [
        (
            {"schedule": {"warm_up_steps": 11}},
            "schedule.warm_up_steps is 11 and the run has 10 steps, so the learning rate does not reach "
            "optimizer.learning_rate.",
        ),
        (
            {"optimizer": {"frozen": ["image"], "image_learning_rate": 1e-4, "text_learning_rate": 1e-4}},
            "optimizer.image_learning_rate has no effect: optimizer.frozen names the image tower.",
        ),
        (
            {"optimizer": {"frozen": ["text", "image"]}},
            "optimizer.frozen names both towers, so that nothing but the scale of the logits is trained.",
        ),
        (
            {"loss": {"initial_logit_scale": 1000}},
            "loss.initial_logit_scale is 1000, and the first step moves it into optimizer.logit_scale_bounds, 0.01 to "
            "100.",
        ),
        ({"loss": {"initial_logit_bias": 0}}, "loss.initial_logit_bias has no effect: it belongs to the sigmoid loss."),
        (
            {"loss": {"kind": "sigmoid", "reduction": "sum"}},
            "loss.reduction has no effect: it belongs to the softmax loss.",
        ),
        (
            {"data": {"augmentation": {"scale": [0.5, 1]}}},
            "data.augmentation.scale has no effect: it belongs to data.augmentation.crop: resized.",
        ),
        (
            {"data": {"augmentation": {"interpolation": "bilinear"}}},
            "data.augmentation.interpolation has no effect: it belongs to a random or resized crop.",
        ),
        (
            {"evaluation": {"every_steps": 1, "batch_size": 1, "retrieval": {"kind": "shapes"}}},
            "evaluation.batch_size is 1, so that validation_loss is of pairs alone, with no others to tell from.",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_setting_that_has_no_effect_is_said(change, caution):
    assert cautions(Recipe.parse(SMALLEST | change), total=10) == [caution]


def test_batch_normalisation_sees_the_examples_of_one_process():
    recipe = Recipe.parse({"model": {"architecture": "RN50"}, "training": {"steps": 10}, "data": {"batch_size": 64}})
    assert cautions(recipe, total=10) == []
    assert cautions(recipe, total=10, processes=4) == [
        "The batch normalisation of the image tower looks at the 16 examples of one process rather than at all 64, so "
        "the numbers are not those of one process."
    ]
    assert cautions(Recipe.parse(SMALLEST), total=10, processes=4) == []


def test_the_shipped_recipes_ask_for_no_caution():
    recipes = [Recipe.read(path) for path in SHIPPED.parent.rglob("*.yaml")]
    assert len(recipes) > 5
    assert [cautions(recipe, 10**6) for recipe in recipes] == [[]] * len(recipes)
    at_their_bounds = {"schedule": {"warm_up_steps": 10}, "loss": {"initial_logit_scale": 100}}
    assert cautions(Recipe.parse(SMALLEST | at_their_bounds), total=10) == []


def test_a_recipe_is_found_by_its_name_unless_a_file_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("shapes") == SHIPPED
    assert recipe_file("clip/vit-b-32") == SHIPPED.parent / "clip" / "vit-b-32.yaml"
    Path("shapes").mkdir()
    assert recipe_file("shapes") == SHIPPED
    Path("shapes").rmdir()
    Path("shapes").touch()
    assert recipe_file("shapes") == Path("shapes")
    for name in ("shape", "shapes.yaml", "clip", "../configs/shapes"):
        with pytest.raises(ClipError) as caught:
            recipe_file(name)
        assert str(caught.value) == (
            f"There is no recipe {name}; give a YAML file or the name of an installed one: "
            f"{', '.join(installed_recipes())}."
        )


def test_exponents_are_numbers_with_and_without_a_point(tmp_path):
    for text, value in {"1e-5": 1e-5, "1E-05": 1e-5, "1.5e+3": 1500, ".5e1": 5, "-2e4": -2e4, "1e5m": "1e5m"}.items():
        assert plain_yaml.load(f"key: {text}", "it") == {"key": value}
    recipe = Recipe.parse(SMALLEST | {"data": {"source": {"kind": "paired", "folder": "1e5"}}})
    recipe.write(tmp_path / "w.yaml")
    assert Recipe.read(tmp_path / "w.yaml") == recipe
