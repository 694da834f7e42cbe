"""The two Mixers: against an independent computation from the papers' formulas, and what is theirs alone."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture, infer
from clip_core.errors import CheckpointError, ClipError, TextError
from clip_core.initialize import initialize
from clip_core.models import ARCHITECTURES, MODELS
from clip_core.naming import Weights, count, parameters
from clip_core.resize import at_resolution
from clip_core.similarity import normalize
from clip_core.towers.mixer import TextMixer, VisionMixer
from tests import tolerances
from tests.models import VIT, reference_stages, sample_pixels, sample_tokens, sample_weights, stages_of

NAMED = ARCHITECTURES["Mixer-B/32"].architecture
# Numbers that differ from the named model's, and from tower to tower.
MIXER = Architecture(
    embed_dim=24,
    image=VisionMixer(32, patch=8, width=40, layers=3, token_mlp_width=30, mlp_width=72, epsilon=1e-3),
    text=TextMixer(
        16, vocabulary_size=300, width=56, layers=2, token_mlp_width=20, activation="gelu_tanh", end_of_text=298
    ),
)
PAIRINGS = {
    "mixer and mixer": MIXER,
    "vit and mixer": replace(VIT, embed_dim=24, text=MIXER.text),
    "mixer and transformer": replace(VIT, embed_dim=24, image=MIXER.image),
}


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def standardized(x: np.ndarray, weights: Weights, name: str, epsilon: float) -> np.ndarray:
    """Layer normalisation of each row of [l, d]."""
    rows = [(row - row.mean()) / np.sqrt(row.var() + epsilon) for row in x]
    return np.array(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mixed(x: np.ndarray, weights: Weights, prefix: str, tower: VisionMixer | TextMixer) -> np.ndarray:
    """Equation 1 of arXiv 2105.01601 for the tokens [l, d] of one picture or text, a column or a row at a time."""
    activation = {"quick_gelu": quick_gelu, "gelu_tanh": gelu_tanh}[tower.activation]
    for layer in range(tower.layers):
        part = {name.removeprefix(f"{prefix}mixer.resblocks.{layer}."): array for name, array in weights.items()}

        def mlp(name: str, vector: np.ndarray, part: Weights = part) -> np.ndarray:
            inner = activation(part[f"{name}.c_fc.weight"] @ vector + part[f"{name}.c_fc.bias"])
            return part[f"{name}.c_proj.weight"] @ inner + part[f"{name}.c_proj.bias"]

        y = standardized(x, part, "ln_1", tower.epsilon)
        u = x + np.stack([mlp("token_mlp", y[:, channel]) for channel in range(tower.width)], axis=1)
        y = standardized(u, part, "ln_2", tower.epsilon)
        x = u + np.stack([mlp("mlp", y[token]) for token in range(len(u))])
    return x


def image_feature(picture: np.ndarray, weights: Weights, tower: VisionMixer) -> np.ndarray:
    size = tower.patch
    corners = [(y, x) for y in range(0, tower.resolution, size) for x in range(0, tower.resolution, size)]
    patches = [
        np.tensordot(weights["visual.conv1.weight"], picture[:, y : y + size, x : x + size], axes=3) for y, x in corners
    ]
    tokens = np.array([weights["visual.class_embedding"], *patches])
    tokens = mixed(standardized(tokens, weights, "visual.ln_pre", tower.epsilon), weights, "visual.", tower)
    return standardized(tokens[:1], weights, "visual.ln_post", tower.epsilon)[0] @ weights["visual.proj"]


def text_feature(text: np.ndarray, weights: Weights, tower: TextMixer) -> np.ndarray:
    tokens = mixed(weights["text.token_embedding.weight"][text], weights, "text.", tower)
    end = text.tolist().index(tower.end_of_text)
    return standardized(tokens, weights, "text.ln_final", tower.epsilon)[end] @ weights["text.text_projection"]


def test_an_independent_computation_gives_the_same_features():
    weights = sample_weights(MIXER)
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    pixels, tokens = sample_pixels(MIXER), sample_tokens(MIXER)
    expected = {
        "image_embedding": normalize(np.array([image_feature(picture, exact, MIXER.image) for picture in pixels])),
        "text_embedding": normalize(np.array([text_feature(text, exact, MIXER.text) for text in tokens])),
    }
    expected["logits"] = np.exp(exact["logit_scale"]) * expected["image_embedding"] @ expected["text_embedding"].T
    for stage, found in reference_stages(MIXER).items():
        assert tolerances.difference(found, expected[stage]) < 1e-9, stage


@pytest.mark.parametrize("architecture", PAIRINGS.values(), ids=PAIRINGS.keys())
def test_every_pairing_is_computed_alike(backend, architecture):
    model = backend.CLIP(architecture, sample_weights(architecture), device="cpu")
    found = stages_of(model, sample_pixels(architecture), sample_tokens(architecture))
    assert tolerances.beyond(found, reference_stages(architecture)) == {}


@pytest.mark.parametrize("architecture", PAIRINGS.values(), ids=PAIRINGS.keys())
def test_the_shapes_tell_the_towers(architecture):
    found = infer({parameter.name: parameter.shape for parameter in parameters(architecture)})
    assert found == replace(
        architecture,
        image=replace(architecture.image, epsilon=1e-5),
        text=replace(architecture.text, activation="quick_gelu", end_of_text=299),
    )


def test_the_parameters_are_as_many_as_published():
    assert infer({parameter.name: parameter.shape for parameter in parameters(NAMED)}) == NAMED
    by_tower = dict.fromkeys(("image", "text", "joint"), 0)
    for parameter in parameters(NAMED):
        by_tower[parameter.tower] += int(np.prod(parameter.shape))
    assert by_tower == {"image": 59_705_400, "text": 51_354_988, "joint": 1}
    assert count(NAMED) == 111_060_389
    assert count(MODELS["ViT-B/32"].architecture) == 151_277_313  # the Transformer that it was compared with
    assert (NAMED.image.token_mlp_width, NAMED.image.mlp_width) == (200, 3072)
    assert (NAMED.text.token_mlp_width, NAMED.text.mlp_width) == (308, 2048)


def test_the_multiplications_are_those_of_the_matrices():
    image, text = NAMED.image, NAMED.text
    assert image.multiplications(512) == 49 * 3072 * 768 + 12 * 2 * (50 * 200 * 768 + 50 * 768 * 3072) + 768 * 512
    assert text.multiplications(512) == 12 * 2 * (77 * 308 * 512 + 77 * 512 * 2048) + 512 * 512


def test_initial_values_are_those_of_mixer_clip():
    """PyTorch's defaults in the image tower; in the text tower its defaults for biases alone."""
    weights = initialize(NAMED, 0)

    def spread(name: str) -> float:
        return float(weights[name].std())

    def largest(name: str) -> float:
        return float(np.abs(weights[name]).max())

    block = "visual.mixer.resblocks.3"
    for name, inputs in (("token_mlp.c_fc", 50), ("token_mlp.c_proj", 200), ("mlp.c_fc", 768), ("mlp.c_proj", 3072)):
        for leaf in ("weight", "bias"):
            assert inputs**-0.5 * 0.9 < largest(f"{block}.{name}.{leaf}") <= inputs**-0.5
    block = "text.mixer.resblocks.3"
    for name, inputs in (("token_mlp", 77), ("mlp", 512)):
        assert spread(f"{block}.{name}.c_fc.weight") == pytest.approx(1024**-0.5, rel=0.02)
        assert spread(f"{block}.{name}.c_proj.weight") == pytest.approx(512**-0.5 * 24**-0.5, rel=0.02)
        assert inputs**-0.5 * 0.9 < largest(f"{block}.{name}.c_fc.bias") <= inputs**-0.5
    assert spread("text.token_embedding.weight") == pytest.approx(0.02, rel=0.02)
    assert spread("text.text_projection") == pytest.approx(512**-0.5, rel=0.02)
    assert spread("visual.proj") == pytest.approx(768**-0.5, rel=0.02)


def test_what_stands_behind_the_end_of_a_text_is_mixed_in(backend):
    """Padding is a token like others, so no text may be cut short."""
    model, tokens = backend.CLIP(MIXER, sample_weights(MIXER), device="cpu"), sample_tokens(MIXER)
    expected = model.embed_text(tokens)
    assert tolerances.difference(model.embed_text(tokens[:2]), expected[:2]) < 1e-5  # all of a batch are short
    changed = tokens.copy()
    changed[:-1, -1] = 7  # the last text has its end there
    assert np.abs(model.embed_text(changed) - expected)[:-1].max(axis=1).min() > 1e-3
    with pytest.raises(TextError, match=r"^The tokens have shape \(4, 15\), expected \(n, 16\); make them with tok"):
        model.embed_text(tokens[:, :15])


@pytest.mark.needs("nnabla")
def test_a_static_graph_gives_the_same_values():
    import nnabla as nn

    from backends.nnabla import CLIP

    model = CLIP(MIXER, sample_weights(MIXER))
    pixels, tokens = sample_pixels(MIXER), sample_tokens(MIXER)
    image, text = nn.Variable(pixels.shape), nn.Variable(tokens.shape)
    per_image, _ = model(image, text)
    image.d, text.d = pixels, tokens
    per_image.forward(clear_no_need_grad=True)
    assert tolerances.difference(per_image.d, reference_stages(MIXER)["logits"]) <= tolerances.CONTRACT["logits"].bound


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision):
    from backends.torch import CLIP

    model = CLIP(MIXER, sample_weights(MIXER), device="cpu", precision=precision)
    found = stages_of(model, sample_pixels(MIXER), sample_tokens(MIXER))
    assert tolerances.beyond(found, reference_stages(MIXER), tolerances.HALF[precision]) == {}


def test_another_resolution_is_refused():
    message = (
        "The image tower is a Mixer, whose matrices are for 4 x 4 patches and cannot be interpolated as positions can, "
        "so its resolution stays 32; leave --resolution (resolution=...) out."
    )
    with pytest.raises(ClipError, match=f"^{re.escape(message)}$"):
        at_resolution(MIXER, sample_weights(MIXER), 64)
    assert at_resolution(MIXER, sample_weights(MIXER), 32)[0] == MIXER


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 7}, "The image resolution 32 is not a multiple of its patch (7)."),
        ({"patch": 0}, "The architecture's image.patch is 0; it must be a whole number above 0."),
        ({"patch": "8"}, "The architecture's image.patch is '8'; it must be a whole number above 0."),
        ({"token_mlp_width": 0}, "The architecture's image.token_mlp_width is 0; it must be a whole number above 0."),
    ],
)
def test_a_tower_that_cannot_be_is_refused(changes, message):
    description = MIXER.to_dict()
    del description["image"]["token_mlp_width"]
    description["image"] |= changes
    with pytest.raises(ClipError, match=f"^{re.escape(message)}$"):
        Architecture.from_dict(description)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("visual.mixer.resblocks.0.token_mlp.c_proj.bias", (18,), "has 18 rows, expected a square + 1"),
        ("text.mixer.resblocks.0.token_mlp.c_proj.bias", (18, 2), "has shape (18, 2), expected 1 axes"),
        ("visual.mixer.resblocks.0.mlp.c_fc.bias", None, "is missing"),
    ],
)
def test_weights_that_tell_no_mixer_are_refused(name, shape, message):
    shapes = {parameter.name: parameter.shape for parameter in parameters(MIXER)}
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(CheckpointError, match=re.escape(f"{name} {message}")):
        infer(shapes)


def test_the_feature_of_a_text_is_taken_at_its_first_end():
    judge = Reference(MIXER, sample_weights(MIXER), precision="fp64")
    tokens = sample_tokens(MIXER)
    tokens[0, 1] = 299  # above the end of text: not the end
    tokens[1, -1] = MIXER.text.end_of_text  # a second end: not the first
    weights = {name: array.astype(np.float64) for name, array in sample_weights(MIXER).items()}
    expected = np.array([text_feature(text, weights, MIXER.text) for text in tokens])
    assert tolerances.difference(judge.encode_text(tokens), expected) < 1e-9
