"""The fast way of inference and the plain one are different code, and both give the numbers of the reference."""

from __future__ import annotations

import importlib

import pytest

from backends.numpy import CLIP as Reference
from clip.parity import Inputs, compare_models
from clip_core import backend as core
from tests.models import sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES

ARCHITECTURE = EXAMPLES["vit and transformer"]


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
def test_both_ways_give_the_numbers_of_the_reference(backend, plain, monkeypatch):
    tower = importlib.import_module(f"backends.{backend.name}.towers.text_transformer")
    tree, used = tower.tree_of, []
    monkeypatch.setattr(tower, "tree_of", lambda *given: used.append(given) or tree(*given))
    weights = sample_weights(ARCHITECTURE)
    judge, model = Reference(ARCHITECTURE, weights, precision="fp64"), backend.CLIP(ARCHITECTURE, weights, device="cpu")
    inputs = Inputs(sample_pixels(ARCHITECTURE), sample_tokens(ARCHITECTURE))
    report = compare_models("the sample", judge, [model], inputs, layers=True, plain=plain)
    assert report.passed
    assert bool(used) != plain
    assert not core.is_plain()


def test_a_changed_weight_fails_on_the_plain_way(backend):
    weights = sample_weights(ARCHITECTURE)
    judge = Reference(ARCHITECTURE, weights, precision="fp64")
    changed = {**weights, "text_projection": weights["text_projection"] * 1.0}
    changed["text_projection"][0] += 1
    model = backend.CLIP(ARCHITECTURE, changed, device="cpu")
    inputs = Inputs(sample_pixels(ARCHITECTURE), sample_tokens(ARCHITECTURE))
    assert not compare_models("the sample", judge, [model], inputs, plain=True).passed
