"""Files for another resolution: what is written, what is loaded, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip
from clip_core.errors import CheckpointError, ClipError
from clip_core.resize import resize_positions
from converters import convert, read, write

POSITIONS = "visual.positional_embedding"


@pytest.fixture
def source(vit, tmp_path):
    write(vit, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_a_file_for_another_resolution_says_so_and_is_read(source, vit, tmp_path):
    convert(source, tmp_path / "b.pdparams", layout="passl", resolution=48)
    found = read(tmp_path / "b.pdparams")
    assert (vit.architecture.image.resolution, found.architecture.image.resolution) == (32, 48)
    changed = {name for name, array in vit.weights.items() if not np.array_equal(found.weights[name], array)}
    assert changed == {POSITIONS}
    assert np.array_equal(found.weights[POSITIONS], resize_positions(vit.weights[POSITIONS], 4, 6, leading=1))


def test_the_resolution_that_a_model_has_changes_nothing(source, vit, tmp_path, assert_equal_weights):
    convert(source, tmp_path / "b.h5", resolution=32)
    assert_equal_weights(read(tmp_path / "b.h5").weights, vit.weights)


@pytest.mark.parametrize(
    ("resolution", "what"),
    [
        (50, "The image resolution 50 is not a multiple of its patch (8)."),
        (0, "The architecture's image.resolution is 0; it must be a whole number above 0."),
        (-8, "The architecture's image.resolution is -8; it must be a whole number above 0."),
        (80_000, "The resolution 80000 is too large; give at most 4096."),
        ("48", "The architecture's image.resolution is '48'; it must be a whole number above 0."),
    ],
)
def test_what_cannot_be_is_refused(resolution, what, source, tmp_path):
    with pytest.raises(ClipError, match=f"^{re.escape(what)}$"):
        convert(source, tmp_path / "b.h5", resolution=resolution)
    with pytest.raises(ClipError, match=f"^{re.escape(what)}$"):
        clip.load(source, backend="numpy", resolution=resolution)
    assert list(tmp_path.iterdir()) == [source]


def test_a_tower_that_computes_at_one_resolution_says_why(source, vit, tmp_path, monkeypatch):
    def refuse(self):
        raise ClipError("A tower of this kind has one resolution.")

    monkeypatch.setattr(type(vit.architecture.image), "position_grids", refuse)
    with pytest.raises(ClipError, match=r"^A tower of this kind has one resolution\.$"):
        convert(source, tmp_path / "b.h5", resolution=48)
    assert list(tmp_path.iterdir()) == [source]


def test_weights_that_do_not_fit_are_refused_before_they_are_interpolated(vit, tmp_path):
    del vit.weights["visual.ln_pre.bias"]
    save_file(vit.weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"visual\.ln_pre\.bias is missing"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.h5", activation="quick_gelu", resolution=48)


def test_a_loaded_model_takes_pictures_of_that_resolution():
    model, preprocess = clip.load("shapes", backend="numpy", resolution=np.int64(96))
    assert type(model.architecture.image.resolution) is int, "it goes into JSON"
    assert model.architecture.image.resolution == preprocess.resolution == 96
    assert np.isfinite(model.embed_image(np.zeros((1, 3, 96, 96), np.float32))).all()
