"""Every tower as a file of Paddle gives the reference's numbers, for any batch and length of text."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

import converters
from backends.paddle import CLIP
from backends.paddle.exported import Session, save
from clip.api import RESOURCES
from clip.export import export
from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.similarity import normalize
from tests import tolerances
from tests.models import reference_stages, sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def architecture(request) -> Architecture:
    return request.param


def test_logits_are_those_of_the_reference(architecture, tmp_path):
    clip = CLIP(architecture, sample_weights(architecture), device="cpu")
    inputs = {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}
    save(clip, "both", tmp_path / "both.json", {name: array[:2] for name, array in inputs.items()}, {})
    both = Session(tmp_path / "both.json")
    found, expected = both(inputs)["logits_per_image"], reference_stages(architecture)["logits"]
    assert tolerances.beyond({"logits": found}, {"logits": expected}) == {}
    for again in (both(inputs) for _ in range(5)):  # oneDNN keeps memory from the first time
        assert np.array_equal(again["logits_per_image"], found)
        assert np.array_equal(again["logits_per_text"], found.T)
    length = 3 if architecture.text.shortest_length == 1 else None
    fewer = both({"image": inputs["image"][1:2], "text": inputs["text"][:1, :length]})["logits_per_image"]
    assert tolerances.beyond({"logits": fewer}, {"logits": expected[1:2, :1]}) == {}


@pytest.mark.slow
def test_embeddings_are_those_of_the_reference(architecture, tmp_path):
    clip = CLIP(architecture, sample_weights(architecture), device="cpu")
    inputs = {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}
    for part, array in inputs.items():
        save(clip, part, tmp_path / f"{part}.json", inputs, {})
        session = Session(tmp_path / f"{part}.json")
        loaded = paddle.jit.load(str(tmp_path / part))  # Paddle's other way to run a file
        expected = reference_stages(architecture)[f"{part}_embedding"]
        for places in (slice(None), slice(1)):
            for features in (
                session({part: array[places]})[f"{part}_features"],
                loaded(paddle.to_tensor(array[places])).numpy(),
            ):
                bound = tolerances.CONTRACT[f"{part}_embedding"].bound
                assert tolerances.difference(normalize(features), expected[places]) <= bound


def test_a_changed_weight_is_noticed(tmp_path):
    architecture = EXAMPLES["vit and transformer"]
    weights = sample_weights(architecture)
    changed = weights["visual.proj"].copy()
    changed[::7] += 0.1
    clip = CLIP(architecture, weights | {"visual.proj": changed}, device="cpu")
    inputs = {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}
    save(clip, "image", tmp_path / "image.json", inputs, {})
    found = normalize(Session(tmp_path / "image.json")({"image": inputs["image"]})["image_features"])
    expected = reference_stages(architecture)["image_embedding"]
    assert tolerances.difference(found, expected) > tolerances.CONTRACT["image_embedding"].bound


def test_an_export(tmp_path):
    """Files of each tower alone, with all that a program needs beside them; the proof has loaded them from the disk."""
    report = export("shapes", tmp_path / "native", to="paddle", parts=["image", "text"])
    names = {part + ending for part in ("image", "text") for ending in (".json", ".pdiparams", "-triclip.json")}
    assert report["files"].keys() == names
    assert {path.name for path in (tmp_path / "native").iterdir()} == names | {"export.json"}
    assert 0 < max(report["proof"]["largest_difference"].values()) < 1e-4
    assert report["proof"]["batches_of_texts"] == [[1, 77], [1, 2], [8, 7], [12, 77]]
    file = converters.read(RESOURCES / "shapes.safetensors")
    image = sum(array.size for name, array in file.weights.items() if name.startswith("visual."))
    assert report["files"]["image.pdiparams"]["bytes"] == pytest.approx(4 * image, rel=0.01)
    for part in ("image", "text"):
        found = json.loads((tmp_path / "native" / f"{part}-triclip.json").read_text())
        assert found["tokenizer"].pop("definition") == file.vocabulary
        assert found == {key: report[key] for key in found}


def test_what_is_refused(tmp_path):
    with pytest.raises(ClipError, match=r"^There is no 'fp16' in paddle; choose one of fp32\.$"):
        export("shapes", tmp_path / "none", to="paddle", precision="fp16")
    assert list(tmp_path.iterdir()) == []
