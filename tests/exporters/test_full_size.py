"""A model of full size is exported, and passes the proof."""

from __future__ import annotations

from pathlib import Path

import pytest

import converters
from clip.export import export
from clip_core.initialize import random_weights
from clip_core.models import MODELS
from clip_core.naming import count
from exporters.onnx import storage

ARCHITECTURE = MODELS["ViT-B/32"].architecture


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("full-size") / "ViT-B-32.safetensors"
    converters.write(converters.ModelFile(random_weights(ARCHITECTURE, seed=0), ARCHITECTURE), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("to", "precision", "bound"), [("onnx", "fp32", 1e-5), ("openvino", "fp16", 5e-3)])
def test_vit_b_32(to, precision, bound, weights, tmp_path):
    report = export(weights, tmp_path / "exported", to=to, precision=precision, parts=["image", "text"])
    assert max(report["proof"]["largest_difference"].values()) < bound
    size = sum(facts["bytes"] for facts in report["files"].values())
    assert size == pytest.approx(count(ARCHITECTURE) * (4 if precision == "fp32" else 2), rel=0.02)


@pytest.mark.slow
def test_weights_beside_the_files(weights, monkeypatch, tmp_path):
    """As of models with more than 2 GB, of which this one has half a gigabyte."""
    monkeypatch.setattr(storage, "MOST_INSIDE", 100 << 20)
    report = export(weights, tmp_path / "exported", parts=["image"], preprocessing=True)
    assert report["files"]["image.onnx"]["bytes"] < 1 << 20
    assert report["files"]["image.onnx.data"]["bytes"] > 300 << 20
    assert report["proof"]["largest_difference"]["image_embedding"] < 1e-5
    assert report["proof"]["pixels"]["share_that_differs"] == 0
