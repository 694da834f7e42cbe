"""Positions for another resolution, against PyTorch's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_core.resize import at_resolution, resize_positions
from tests.models import RESNET, sample_pixels, sample_weights


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 2), (7, 14), (14, 7), (7, 10), (24, 16), (16, 37), (5, 1)])
@pytest.mark.parametrize("leading", [0, 1, 3])
def test_positions_are_interpolated_as_by_pytorch(old, new, leading):
    positions = np.random.default_rng(0).standard_normal((leading + old**2, 5))
    grid = torch.from_numpy(positions[leading:]).reshape(1, old, old, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    found = resize_positions(positions, old, new, leading)
    assert np.array_equal(found[:leading], positions[:leading])
    np.testing.assert_allclose(found[leading:], expected[0].permute(1, 2, 0).reshape(new**2, 5), rtol=0, atol=1e-13)
    halved = resize_positions(positions.astype(np.float16), old, new, leading)
    assert halved.dtype == np.float16
    np.testing.assert_allclose(halved, found, rtol=0, atol=1e-2)


def test_the_attention_pool_has_positions_too(backend):
    weights = sample_weights(RESNET)
    architecture, resized = at_resolution(RESNET, weights, 32 * (RESNET.image.grid + 1))
    name = "visual.attnpool.positional_embedding"
    assert {other for other in weights if weights[other] is not resized[other]} == {name}
    expected = resize_positions(weights[name], RESNET.image.grid, RESNET.image.grid + 1, leading=1)
    assert np.array_equal(resized[name], expected)
    pixels = sample_pixels(architecture)
    assert backend.CLIP(architecture, resized, device="cpu").embed_image(pixels).shape == (3, RESNET.embed_dim)
