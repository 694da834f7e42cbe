"""The recipes that come along: listed with a line each, and printed."""

from __future__ import annotations

from clip_core.training.recipe import Recipe, installed_recipes
from tests.clip.running import assert_refused


def test_recipes_are_listed_by_name(run):
    rows = run("recipes", "--json").json
    assert [row["name"] for row in rows] == list(installed_recipes())
    what = "Train Mixer-B/32 from nothing on LAION-COCO, as Mixer CLIP did on 8 A100 GPUs."
    assert {"name": "clip/mixer-b-32", "what": what} in rows
    shown = run("recipes").out.splitlines()[1:]
    assert [line.split(maxsplit=1)[0] for line in shown] == list(installed_recipes())


def test_a_recipe_is_printed(run, tmp_path):
    path = installed_recipes()["clip/vit-b-32"]
    printed = run("recipes", "clip/vit-b-32").out
    assert printed == path.read_text()
    (tmp_path / "printed.yaml").write_text(printed)
    assert run("recipes", tmp_path / "printed.yaml", "--json").json == Recipe.read(path).model_dump(mode="json")
    assert_refused(run("recipes", "vit-b-32"), "There is no recipe vit-b-32; give a YAML file or the name of")
