"""Every backend against the NumPy reference in float64: the numeric contract itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests import tolerances
from tests.models import (
    GELU,
    REDUCED,
    RESNET,
    VIT,
    logits_of,
    reference_stages,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)

ARCHITECTURES = REDUCED | {"exact GELU": GELU}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_and_logits(backend, name):
    architecture = ARCHITECTURES[name]
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    model = backend.CLIP(architecture, weights, device="cpu")
    expected = reference_stages(architecture)
    assert tolerances.beyond(stages_of(model, pixels, tokens), expected) == {}
    for stage in ("image_embedding", "text_embedding"):
        first, second = expected[stage][:2]
        assert tolerances.difference(first, second) > 500 * tolerances.CONTRACT[stage].bound, "inputs must matter"


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_several_images_and_texts_give_a_table(backend, architecture):
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    model = backend.CLIP(architecture, weights, device="cpu")
    per_image, per_text = logits_of(model, pixels, tokens)
    expected = reference_stages(architecture)["logits"]
    assert per_image.shape == (3, 4)
    assert tolerances.difference(per_image, expected) <= tolerances.CONTRACT["logits"].bound
    assert np.array_equal(per_text, per_image.T)
