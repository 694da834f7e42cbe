"""Weights that do not say all that their model needs, as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import clip
import converters
from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.errors import AssumptionWarning
from clip_core.initialize import initialize
from clip_core.models import ARCHITECTURES
from clip_core.naming import parameters
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters.knowledge import question, untold
from tests.clip.running import assert_refused, ended, process
from tests.models import sample_pixels

# Of OpenAI's kind as far as tensors tell; its owner computes with the exact GELU.
GELU = Architecture(8, VisionTransformer(16, 8, 64, 1, 1), TextTransformer(8, 49408, 64, 1, 1)).with_activation("gelu")
ASSUMED = "activation quick_gelu, heads 64 wide, epsilon 1e-05, end of text 49407, OpenAI's pixels"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "tuned.safetensors"
    save_file(initialize(GELU, 0), path)
    return path


def test_loading_warns_of_what_it_assumes(bare):
    with pytest.warns(
        AssumptionWarning, match=f"tuned.safetensors does not say .* for its towers: {ASSUMED}"
    ) as caught:
        clip.load(bare, backend="numpy")
    assert Path(caught[0].filename) == Path(clip.__file__).with_name("api.py")


def test_what_is_stated_is_computed(bare):
    model, _ = clip.load(bare, backend="numpy", activation="gelu")
    pixels = sample_pixels(GELU)
    expected = Reference(GELU, initialize(GELU, 0)).embed_image(pixels)
    np.testing.assert_array_equal(model.embed_image(pixels), expected)
    other, _ = clip.load(bare, backend="numpy", activation="quick_gelu")
    assert np.abs(other.embed_image(pixels) - expected).max() > 1e-4


@pytest.fixture(scope="module")
def like_open_clips(tmp_path_factory) -> Path:
    """Weights of the shapes that one architecture has which is known by name, and that computes with the exact GELU."""
    path = tmp_path_factory.mktemp("named") / "tuned.safetensors"
    zeros = {
        parameter.name: np.zeros(parameter.shape, np.float16)
        for parameter in parameters(ARCHITECTURES["ViT-S-32-alt"].architecture)
    }
    save_file(zeros, path)
    return path


def test_a_name_settles_what_a_file_does_not_say(like_open_clips, run, tmp_path):
    name = "ViT-S-32-alt"
    found = run("inspect", like_open_clips, "--json").json
    assert found["same_shapes"] == [f"{name} (open_clip)"]
    assert "activation quick_gelu" in ", ".join(found["assumed"])
    text = run("inspect", like_open_clips).out
    assert re.search(r"^zeros +\d{3}: .*, .*, [\w.]+ and more$", text, re.MULTILINE)
    assert f"{name} (open_clip): --like NAME" in text
    with pytest.warns(AssumptionWarning, match=rf"are those of {name} \(open_clip\); .* --like NAME"):
        clip.load(like_open_clips, backend="numpy")

    report = run("convert", like_open_clips, tmp_path / "whole.safetensors", "--like", name, "--json").json
    assert report["assumed"] == []
    whole = converters.read(tmp_path / "whole.safetensors")
    assert (whole.architecture, whole.vocabulary) == (ARCHITECTURES[name].architecture, None)
    model, _ = clip.load(like_open_clips, backend="numpy", like=name)  # warns of nothing
    assert model.architecture == whole.architecture
    result = run("inspect", like_open_clips, "--like", name, "--json").json
    assert (result["model"], result["assumed"], result["same_shapes"]) == (name, [], [])


def test_what_has_to_be_stated_can_be_stated_by_a_name():
    huge = ARCHITECTURES["ViT-H-14"].architecture
    asked = question(huge, untold(huge), own_vocabulary=False)
    assert asked is not None
    assert (
        "the image tower is 1280 wide; these shapes are those of ViT-H-14 (open_clip) and ViT-H-14-quickgelu "
        "(open_clip); name the right one with clip convert FILE TARGET --like NAME (in Python like='NAME'), or state it"
    ) in asked


def test_a_name_of_other_shapes_is_refused(like_open_clips, run, tmp_path):
    refused = run("convert", like_open_clips, tmp_path / "a.pt", "--like", "ViT-S-16-alt")
    assert_refused(refused, "tuned.safetensors (like ViT-S-16-alt) does not fit", "visual.conv1.weight has shape")
    assert not (tmp_path / "a.pt").exists()


def test_scoring_takes_a_statement(bare, run):
    """The model has nothing but its own activation to be right with, so a wrong one is refused by its name."""
    for command in (("classify", "x.png", "--labels", "red"), ("evaluate", "shapes")):
        refused = run(*command, "--model", bare, "--activation", "swish")
        assert_refused(refused, "There is no activation 'swish'")
        assert_refused(run(*command, "--model", bare, "--heads", "x"), "--heads is 'x'")
        assert_refused(run(*command, "--model", bare, "--like", "Mixer-B/32"), "(like Mixer-B/32) does not fit")


def test_commands_say_what_is_assumed(bare, tmp_path):
    compared = ended(process("parity", bare, "--backends", "numpy"))
    assert compared.code == 0
    assert compared.out.endswith(f"parity: AGREE, assumed: {ASSUMED}\n")
    assert compared.err.startswith(f"clip: warning: {bare} does not say all that its model needs")
    assert (
        "state it with clip convert FILE TARGET --activation quick_gelu|gelu|gelu_tanh --heads IMAGE,TEXT (in"
        in compared.err
    )
    assert compared.err.endswith("or put open_clip_config.json or config.json of the model beside the file.\n")
    assert compared.err.count("\n") == 1

    stated = ended(process("convert", bare, tmp_path / "a.pt", "--activation", "gelu", "--heads", "1,1", "--json")).json
    assert stated["assumed"] == ["epsilon 1e-05", "end of text 49407", "OpenAI's pixels"]
    assert converters.read(tmp_path / "a.pt").architecture == GELU


def test_inspection_says_what_is_assumed(bare, run):
    assert ", ".join(run("inspect", bare, "--json").json["assumed"]) == ASSUMED
    assert "assumed         heads 64 wide," in run("inspect", bare, "--activation", "gelu").out


def test_inspection_of_a_statement_against_a_configuration_says_that(bare, run, tmp_path):
    converters.convert(bare, tmp_path / "model", layout="open_clip", activation="gelu", heads=(1, 1))
    save_file(initialize(GELU, 0), tmp_path / "model" / "open_clip_model.safetensors")
    result = run("inspect", tmp_path / "model", "--activation", "quick_gelu")
    assert result.code == 1
    assert "architecture    not known, for the first of the faults" in result.out
    assert "image.activation is 'quick_gelu' by what was stated, but 'gelu' by open_clip_config.json" in result.out


@pytest.mark.parametrize("heads", ["2", "1,2,3", "a,b", "-1,2"])
def test_heads_are_two_numbers(heads, bare, run):
    assert_refused(run("inspect", bare, f"--heads={heads}"), f"--heads is {heads!r}; give two numbers")


def test_training_from_weights_takes_the_word_of_the_recipe(bare, run, tmp_path):
    """A recipe says the activation, so that it is the user's word; a file that says another is refused by the field."""
    recipe = {"model": {"architecture": GELU.to_dict()}, "training": {"steps": 1}, "data": {"batch_size": 4}}
    plain = json.loads(json.dumps(recipe))  # YAML has no tuples
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain))
    result = run("train", "-c", tmp_path / "recipe.yaml", "--load", bare, "--output", tmp_path / "run")
    assert result.code == 0, result.err
    assert (
        f"tuned.safetensors does not say all that its model needs; taken from the recipe: {ASSUMED}".replace(
            "quick_gelu", "gelu"
        )
        in result.err
    )
    assert converters.read(tmp_path / "run" / "model.safetensors").architecture == GELU

    quick = GELU.with_activation("quick_gelu")
    converters.write(converters.ModelFile(initialize(quick, 0), quick), tmp_path / "quick.safetensors")
    refused = run("train", "-c", tmp_path / "recipe.yaml", "--load", tmp_path / "quick.safetensors", "--output", "x")
    assert_refused(refused, "image.activation is 'quick_gelu' by its manifest, but 'gelu' by the recipe")


def test_what_a_larger_module_has_beside_the_model_is_said(tmp_path):
    weights = initialize(GELU, 0)
    student = {f"student.{name}": array for name, array in weights.items() if name != "visual.conv1.weight"}
    whole = {f"teacher.{name}": array for name, array in weights.items()} | student
    save_file(whole, tmp_path / "distilled.safetensors")
    said = rf"below 'teacher.' were taken, and {len(student)} others left out, such as student\."
    with pytest.warns(UserWarning, match=said):
        model, _ = clip.load(tmp_path / "distilled.safetensors", backend="numpy", activation="gelu")
    assert model.export().keys() == weights.keys()
