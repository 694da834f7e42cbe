"""The data section of a recipe: the keys of its source, and what becomes of them."""

from __future__ import annotations

import pytest

from clip_core.data.families import FAMILIES
from clip_core.data.shapes import TrainingSet
from clip_core.errors import ClipError
from clip_core.training.recipe import Recipe
from tests.data.numbered import contents, write_picture


def recipe(**data) -> Recipe:
    return Recipe.parse({"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": data}, "r.yaml")


def test_defaults_of_the_source_are_filled_in():
    data = recipe(source={"kind": "table", "file": "t.tsv"}, batch_size=7).model_dump(mode="json")["data"]
    augmentation = data.pop("augmentation")
    assert augmentation["crop"] == "centre"
    assert data == {
        "source": {
            "kind": "table",
            "file": "t.tsv",
            "images": None,
            "image_column": "filepath",
            "caption_column": "title",
            "separator": "\t",
        },
        "batch_size": 7,
        "workers": 0,
        "fault_share": 0.01,
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (
            {"source": "table", "file": "t.tsv", "batch_size": 7},
            {"source": {"kind": "table", "file": "t.tsv"}, "batch_size": 7},
        ),
        ({"examples": 12, "workers": 1}, {"source": {"kind": "shapes", "examples": 12}, "workers": 1}),
        (
            {"source": "combined", "parts": [{"source": "paired", "folder": f, "weight": w} for f, w in ("a3", "b1")]},
            {
                "source": {
                    "kind": "combined",
                    "parts": [{"kind": "paired", "folder": "a"}, {"kind": "paired", "folder": "b"}],
                    "weights": [3, 1],
                }
            },
        ),
    ],
)
def test_recipes_of_before_have_the_keys_of_the_source_beside_the_others(before, now):
    assert recipe(**before) == recipe(**now)
    assert recipe(**before).data != recipe().data


def test_without_a_source_the_shapes_are_drawn():
    assert recipe().data.source.open(seed=9) == TrainingSet(9, 1_000_000)
    assert recipe(source={"kind": "shapes", "examples": 12}).data.source.open(seed=9) == TrainingSet(9, 12)


def test_a_recipe_opens_its_data(tmp_path):
    write_picture(tmp_path / "4.png", 4)
    (tmp_path / "t.csv").write_text("IMG,Q\n4.png,four\n")
    columns = {"image_column": "IMG", "caption_column": "Q", "separator": ","}
    read = recipe(source={"kind": "table", "file": str(tmp_path / "t.csv")} | columns)
    read.write(tmp_path / "r.yaml")
    assert Recipe.read(tmp_path / "r.yaml") == read
    assert contents(Recipe.read(tmp_path / "r.yaml").data.source.open(0)) == [(4, ("four",))]


def test_every_source_is_a_choice():
    for kind in FAMILIES:
        with pytest.raises(ClipError, match=r"there is no key data\.source\.no_such_key; did you mean data\.source\."):
            recipe(source={"kind": kind, "no_such_key": 1})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": {"kind": "table"}}, "the key data.source.file is missing"),
        ({"source": {"kind": "table", "file": "t", "separator": ", "}}, "data.source.separator is ', '"),
        ({"source": {"kind": "table", "file": "t", "examples": 3}}, "there is no key data.source.examples"),
        ({"source": "table", "file": "t", "examples": 3}, "no key data.examples; did you mean data.source.examples or"),
        (
            {"source": "paired", "folder": "f", "fault_shar": 0.1},
            "there is no key data.fault_shar; did you mean data.fault_share?",
        ),
        ({"fault_share": 1}, "data.fault_share is 1: input should be less than 1"),
        ({"source": {"kind": "paired", "folder": 3}}, "data.source.folder is 3: input should be a valid string"),
        ({"source": {"kind": "webdataset", "shards": 3}}, "data.source.shards is 3: input should be a valid string"),
        (
            {"source": {"kind": "tabel"}},
            "data.source.kind is 'tabel'; choose one of shapes, table, paired, food101, coco,",
        ),
        ({"source": {"kind": ["table"]}}, "data.source.kind is ['table']; choose one of shapes"),
        ({"source": {"examples": 3}}, "the key data.source.kind is missing"),
        ({"source": "tabel"}, "data.source.kind is 'tabel'; choose one of shapes, table"),
        ({"source": ["table"]}, "data.source is ['table']"),
        ({"examples": 0}, "data.source.examples is 0"),
        ("coco", "data is 'coco'"),
    ],
)
def test_a_fault_names_the_key(data, message):
    with pytest.raises(ClipError) as caught:
        Recipe.parse({"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": data}, "r.yaml")
    assert str(caught.value).startswith("r.yaml: ")
    assert message in str(caught.value)
