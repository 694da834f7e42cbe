"""``torch.onnx.export(dynamo=True)`` takes every tower, with batches and texts of any length."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import backends
from backends.onnx.session import Session
from backends.torch.exported import MODULES, OUTPUTS, dynamic_axes
from clip_core.similarity import normalize
from tests import tolerances
from tests.models import reference_stages, sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize("architecture", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_stages_are_those_of_the_reference(architecture, tmp_path):
    import torch

    clip = backends.get("torch").CLIP(architecture, sample_weights(architecture), device="cpu")
    recorded = {"image": sample_pixels(architecture, 2, seed=1), "text": sample_tokens(architecture, 3, seed=1)}
    inputs = {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}
    found = {}
    for part, names in (("image", ("image",)), ("text", ("text",)), ("both", ("image", "text"))):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what the converter leaves out
            program = torch.onnx.export(
                MODULES[part](clip).eval(),
                tuple(torch.from_numpy(recorded[name]) for name in names),
                dynamo=True,
                dynamic_shapes=dynamic_axes(clip, names),
                input_names=names,
                output_names=OUTPUTS[part],
                verbose=False,
            )
        program.save(tmp_path / f"{part}.onnx")
        found[part] = Session(tmp_path / f"{part}.onnx")
    image, text = (normalize(found[part](inputs)[f"{part}_features"]) for part in ("image", "text"))
    stages = {"image_embedding": image, "text_embedding": text, "logits": found["both"](inputs)["logits_per_image"]}
    expected = reference_stages(architecture)
    assert tolerances.beyond(stages, expected) == {}
    one = normalize(found["image"]({"image": inputs["image"][1:2]})["image_features"])
    assert tolerances.difference(one, image[1:2]) <= tolerances.CONTRACT["image_embedding"].bound
    if architecture.text.shortest_length == 1:
        short = normalize(found["text"]({"text": np.ascontiguousarray(inputs["text"][:1, :3])})["text_features"])
        assert tolerances.difference(short, text[:1]) <= tolerances.CONTRACT["text_embedding"].bound
