"""The towers of Low-resource CLIP: against their formulas, written out here, and with its numbers of parameters."""

from __future__ import annotations

from math import erf, prod

import numpy as np
import pytest

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture, infer
from clip_core.models import ARCHITECTURES, LOW_RESOURCE, TOWERS
from clip_core.naming import Weights, count, parameters
from clip_core.similarity import normalize
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from tests.models import sample_pixels, sample_tokens, sample_weights

SMALL = Architecture(
    embed_dim=24,
    image=LowResourceVisionTransformer(
        24, 8, width=32, layers=3, heads=8, mlp_width=40, head_width=48, feature_width=56
    ),
    text=LowResourceTextTransformer(context_length=12, vocabulary_size=300, width=48, layers=3, heads=8, mlp_width=64),
)


def layer_norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return np.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def attention(x: np.ndarray, weights: Weights, name: str, heads: int, causal: bool) -> np.ndarray:
    """One picture or text [l, d], head by head and token by token."""
    width = x.shape[-1] // heads
    packed = weights[f"{name}.in_proj_weight"].reshape(3, heads, width, -1)
    bias = weights.get(f"{name}.in_proj_bias", np.zeros(3 * heads * width)).reshape(3, heads, width)
    result = np.zeros_like(x)
    for head in range(heads):
        queries, keys, values = (x @ packed[part, head].T + bias[part, head] for part in range(3))
        for token, query in enumerate(queries):
            seen = token + 1 if causal else len(x)
            shares = np.exp(keys[:seen] @ query / width**0.5)
            result[token, head * width : (head + 1) * width] = shares @ values[:seen] / shares.sum()
    return linear(result, weights, f"{name}.out_proj")


def blocks(x: np.ndarray, weights: Weights, name: str, layers: int, heads: int, causal: bool) -> np.ndarray:
    for layer in range(layers):
        block = f"{name}.{layer}"
        x = x + attention(layer_norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn", heads, causal)
        inside = linear(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
        inside = inside * 0.5 * (1 + np.vectorize(erf)(inside / 2**0.5))
        x = x + linear(inside, weights, f"{block}.mlp.c_proj")
    return x


def image_feature(picture: np.ndarray, weights: Weights) -> np.ndarray:
    """[3, r, r] -> [d], patch by patch and pixel by pixel."""
    tower, size = SMALL.image, SMALL.image.patch
    rows = [weights["visual.class_embedding"]]
    for top in range(0, tower.resolution, size):
        for left in range(0, tower.resolution, size):
            pixels = [picture[:, top + y, left + x] for y in range(size) for x in range(size)]
            rows.append(np.concatenate(pixels) @ weights["visual.patch_embedding"])
    x = layer_norm(np.array(rows) + weights["visual.positional_embedding"], weights, "visual.ln_pre")
    x = blocks(x, weights, "visual.transformer.resblocks", tower.layers, tower.heads, causal=False)[0]
    x = linear(layer_norm(x, weights, "visual.ln_post"), weights, "visual.head_fc")
    return linear(x, weights, "visual.head_proj") @ weights["visual.proj"]


def text_feature(tokens: np.ndarray, weights: Weights) -> np.ndarray:
    """[l] -> [d]: all tokens, and the state at the first token 1."""
    tower = SMALL.text
    x = weights["text.token_embedding.weight"][tokens] + weights["text.positional_embedding"]
    x = blocks(x, weights, "text.transformer.resblocks", tower.layers, tower.heads, causal=True)
    return layer_norm(x[list(tokens).index(1)], weights, "text.ln_final") @ weights["text.text_projection"]


def test_the_reference_computes_the_formulas():
    weights, pixels, tokens = sample_weights(SMALL), sample_pixels(SMALL), sample_tokens(SMALL)
    double = {name: array.astype(np.float64) for name, array in weights.items()}
    judge = Reference(SMALL, weights, precision="fp64")
    image = np.stack([image_feature(picture.astype(np.float64), double) for picture in pixels])
    text = np.stack([text_feature(row, double) for row in tokens])
    assert np.allclose(normalize(judge.encode_image(pixels)), normalize(image), rtol=0, atol=1e-12)
    assert np.allclose(normalize(judge.encode_text(tokens)), normalize(text), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("place", "name", "published"),
    [
        ("image", "M/14@112", 3_856_640),
        ("image", "S/16@112", 28_264_704),
        ("image", "B/16@112", 90_408_960),
        ("image", "B/32@224", 112_638_976),
        ("image", "L/14@224", 305_016_576),
        ("text", "S", 27_067_392),
        ("text", "B", 48_067_584),
    ],
)
def test_numbers_of_parameters(place, name, published):
    """Without the joint projection, which its encoders do not have; images end in 768 dimensions there."""
    found = [parameter for parameter in TOWERS[place][name].parameters(512) if parameter.kind != "projection"]
    patches = [one for one in TOWERS[place][name].parameters(512) if one.name == "patch_embedding"]
    assert sum(prod(parameter.shape) for parameter in found + patches) == published


def test_the_model_of_its_notebook():
    """161,361,920 parameters there, where the temperature is none."""
    assert count(ARCHITECTURES["B/32@224+B"].architecture) == 161_361_920 + 1


@pytest.mark.parametrize("name", [name for name, one in ARCHITECTURES.items() if one.family is LOW_RESOURCE])
def test_shapes_tell_the_architecture(name):
    architecture = ARCHITECTURES[name].architecture
    architecture.check()
    assert infer({one.name: one.shape for one in parameters(architecture)}) == architecture
    assert Architecture.from_dict(architecture.to_dict()) == architecture
