"""Gradients beyond what tests/test_towers.py compares: unusual numbers, twins, and the statistics of a batch."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import convolve
from clip_core.naming import parameters
from tests import tolerances
from tests.gradients import PAIRS, beyond, framework_gradients, gradients_of, weights_of
from tests.models import RESNET, UNUSUAL, VIT, sample_pixels, sample_tokens, sample_weights
from tests.requested import FRAMEWORKS, load_backend


def test_gradients_agree_with_other_numbers_in_each_tower(framework):
    expected = framework_gradients(FRAMEWORKS[0], UNUSUAL)
    assert beyond(framework_gradients(framework.name, UNUSUAL), expected) == {}


def test_a_wrong_gradient_is_noticed(framework):
    """The twin: with one matrix transposed, gradients differ."""
    name = "visual.transformer.resblocks.0.attn.out_proj.weight"
    model = framework.CLIP(VIT, weights_of(VIT) | {name: weights_of(VIT)[name].T}, device="cpu")
    found = gradients_of(model, sample_pixels(VIT, PAIRS), sample_tokens(VIT, PAIRS))
    assert name in beyond(found, framework_gradients(framework.CLIP.backend, VIT))


def test_the_smallest_gradient_is_small(framework):
    """The bias of the attention pool's keys moves all scores of a query alike, so its gradient is rounding alone."""
    gradients = framework_gradients(framework.CLIP.backend, RESNET)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    small = {
        name for name, gradient in gradients.items() if np.abs(gradient).max() < tolerances.SMALLEST_GRADIENT * largest
    }
    assert small == {"visual.attnpool.k_proj.bias"}


def test_training_mode_agrees(framework):
    """With the statistics of the batch: the same gradients, and the same running statistics afterwards."""
    first = FRAMEWORKS[0]
    gradients, moved = [], []
    for name in (first, framework.CLIP.backend):
        model = load_backend(name).CLIP(RESNET, weights_of(RESNET), device="cpu")
        model.train()
        gradients.append(gradients_of(model, sample_pixels(RESNET, PAIRS), sample_tokens(RESNET, PAIRS)))
        moved.append(model.export())
    assert beyond(gradients[1], gradients[0]) == {}
    for parameter in parameters(RESNET):
        if not parameter.trainable:
            expected, before = moved[0][parameter.name], weights_of(RESNET)[parameter.name]
            assert np.abs(expected - before).max() > 1e-4
            assert tolerances.difference(moved[1][parameter.name], expected) <= 1e-5 * np.abs(expected).max()


def test_running_statistics_follow_their_definition(framework):
    """Nine tenths of the old value and one tenth of the batch's mean, or of its variance with n - 1 below."""
    weights, pixels = sample_weights(RESNET), sample_pixels(RESNET)
    model = framework.CLIP(RESNET, weights, device="cpu")
    model.train()
    gradients_of(model, pixels, sample_tokens(RESNET, len(pixels)))  # two passes: one for the logits' values
    features = convolve(pixels, weights["visual.conv1.weight"], stride=2).transpose(1, 0, 2, 3).reshape(4, -1)
    for name, batch in (("mean", features.mean(axis=1)), ("var", features.var(axis=1, ddof=1))):
        name = f"visual.bn1.running_{name}"
        assert np.allclose(model.export()[name], 0.81 * weights[name] + 0.19 * batch, rtol=1e-5, atol=1e-6)
    assert model.export()["visual.bn1.num_batches_tracked"] == 7 + 2
