"""The data section of a recipe: the keys of its source, and what becomes of them."""

from __future__ import annotations

import pytest

from clip_core.data.families import SOURCES
from clip_core.data.shapes import TrainingSet
from clip_core.errors import ClipError
from clip_core.training.recipe import Recipe
from tests.data.numbered import contents, write_picture


def recipe(**data) -> Recipe:
    return Recipe.parse({"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": data}, "r.yaml")


def test_defaults_of_the_source_are_filled_in():
    data = recipe(source="table", file="t.tsv", batch_size=7).model_dump(mode="json")["data"]
    augmentation = data.pop("augmentation")
    assert augmentation["crop"] == "centre"
    assert data == {
        "source": "table",
        "batch_size": 7,
        "workers": 0,
        "fault_share": 0.01,
        "file": "t.tsv",
        "images": None,
        "image_column": "filepath",
        "caption_column": "title",
        "separator": "\t",
    }


def test_without_a_source_the_shapes_are_drawn():
    assert recipe().data.open(seed=9) == TrainingSet(9, 1_000_000)
    assert recipe(examples=12).data.open(seed=9) == TrainingSet(9, 12)


def test_a_recipe_opens_its_data(tmp_path):
    write_picture(tmp_path / "4.png", 4)
    (tmp_path / "t.csv").write_text("IMG,Q\n4.png,four\n")
    read = recipe(source="table", file=str(tmp_path / "t.csv"), image_column="IMG", caption_column="Q", separator=",")
    read.write(tmp_path / "r.yaml")
    assert Recipe.read(tmp_path / "r.yaml") == read
    assert contents(Recipe.read(tmp_path / "r.yaml").data.open(0)) == [(4, ("four",))]


def test_every_source_is_a_choice():
    for name in SOURCES:
        with pytest.raises(ClipError, match=r"there is no key data\.no_such_key; did you mean "):
            recipe(source=name, no_such_key=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "table"}, "the key data.file is missing"),
        ({"source": "table", "file": "t", "separator": ", "}, "data.separator is ', '"),
        ({"source": "table", "file": "t", "examples": 3}, "there is no key data.examples"),
        (
            {"source": "paired", "folder": "f", "fault_shar": 0.1},
            "there is no key data.fault_shar; did you mean data.fault_share?",
        ),
        ({"source": "paired", "folder": "f", "fault_share": 1}, "data.fault_share is 1: input should be less than 1"),
        ({"source": "paired", "folder": 3}, "data.folder is 3: input should be a valid string"),
        ({"source": "tabel"}, "data.source is 'tabel': input should be 'shapes', 'table'"),
        ({"source": ["table"]}, "data.source is ['table']"),
        ({"examples": 0}, "data.examples is 0"),
        ("coco", "data is 'coco'"),
    ],
)
def test_a_fault_names_the_key(data, message):
    with pytest.raises(ClipError) as caught:
        Recipe.parse({"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": data}, "r.yaml")
    assert str(caught.value).startswith("r.yaml: ")
    assert message in str(caught.value)
