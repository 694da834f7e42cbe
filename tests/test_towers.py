"""All that is asked of a tower, for every tower of the core in every backend."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import backends
import converters
from clip_core.architecture import Architecture, infer
from clip_core.initialize import initialize
from clip_core.naming import parameters
from clip_core.similarity import normalize
from clip_core.training.trainable import with_initial_scale
from converters import ModelFile
from tests import tolerances
from tests.gradients import beyond, framework_gradients, loss_of, weights_of
from tests.models import (
    logits_of,
    reference_layers,
    reference_stages,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)
from tests.requested import FRAMEWORKS
from tests.tolerances import first_beyond
from tests.towers import EXAMPLES, WITHOUT_EFFECT
from tests.training.steps import LOSS_BOUND, RATE, recipe
from tests.weights import own_shapes, same, trained

BATCH = 8


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def architecture(request) -> Architecture:
    return request.param


def test_descriptions_survive_json(architecture):
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_the_table_tells_the_architecture(architecture):
    found = infer({parameter.name: parameter.shape for parameter in parameters(architecture)})
    told = {
        place: replace(getattr(found, place), **{name: getattr(tower, name) for name in tower.untold})
        for place, tower in architecture.towers.items()
    }
    assert replace(found, **told) == architecture


def test_names_and_shapes(backend, architecture):
    model = backend.CLIP(architecture, sample_weights(architecture), device="cpu")
    transposed = model.backend == "paddle"  # Paddle multiplies by [in, out]
    assert own_shapes(model) == {
        parameter.name: parameter.shape[::-1] if transposed and parameter.kind == "linear" else parameter.shape
        for parameter in parameters(architecture)
    }
    if backend.name in FRAMEWORKS:
        assert trained(model) == {parameter.name for parameter in parameters(architecture) if parameter.trainable}


def test_export_gives_back_what_was_loaded(backend, architecture):
    one, other = (sample_weights(architecture, seed) for seed in (0, 1))
    model = backend.CLIP(architecture, one, device="cpu")
    assert same(model.export(), one)
    model.load(other)
    assert same(model.export(), other)


def test_embeddings_and_logits_are_those_of_the_reference(backend, architecture):
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    model = backend.CLIP(architecture, weights, device="cpu")
    expected = reference_stages(architecture)
    assert tolerances.beyond(stages_of(model, pixels, tokens), expected) == {}
    for stage in ("image_embedding", "text_embedding"):
        first, second = expected[stage][:2]
        assert tolerances.difference(first, second) > 500 * tolerances.CONTRACT[stage].bound, "inputs must matter"
    per_image, per_text = logits_of(model, pixels, tokens)
    assert np.array_equal(per_text, per_image.T)


def test_layers_are_those_of_the_reference(backend, architecture):
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    model = backend.CLIP(architecture, weights, device="cpu")
    found, expected = model.layers(pixels, tokens), reference_layers(architecture)
    assert list(found) == list(expected)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert first_beyond(found, expected) is None
    assert np.array_equal(found["image_features"], model.embed_image(pixels))
    # Where nobody looks, prefixes that texts have in common are computed once.
    assert first_beyond(expected | {"text_features": model.embed_text(tokens)}, expected) is None


def test_a_batch_of_none_has_features_of_full_width(backend, architecture):
    model = backend.CLIP(architecture, sample_weights(architecture), device="cpu")
    empty = (0, architecture.embed_dim)
    assert model.embed_image(sample_pixels(architecture)[:0]).shape == empty
    assert model.embed_text(sample_tokens(architecture)[:0]).shape == empty


def test_every_changed_weight_is_noticed(backend, architecture):
    """The twin of the two tests before: every seventh number of each distinct parameter, moved by a tenth.

    Blocks run the same code, so the last one stands for all. A single number may belong to a channel that a ReLU keeps
    at zero.
    """
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    model, expected = backend.CLIP(architecture, weights, device="cpu"), reference_stages(architecture)
    stages = {
        "image": ("image_embedding", lambda: normalize(model.embed_image(pixels))),
        "text": ("text_embedding", lambda: normalize(model.embed_text(tokens))),
        "joint": ("logits", lambda: logits_of(model, pixels, tokens)[0]),
    }
    distinct = {
        re.sub(r"(?<=layer)\d|(?<=\.)\d+(?=\.)", "N", parameter.name): parameter
        for parameter in parameters(architecture)
    }
    with_effect = [each for each in distinct.values() if not each.name.endswith(WITHOUT_EFFECT)]
    assert {each.tower for each in with_effect} == stages.keys(), "each tower and the joint space must have one"
    for parameter in distinct.values():
        changed = weights[parameter.name].copy()
        changed.reshape(-1)[::-7] += 1 if parameter.kind == "counter" else 0.1
        model.load(weights | {parameter.name: changed})
        stage, compute = stages[parameter.tower]
        noticed = tolerances.beyond({stage: compute()}, {stage: expected[stage]})
        assert bool(noticed) != parameter.name.endswith(WITHOUT_EFFECT), parameter


@pytest.mark.parametrize("name", FRAMEWORKS[:1])  # of the others, the next test compares all numbers
def test_gradients_are_those_of_the_reference(name, architecture):
    """Along one random direction in each parameter, by central differences in float64."""
    weights, step = weights_of(architecture), 1e-6  # a longer one crosses kinks of ReLU
    gradients = framework_gradients(name, architecture)
    trainable = [each.name for each in parameters(architecture) if each.trainable]
    assert sorted(gradients) == sorted(trainable)
    least = tolerances.SMALLEST_GRADIENT * max(np.linalg.norm(gradient) for gradient in gradients.values())
    generator = np.random.default_rng(0)
    for parameter in trainable:
        # Mostly along the gradient itself, so that the expected slope is not lost in rounding.
        direction = gradients[parameter] / max(np.linalg.norm(gradients[parameter]), least)
        noise = generator.standard_normal(direction.shape)
        direction = direction + noise / np.linalg.norm(noise)
        above, below = (
            loss_of(
                architecture, weights | {parameter: weights[parameter].astype(np.float64) + sign * step * direction}
            )
            for sign in (1, -1)
        )
        slope = float((gradients[parameter] * direction).sum())
        scale = max(float(np.linalg.norm(gradients[parameter])), least)
        assert abs((above - below) / (2 * step) - slope) <= 1e-3 * scale, parameter


def test_gradients_agree(framework, architecture):
    """But for those that are nothing but rounding."""
    expected = framework_gradients(FRAMEWORKS[0], architecture)
    found = beyond(framework_gradients(framework.name, architecture), expected)
    assert [name for name in found if not name.endswith(WITHOUT_EFFECT)] == []


def trainer_for(name: str, architecture: Architecture, **training: object):
    what = recipe({"training": training})
    weights = with_initial_scale(initialize(architecture, 0), what.loss)
    return backends.get(name).Trainer(backends.get(name).CLIP(architecture, weights, device="cpu"), what)


def test_training_takes_the_same_steps_and_recomputed_blocks_change_no_bit(framework, architecture):
    first, kept, recomputed = (
        trainer_for(name, architecture, gradient_checkpointing=recompute)
        for name, recompute in ((FRAMEWORKS[0], False), (framework.name, False), (framework.name, True))
    )
    for seed in range(3):
        pixels, tokens = sample_pixels(architecture, BATCH, seed), sample_tokens(architecture, BATCH, seed)
        expected, found = (trainer.step(pixels, tokens, RATE) for trainer in (first, kept))
        assert found.loss == pytest.approx(expected.loss, rel=LOSS_BOUND)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=LOSS_BOUND)
        assert recomputed.step(pixels, tokens, RATE) == found
    state = recomputed.state()
    for name, array in kept.state().items():  # running statistics among them
        assert np.array_equal(state[name], array), name
    assert (state["weights/logit_scale"] != initialize(architecture, 0)["logit_scale"]).all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".h5", ".pdparams"])
def test_files_give_back_what_was_written(architecture, suffix, tmp_path):
    weights = sample_weights(architecture)
    converters.write(ModelFile(weights, architecture), tmp_path / f"model{suffix}")
    found = converters.read(tmp_path / f"model{suffix}")
    assert same(found.weights, weights)
    assert found.architecture == architecture
