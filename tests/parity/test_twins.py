"""The twins of the parity tests: with one weight changed, the same comparison must fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clip_core.architecture import Architecture
from clip_core.naming import parameters
from tests import tolerances
from tests.models import REDUCED, RESNET, VIT, reference_stages, sample_pixels, sample_tokens, sample_weights, stages_of

Change = Callable[[np.ndarray], np.ndarray]


def one_number(array: np.ndarray) -> np.ndarray:
    """The last number, moved by as little as a tenth; of packed biases that is a value's (a key's has no effect)."""
    changed = array.copy()
    changed.flat[array.size - 1] += 0.1
    return changed


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
    (VIT, "positional_embedding", one_number, TEXT),
    (VIT, "text_projection", one_number, TEXT),
    (VIT, "logit_scale", one_number, LOGITS),
    (VIT, "visual.class_embedding", one_number, IMAGE),
    (VIT, "visual.positional_embedding", one_number, IMAGE),
    (VIT, "visual.proj", one_number, IMAGE),
    (VIT, "visual.conv1.weight", one_number, IMAGE),
    (VIT, "visual.conv1.weight", mirrored, IMAGE),
    (VIT, "visual.ln_pre.weight", one_number, IMAGE),
    (VIT, "visual.ln_post.bias", one_number, IMAGE),
    *((VIT, f"{prefix}{BLOCK}.{name}", change, stage)
      for prefix, stage in (("visual.", IMAGE), ("", TEXT))
      for name, change in (
          ("attn.in_proj_weight", one_number),
          ("attn.in_proj_weight", swapped),
          ("attn.in_proj_bias", one_number),
          ("attn.out_proj.weight", one_number),
          ("attn.out_proj.weight", transposed),
          ("attn.out_proj.bias", one_number),
          ("ln_1.weight", one_number),
          ("mlp.c_fc.weight", one_number),
          ("mlp.c_fc.bias", one_number),
          ("mlp.c_proj.weight", one_number),
          ("ln_2.bias", one_number),
      )),
    (VIT, "ln_final.weight", one_number, TEXT),
    (RESNET, "visual.conv1.weight", one_number, IMAGE),
    (RESNET, "visual.conv2.weight", mirrored, IMAGE),
    (RESNET, "visual.bn1.weight", one_number, IMAGE),
    (RESNET, "visual.bn2.bias", one_number, IMAGE),
    (RESNET, "visual.bn3.running_mean", one_number, IMAGE),
    (RESNET, "visual.layer2.0.bn3.running_var", one_number, IMAGE),
    (RESNET, "visual.layer2.0.downsample.0.weight", one_number, IMAGE),
    (RESNET, "visual.layer4.0.conv2.weight", mirrored, IMAGE),
    (RESNET, "visual.attnpool.positional_embedding", one_number, IMAGE),
    (RESNET, "visual.attnpool.q_proj.weight", transposed, IMAGE),
    (RESNET, "visual.attnpool.v_proj.weight", transposed, IMAGE),
    (RESNET, "visual.attnpool.k_proj.weight", transposed, IMAGE),
    (RESNET, "visual.attnpool.c_proj.bias", one_number, IMAGE),
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


def test_every_kind_has_a_twin():
    tried = {
        parameter.kind
        for architecture, name, _, _ in TWINS
        for parameter in parameters(architecture)
        if parameter.name == name
    }
    # The embedding of a token that does not occur, and the counter of batches, have no effect.
    assert tried == {parameter.kind for parameter in parameters(RESNET)} - {"counter"}


def test_softmax_would_hide_it():
    """Why logits are compared before softmax: moved all together, they give the same probabilities."""
    logits = np.array([[20.0, 25.0]])
    assert tolerances.beyond({"logits": logits}, {"logits": logits + 1}) == {"logits": 1.0}


@pytest.mark.parametrize("name", REDUCED)
def test_other_seeds_are_noticed(name):
    one, other = (reference_stages(REDUCED[name], seed) for seed in (0, 1))
    assert set(tolerances.beyond(one, other)) == {IMAGE, TEXT, LOGITS}
