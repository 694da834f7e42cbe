"""Every backend against the NumPy reference in float64: the numeric contract itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.numpy import CLIP as Reference
from clip_core.similarity import normalize
from tests import tolerances
from tests.models import (
    GELU,
    REDUCED,
    UNUSUAL,
    VIT,
    reference_stages,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)

ARCHITECTURES = REDUCED | {"exact GELU": GELU, "unusual numbers": UNUSUAL}


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


NUMBERS = [(place, name) for place in ("image", "text") for name in ("heads", "activation", "epsilon")]


@pytest.mark.parametrize(("place", "number"), [*NUMBERS, ("text", "end_of_text")])
def test_the_unusual_numbers_matter(place, number):
    """Each alone, so that a backend that takes OpenAI's, or the other tower's, is noticed."""
    tower = getattr(UNUSUAL, place)
    other = replace(UNUSUAL, **{place: replace(tower, **{number: getattr(getattr(VIT, place), number)})})
    judge = Reference(other, sample_weights(UNUSUAL), precision="fp64")
    tokens = sample_tokens(UNUSUAL)
    tokens[:, -1] = other.text.end_of_text  # longer texts than with the token of UNUSUAL, which stands before it
    found = normalize(judge.encode_image(sample_pixels(UNUSUAL)) if place == "image" else judge.encode_text(tokens))
    difference = tolerances.difference(found, reference_stages(UNUSUAL)[f"{place}_embedding"])
    assert difference > 10 * tolerances.CONTRACT[f"{place}_embedding"].bound


def test_the_feature_of_a_text_is_taken_at_its_first_end(backend):
    """Tokens above it, which a user has added to the vocabulary, and ends that follow it do not matter."""
    tokens = sample_tokens(UNUSUAL)
    tokens[1:, 2] = UNUSUAL.text.vocabulary_size - 1
    model = backend.CLIP(UNUSUAL, sample_weights(UNUSUAL), device="cpu")
    expected = model.embed_text(tokens)
    ends = (tokens == UNUSUAL.text.end_of_text).argmax(axis=1)
    for row, end in zip(tokens, ends):
        row[end + 1 :] = UNUSUAL.text.end_of_text
    assert tolerances.difference(model.embed_text(tokens), expected) <= tolerances.CONTRACT["text_embedding"].bound
    tokens[3, 2] = 5
    assert tolerances.difference(model.embed_text(tokens), expected) > 1e-2, "the added token must matter"
