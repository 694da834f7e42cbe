"""Twins of the parity tests: with the axes of one weight in another order, the same comparison must fail.

tests/test_towers.py has the twins in which one number differs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clip_core.architecture import Architecture
from tests import tolerances
from tests.models import REDUCED, RESNET, VIT, reference_stages, sample_pixels, sample_tokens, sample_weights, stages_of

Change = Callable[[np.ndarray], np.ndarray]


def transposed(array: np.ndarray) -> np.ndarray:
    assert array.shape == array.T.shape, "of another matrix, the shape would tell"
    return np.ascontiguousarray(array.T)


def swapped(array: np.ndarray) -> np.ndarray:
    """The first two thirds of a packed matrix, the queries and the keys, in the other order."""
    queries, keys, values = np.split(array, 3)
    return np.concatenate([keys, queries, values])


def mirrored(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[..., ::-1])


IMAGE, TEXT, LOGITS = "image_embedding", "text_embedding", "logits"
BLOCK = "transformer.resblocks.1"
TWINS = [
    (VIT, "visual.conv1.weight", mirrored, IMAGE),
    *((VIT, f"{prefix}{BLOCK}.attn.{name}", change, stage)
      for prefix, stage in (("visual.", IMAGE), ("", TEXT))
      for name, change in (("in_proj_weight", swapped), ("out_proj.weight", transposed))),
    (RESNET, "visual.conv2.weight", mirrored, IMAGE),
    (RESNET, "visual.layer4.0.conv2.weight", mirrored, IMAGE),
    *((RESNET, f"visual.attnpool.{name}_proj.weight", transposed, IMAGE) for name in "qkv"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "name", "change", "stage"), TWINS)
def test_a_changed_weight_is_noticed(
    backend, architecture: Architecture, name: str, change: Change, stage: str
) -> None:
    weights, pixels, tokens = sample_weights(architecture), sample_pixels(architecture), sample_tokens(architecture)
    expected = reference_stages(architecture)
    weights[name] = change(weights[name])
    changed = stages_of(backend.CLIP(architecture, weights, device="cpu"), pixels, tokens)
    assert set(tolerances.beyond(changed, expected)) == {stage, LOGITS}


def test_softmax_would_hide_it():
    """Why logits are compared before softmax: moved all together, they give the same probabilities."""
    logits = np.array([[20.0, 25.0]])
    assert tolerances.beyond({"logits": logits}, {"logits": logits + 1}) == {"logits": 1.0}


@pytest.mark.parametrize("name", REDUCED)
def test_other_seeds_are_noticed(name):
    one, other = (reference_stages(REDUCED[name], seed) for seed in (0, 1))
    assert set(tolerances.beyond(one, other)) == {IMAGE, TEXT, LOGITS}
