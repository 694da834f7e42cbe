"""The graphs that are written for ONNX give the reference's numbers in onnxruntime and OpenVINO, for every tower."""

from __future__ import annotations

import re
import sys

import numpy as np
import onnx
import pytest

import backends
from backends.onnx.session import Session
from clip.parity import compare
from clip_core.architecture import Architecture
from clip_core.errors import BackendMissing, CheckpointError, ClipError
from clip_core.inputs import check_tokens
from clip_core.installation import requirement
from clip_core.naming import parameters
from clip_core.similarity import normalize
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.modified_resnet import ModifiedResNet
from exporters.onnx import model, towers
from exporters.onnx.graph import NEWEST_OPSET, OLDEST_OPSET, inside
from tests import tolerances
from tests.models import (
    logits_of,
    reference_layers,
    reference_stages,
    sample_pixels,
    sample_tokens,
    sample_weights,
    stages_of,
)
from tests.tolerances import first_beyond
from tests.towers import EXAMPLES, TEXTS
from tests.weights import same

BACKEND = backends.get("onnx")


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def architecture(request) -> Architecture:
    return request.param


def test_every_tower_has_a_writer_of_its_graph():
    """A tower without one would be refused by name, and there is none."""
    for writers, towers_of_core in ((towers.IMAGE_TOWERS, IMAGE_TOWERS), (towers.TEXT_TOWERS, TEXT_TOWERS)):
        assert {kind: writer.__name__ for kind, writer in writers.items()} == {
            kind: tower.__name__ for kind, tower in towers_of_core.items()
        }


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
def test_stages_and_layers_are_those_of_the_reference(runtime, architecture):
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    clip = backends.get(runtime).CLIP(architecture, sample_weights(architecture))
    assert tolerances.beyond(stages_of(clip, pixels, tokens), reference_stages(architecture)) == {}
    found, expected = clip.layers(pixels, tokens), reference_layers(architecture)
    assert list(found) == list(expected)
    assert first_beyond(found, expected) is None
    with pytest.raises(ClipError, match=f"The {runtime} backend shows no intermediate features"):
        clip.forward_intermediates(pixels)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, NEWEST_OPSET])
def test_one_graph_of_both_towers_gives_the_logits(architecture, opset, tmp_path):
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    graph = model.write(architecture, weights, "both")
    written = graph.model("clip", opset, {}, inside)
    onnx.checker.check_model(written, full_check=True)
    (tmp_path / "both.onnx").write_bytes(written.SerializeToString())
    found = Session(tmp_path / "both.onnx")({"image": pixels, "text": tokens})
    expected = reference_stages(architecture)["logits"]
    assert tolerances.difference(found["logits_per_image"], expected) <= tolerances.CONTRACT["logits"].bound
    assert np.array_equal(found["logits_per_text"], found["logits_per_image"].T)
    # Every parameter is in the file as it is, but for counters, which have no effect.
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in written.graph.initializer}
    named = {each.name for each in parameters(architecture) if each.kind != "counter"}
    assert same({name: stored[name] for name in named}, {name: weights[name] for name in named})
    assert all(name.startswith("constant_") for name in stored.keys() - named)


def test_a_changed_weight_is_noticed(architecture):
    """The twin of the tests before: every seventh number of one matrix of each tower, moved by a tenth."""
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    for place in ("image", "text"):
        name = [each.name for each in parameters(architecture) if each.tower == place and len(each.shape) > 1][-1]
        changed = weights[name].copy()
        changed.reshape(-1)[::7] += 0.1
        found = stages_of(BACKEND.CLIP(architecture, weights | {name: changed}), pixels, tokens)
        assert tolerances.beyond(found, reference_stages(architecture)).keys() == {f"{place}_embedding", "logits"}


def test_any_batch_and_any_length_of_text(architecture):
    clip = BACKEND.CLIP(architecture, sample_weights(architecture))
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    bound = tolerances.CONTRACT["image_embedding"].bound
    expected = normalize(clip.embed_image(pixels))
    assert tolerances.difference(normalize(clip.embed_image(pixels[1:2])), expected[1:2]) <= bound
    assert clip.embed_image(pixels[:0]).shape == (0, architecture.embed_dim)
    expected = normalize(clip.embed_text(tokens))
    if architecture.text.shortest_length == 1:
        cut = check_tokens(tokens[:1, :3], architecture.text)  # the first text has three tokens
        assert tolerances.difference(normalize(clip.embed_text(cut)), expected[:1]) <= bound
    else:
        assert tolerances.difference(normalize(clip.embed_text(tokens[:1])), expected[:1]) <= bound


@pytest.mark.parametrize(
    "image",
    [
        ModifiedResNet(resolution=32, width=2, blocks=(1, 1, 1, 1), heads=1),
        EfficientNetV2(
            resolution=8, stem=1, widths=(2, 3), blocks=(1, 1), expansions=(1, 2), strides=(1, 1), fused=1, width=4
        ),
    ],
    ids=["resnet", "efficientnet_v2"],
)
def test_a_convolution_of_one_channel_is_not_taken_for_a_depthwise_one(image):
    architecture = Architecture(image.output_width or 16, image, TEXTS[0])
    weights, pixels = sample_weights(architecture), sample_pixels(architecture)
    found, expected = (backends.get(name).CLIP(architecture, weights).embed_image(pixels) for name in ("onnx", "numpy"))
    assert tolerances.difference(found, expected) <= tolerances.CONTRACT["image_embedding"].bound


def test_half_precision(architecture):
    clip = BACKEND.CLIP(architecture, sample_weights(architecture), precision="fp16")
    found = stages_of(clip, sample_pixels(architecture), sample_tokens(architecture))
    assert tolerances.beyond(found, reference_stages(architecture), tolerances.HALF["fp16"]) == {}
    assert tolerances.beyond(found, reference_stages(architecture)) != {}, "it is half precision indeed"


def test_the_bias_of_the_logits():
    architecture = Architecture(**vars(EXAMPLES["vit and transformer"]) | {"logit_bias": True})
    weights = sample_weights(architecture) | {"logit_bias": np.float32(-10)}
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    expected = logits_of(BACKEND.CLIP(architecture, weights), pixels, tokens)[0]
    found = Session(model.write(architecture, weights, "both"))({"image": pixels, "text": tokens})
    assert tolerances.difference(found["logits_per_image"], expected) <= tolerances.CONTRACT["logits"].bound


def test_parity_takes_them_as_backends():
    report = compare("shapes", ["onnx", "openvino"], layers=True)
    assert report.passed
    assert [comparison.backend for comparison in report.comparisons] == ["onnx", "openvino"]


def test_what_it_refuses(monkeypatch):
    architecture = EXAMPLES["vit and transformer"]
    weights = sample_weights(architecture)
    with pytest.raises(ClipError, match=r"^There is no precision 'int4' in ONNX; choose one of fp32, fp16.$"):
        BACKEND.CLIP(architecture, weights, precision="int4")
    with pytest.raises(ClipError, match=r"^The onnx backend has no device 'cuda'; it runs on the cpu.$"):
        BACKEND.CLIP(architecture, weights, device="cuda")
    large = weights | {"visual.proj": weights["visual.proj"] + np.float32(1e6)}
    with pytest.raises(
        CheckpointError, match=r"^visual.proj has values that are not finite in fp16; export the model in fp32.$"
    ):
        model.write(architecture, large, "image", "fp16")
    monkeypatch.delitem(towers.IMAGE_TOWERS, "vit")
    with pytest.raises(ClipError, match=r"^There is no ONNX of a ViT; export another model.$"):
        model.write(architecture, weights, "image")


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
def test_without_its_runtime(runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(BackendMissing, match=rf"install it with: pip install {re.escape(requirement(runtime))}\.$"):
        backends.get(runtime)
