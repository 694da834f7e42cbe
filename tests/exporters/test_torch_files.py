"""Every tower as a file of PyTorch gives the reference's numbers, for any batch and length of text."""

from __future__ import annotations

import numpy as np
import pytest

import backends
from backends.torch.exported import Session, save
from clip_core.architecture import Architecture
from clip_core.similarity import normalize
from tests import tolerances
from tests.models import reference_stages, sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def architecture(request) -> Architecture:
    return request.param


@pytest.mark.parametrize("suffix", [".pt", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_stages_are_those_of_the_reference(suffix, architecture, tmp_path):
    clip = backends.get("torch").CLIP(architecture, sample_weights(architecture), device="cpu")
    recorded = {"image": sample_pixels(architecture, 2, seed=1), "text": sample_tokens(architecture, 3, seed=1)}
    inputs = {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}
    for part in ("image", "text", "both"):
        save(clip, part, tmp_path / f"{part}{suffix}", recorded, {})
    image, text, both = (Session(tmp_path / f"{part}{suffix}") for part in ("image", "text", "both"))
    found = {
        "image_embedding": normalize(image({"image": inputs["image"]})["image_features"]),
        "text_embedding": normalize(text({"text": inputs["text"]})["text_features"]),
        "logits": both(inputs)["logits_per_image"],
    }
    expected = reference_stages(architecture)
    assert tolerances.beyond(found, expected) == {}
    one = normalize(image({"image": inputs["image"][1:2]})["image_features"])
    assert tolerances.difference(one, expected["image_embedding"][1:2]) <= tolerances.CONTRACT["image_embedding"].bound
    if architecture.text.shortest_length == 1:
        short = normalize(text({"text": np.ascontiguousarray(inputs["text"][:1, :3])})["text_features"])
        bound = tolerances.CONTRACT["text_embedding"].bound
        assert tolerances.difference(short, expected["text_embedding"][:1]) <= bound


def test_a_changed_weight_is_noticed(tmp_path):
    architecture = EXAMPLES["vit and transformer"]
    weights = sample_weights(architecture)
    changed = weights["visual.proj"].copy()
    changed[::7] += 0.1
    clip = backends.get("torch").CLIP(architecture, weights | {"visual.proj": changed}, device="cpu")
    inputs = {"image": sample_pixels(architecture)}
    save(clip, "image", tmp_path / "image.pt", inputs, {})
    found = normalize(Session(tmp_path / "image.pt")(inputs)["image_features"])
    expected = reference_stages(architecture)["image_embedding"]
    assert tolerances.difference(found, expected) > tolerances.CONTRACT["image_embedding"].bound
