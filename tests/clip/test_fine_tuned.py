"""Weights saved by a framework's own function: what they lost is taken from the model that they were trained from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip
import converters
from clip_core.errors import CheckpointError, TextError
from converters import ModelFile
from tests.clip.running import assert_refused
from tests.clip.small import ARCHITECTURE
from tests.requested import BACKENDS

ORIGINAL = replace(
    ARCHITECTURE,
    image=replace(ARCHITECTURE.image, heads=4),
    text=replace(ARCHITECTURE.text, heads=8),
).with_activation("gelu")


@pytest.fixture(scope="session")
def original(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "original.safetensors"
    converters.write(ModelFile(checkpoint.weights, ORIGINAL, vocabulary=checkpoint.vocabulary), path)
    return path


def save(backend, model, folder):
    """As one saves a model of that framework after training it."""
    if backend == "torch":
        import torch

        torch.save(model.state_dict(), folder / "tuned.pt")
        return folder / "tuned.pt"
    if backend == "paddle":
        import paddle

        paddle.save(model.state_dict(), str(folder / "tuned.pdparams"))
        return folder / "tuned.pdparams"
    import nnabla as nn

    nn.save_parameters(str(folder / "tuned.h5"))
    return folder / "tuned.h5"


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "numpy"])
def test_weights_that_a_framework_saved(backend, original, checkpoint, pixels, run, tmp_path):
    model, _ = clip.load(original, device=None if backend == "nnabla" else "cpu", backend=backend)
    tuned = save(backend, model, tmp_path)
    tokens = clip.tokenize("two blue circles")
    expected = model.embed_image(pixels), model.embed_text(np.asarray(tokens))

    converted = run("convert", tuned, tmp_path / "whole.safetensors", "--like", original, "--json").json
    assert (converted["max_abs_difference"], converted["assumed"]) == (0, [])
    found = converters.read(tmp_path / "whole.safetensors")
    assert (found.architecture, found.vocabulary) == (ORIGINAL, checkpoint.vocabulary)
    for name, array in checkpoint.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)

    again, _ = clip.load(tuned, device=None if backend == "nnabla" else "cpu", like=original)
    assert again.backend == backend
    np.testing.assert_array_equal(np.asarray(clip.tokenize("two blue circles")), np.asarray(tokens))
    np.testing.assert_array_equal(again.embed_image(pixels), expected[0])
    np.testing.assert_array_equal(again.embed_text(np.asarray(tokens)), expected[1])


def test_a_file_that_was_converted_without_its_original(original, checkpoint, tmp_path):
    """Its manifest tells the architecture, and the vocabulary is still to be had."""
    weights = {name: 2 * array for name, array in checkpoint.weights.items()}
    converters.write(ModelFile(weights, ORIGINAL), tmp_path / "tuned.h5")
    found = converters.read(tmp_path / "tuned.h5", like=original)
    assert found.vocabulary == checkpoint.vocabulary
    np.testing.assert_array_equal(found.weights["visual.proj"], weights["visual.proj"])
    converters.write(ModelFile(weights, ARCHITECTURE), tmp_path / "other.h5")
    with pytest.raises(CheckpointError, match=r"image\.heads is 1 by its manifest, but 4 by the file it"):
        converters.read(tmp_path / "other.h5", like=original)


def test_an_original_of_other_shapes_is_refused(original, run, tmp_path):
    assert_refused(
        run("convert", original, tmp_path / "a.h5", "--like", "shapes"),
        "image.heads is 4 by its manifest, but 2 by the file it should be like",
    )
    save_file(converters.read(original).weights, tmp_path / "tuned.safetensors")  # without the manifest
    assert_refused(
        run("convert", tmp_path / "tuned.safetensors", tmp_path / "a.h5", "--like", "shapes"),
        "tuned.safetensors (like ",
        "does not fit shapes: ",
        "token_embedding.weight has shape (534, 128), expected (770, 128)",
    )
    assert not (tmp_path / "a.h5").exists()


def test_the_remedy_for_a_vocabulary_that_is_missing(original, checkpoint, tmp_path, run):
    converters.write(ModelFile(checkpoint.weights, ORIGINAL), tmp_path / "tuned.h5")
    with pytest.raises(TextError, match="clip convert FILE TARGET --like ORIGINAL takes it from the model"):
        clip.api.open_model(tmp_path / "tuned.h5", backend="numpy").model.tokenize("a red circle")
    run("convert", tmp_path / "tuned.h5", tmp_path / "whole.h5", "--like", original)
    loaded = clip.api.open_model(tmp_path / "whole.h5", backend="numpy")
    assert loaded.model.tokenize("a red circle").argmax() == 4
