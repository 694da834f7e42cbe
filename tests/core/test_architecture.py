"""The named models' numbers, reading an architecture off shapes, and the sentence for each impossible one."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import pytest

from clip_core.architecture import Architecture, differences, infer
from clip_core.errors import CheckpointError, ClipError
from clip_core.models import MODELS, SHAPES, name_of
from clip_core.naming import count, parameters
from clip_core.pixels import Pixels
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from tests.towers import EXAMPLES

# name: embed, resolution, text width and heads, trained scalars, file, first and last digits of the SHA-256
OPENAI = {
    "RN50": (1024, 224, 512, 8, 102_007_137, "RN50.pt", "afeb0e10", "04b6762"),
    "RN101": (512, 224, 512, 8, 119_688_033, "RN101.pt", "8fa8567b", "94fab599"),
    "RN50x4": (640, 288, 640, 10, 178_300_601, "RN50x4.pt", "7e526bd1", "63205fdd"),
    "RN50x16": (768, 384, 768, 12, 290_979_217, "RN50x16.pt", "52378b40", "06ec9aa"),
    "RN50x64": (1024, 448, 1024, 16, 623_258_305, "RN50x64.pt", "be1cfb55", "9919d9c"),
    "ViT-B/32": (512, 224, 512, 8, 151_277_313, "ViT-B-32.pt", "40d36571", "eba950af"),
    "ViT-B/16": (512, 224, 512, 8, 149_620_737, "ViT-B-16.pt", "5806e77c", "8df416f"),
    "ViT-L/14": (768, 224, 768, 12, 427_616_513, "ViT-L-14.pt", "b8cca3fd", "37a03836"),
    "ViT-L/14@336px": (768, 336, 768, 12, 427_944_193, "ViT-L-14-336px.pt", "3035c92b", "8641f02"),
}

# open_clip's models of the same dimensions, with the exact GELU.
OPEN_CLIP = {
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}

OPENAI_PIXELS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "deviation": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize": "shortest",
}


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in parameters(architecture)}


def test_the_registry_is_the_embedded_model_and_openais_nine():
    assert list(MODELS) == ["shapes", *OPENAI]
    assert all(name == model.name for name, model in MODELS.items())


@pytest.mark.parametrize("name", OPENAI)
def test_numbers_addresses_and_digests(name):
    embed_dim, resolution, text_width, text_heads, scalars, file, first, last = OPENAI[name]
    model = MODELS[name]
    architecture = model.architecture
    assert (architecture.embed_dim, architecture.image.resolution) == (embed_dim, resolution)
    text = architecture.text
    assert (text.context_length, text.vocabulary_size, text.layers) == (77, 49408, 12)
    assert (text.width, text.heads) == (text_width, text_heads)
    assert {tower.activation for tower in architecture.transformers.values()} == {"quick_gelu"}
    assert count(architecture) == scalars
    assert model.sha256 is not None
    assert len(model.sha256) == 64
    assert model.sha256.startswith(first)
    assert model.sha256.endswith(last)
    assert model.url == f"https://openaipublic.azureedge.net/clip/models/{model.sha256}/{file}"


def test_the_embedded_model_has_no_address():
    assert MODELS["shapes"].url is None
    assert MODELS["shapes"].architecture == SHAPES


def test_tensors_of_vit_b_32():
    table = parameters(MODELS["ViT-B/32"].architecture)
    assert len(table) == 302
    assert sum(prod(parameter.shape) for parameter in table) == 151_277_313
    assert len(parameters(MODELS["ViT-L/14"].architecture)) == 446


def test_heads_and_widths_of_the_resnets():
    for name, width, blocks in [
        ("RN50", 64, (3, 4, 6, 3)),
        ("RN101", 64, (3, 4, 23, 3)),
        ("RN50x4", 80, (4, 6, 10, 6)),
        ("RN50x16", 96, (6, 8, 18, 8)),
        ("RN50x64", 128, (3, 15, 36, 10)),
    ]:
        image = MODELS[name].architecture.image
        assert (image.width, image.blocks, image.heads) == (width, blocks, width // 2)
        assert (image.feature_width, image.grid) == (32 * width, image.resolution // 32)


@pytest.mark.parametrize("name", MODELS)
def test_inference_is_the_inverse_of_the_table(name):
    architecture = MODELS[name].architecture
    assert infer(shapes_of(architecture)) == architecture
    assert name_of(architecture) == name
    assert name_of(architecture.with_activation("gelu")) == OPEN_CLIP.get(name)


@pytest.mark.parametrize("name", MODELS)
def test_descriptions_survive_json(name):
    architecture = MODELS[name].architecture
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_a_description_in_full():
    assert MODELS["ViT-B/32"].architecture.to_dict() == {
        "embed_dim": 512,
        "image": {
            "kind": "vit",
            "resolution": 224,
            "patch": 32,
            "width": 768,
            "layers": 12,
            "heads": 12,
            "mlp_width": 3072,
            "activation": "quick_gelu",
            "epsilon": 1e-5,
            "pixels": OPENAI_PIXELS,
        },
        "text": {
            "kind": "transformer",
            "context_length": 77,
            "vocabulary_size": 49408,
            "width": 512,
            "layers": 12,
            "heads": 8,
            "mlp_width": 2048,
            "activation": "quick_gelu",
            "epsilon": 1e-5,
            "end_of_text": 49407,
        },
        "logit_bias": False,
    }
    assert MODELS["RN50"].architecture.to_dict()["image"] == {
        "kind": "resnet",
        "resolution": 224,
        "width": 64,
        "blocks": [3, 4, 6, 3],
        "heads": 32,
        "pixels": OPENAI_PIXELS,
    }


def test_older_descriptions_are_read():
    """They have one activation beside the towers, and no field for what was the same in all models."""
    old = {
        "embed_dim": 512,
        "image": {"kind": "vit", "resolution": 224, "patch": 32, "width": 768, "layers": 12, "heads": 12},
        "text": {"context_length": 77, "vocabulary_size": 49408, "width": 512, "layers": 12, "heads": 8},
        "activation": "gelu",
    }
    assert Architecture.from_dict(old) == MODELS["ViT-B/32"].architecture.with_activation("gelu")


def test_every_number_of_a_tower_survives_json():
    architecture = Architecture(
        32,
        VisionTransformer(
            32, 8, 64, 2, 4, 100, "gelu", 1e-6, Pixels((0.5,) * 3, (0.25, 0.5, 1.0), "bilinear", "squash")
        ),
        TextTransformer(16, 60, 64, 2, 2, 300, "gelu_tanh", 1e-3, end_of_text=57),
        logit_bias=True,
    )
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    found = infer(shapes_of(architecture))
    assert (found.image.mlp_width, found.text.mlp_width) == (100, 300)


def test_differences_are_named_by_their_fields():
    one = MODELS["ViT-B/32"].architecture
    other = replace(one, text=replace(one.text, heads=4, activation="gelu"))
    assert differences(other, one) == [
        "text.heads 4 rather than 8",
        "text.activation gelu rather than quick_gelu",
    ]
    assert differences(one, one) == []


VIT, RESNET = MODELS["ViT-B/32"].architecture.to_dict(), MODELS["RN50"].architecture.to_dict()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "The description of the architecture cannot be read: 'NoneType' object is not iterable."),
        (
            [],
            "The description of the architecture cannot be read: its fields are [], expected ['embed_dim', "
            "'image', 'logit_bias', 'text'].",
        ),
        (
            VIT | {"bias": 1},
            "The description of the architecture cannot be read: its fields are ['bias', 'embed_dim', 'image', "
            "'logit_bias', 'text'], expected ",
        ),
        (
            VIT | {"image": 5},
            "The description of the architecture cannot be read: its image is 5, expected the kind and the fields of a "
            "tower.",
        ),
        (
            VIT | {"image": {"kind": "perceiver"}},
            "The description of the architecture cannot be read: its image tower is of the kind 'perceiver', expected "
            "one of vit, resnet, mixer",
        ),
        (
            VIT | {"image": {"width": 768}},
            "The description of the architecture cannot be read: its image tower is of the kind None, expected one of ",
        ),
        (
            VIT | {"image": VIT["image"] | {"depth": 3}},
            "The description of the architecture cannot be read: its image tower has no field depth, only resolution, ",
        ),
        (
            VIT | {"text": {"width": 512}},
            "The description of the architecture cannot be read: its text tower lacks context_length, vocabulary_size, "
            "layers, heads, activation.",
        ),
        (
            VIT | {"text": VIT["text"] | {"mlp_width": 0}},
            "The architecture's text.mlp_width is 0; it must be a whole number above 0.",
        ),
        (
            VIT | {"text": VIT["text"] | {"end_of_text": 49408}},
            "The architecture's text.end_of_text is 49408, which is outside the vocabulary of 49408.",
        ),
        (
            VIT | {"text": VIT["text"] | {"end_of_text": -1}},
            "The architecture's text.end_of_text is -1; it must be a whole number from 0.",
        ),
        (
            VIT | {"image": VIT["image"] | {"epsilon": 0}},
            "The architecture's image.epsilon is 0; it must be a number from 1e-12 to 0.001.",
        ),
        (
            VIT | {"image": VIT["image"] | {"pixels": {"deviation": [0.5, 0.5, 0]}}},
            "The architecture's image.pixels.deviation is 0; it must be a number from 0.00392 to 1.",
        ),
        (
            VIT | {"image": VIT["image"] | {"pixels": {"mean": [0.5, 0.5]}}},
            "The architecture's image.pixels.mean is (0.5, 0.5); it must be three numbers.",
        ),
        (
            VIT | {"image": VIT["image"] | {"pixels": {"colour": 1}}},
            "The description of the architecture cannot be read: its image tower's pixels have no field colour, only ",
        ),
        (
            VIT | {"image": VIT["image"] | {"pixels": {"resize": "longest"}}},
            "The architecture's image.pixels.resize is 'longest'; it must be shortest or squash.",
        ),
        (VIT | {"embed_dim": "512"}, "The architecture's embed_dim is '512'; it must be a whole number above 0."),
        (VIT | {"embed_dim": True}, "The architecture's embed_dim is True; it must be a whole number above 0."),
        (VIT | {"embed_dim": 512.0}, "The architecture's embed_dim is 512.0; it must be a whole number above 0."),
        (
            VIT | {"text": VIT["text"] | {"layers": 0}},
            "The architecture's text.layers is 0; it must be a whole number above 0.",
        ),
        (
            VIT | {"text": VIT["text"] | {"layers": 10**12}},
            "The architecture's text.layers is 1000000000000, more than any model that can be built.",
        ),
        (
            VIT | {"image": VIT["image"] | {"width": 64 * 10**9}},
            "The architecture's image.width is 64000000000, more than any model that can be built.",
        ),
        (VIT | {"logit_bias": 1}, "The architecture's logit_bias is 1; it must be true or false."),
        (
            VIT | {"text": VIT["text"] | {"activation": "relu"}},
            "The architecture's text.activation is 'relu'; it must be quick_gelu, gelu or gelu_tanh.",
        ),
        (
            RESNET | {"image": RESNET["image"] | {"width": 1}},
            "The architecture's image.width is 1; half of it must be a whole number above 0.",
        ),
        (
            VIT | {"image": VIT["image"] | {"resolution": 225}},
            "The image resolution 225 is not a multiple of its patch (32).",
        ),
        (
            VIT | {"image": VIT["image"] | {"heads": 7}},
            "The image tower's width 768 cannot be divided into 7 heads.",
        ),
        (
            VIT | {"text": VIT["text"] | {"heads": 7}},
            "The text tower's width 512 cannot be divided into 7 heads.",
        ),
        (
            RESNET | {"image": RESNET["image"] | {"resolution": 230}},
            "The image resolution 230 is not a multiple of 32 (32).",
        ),
        (
            RESNET | {"image": RESNET["image"] | {"blocks": [3, 4, 6]}},
            "The architecture's image.blocks is (3, 4, 6); it must be four numbers.",
        ),
        (
            RESNET | {"image": RESNET["image"] | {"blocks": [3, 4, -6, 3]}},
            "The architecture's image.blocks is (3, 4, -6, 3); it must be a whole number above 0.",
        ),
        (
            RESNET | {"image": RESNET["image"] | {"blocks": [3, 4, 10**9, 3]}},
            "The architecture's image.blocks is (3, 4, 1000000000, 3), more than any model that can be built.",
        ),
    ],
)
def test_each_impossible_description_has_its_sentence(data, message):
    with pytest.raises(ClipError) as caught:
        Architecture.from_dict(data)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(".")


DECISIVE = [
    ("ViT-B/32", "text_projection"),
    ("ViT-B/32", "visual.conv1.weight"),
    ("ViT-B/32", "visual.positional_embedding"),
    ("ViT-B/32", "token_embedding.weight"),
    ("ViT-B/32", "positional_embedding"),
    ("RN50", "visual.layer1.0.conv1.weight"),
    ("RN50", "visual.attnpool.positional_embedding"),
]


@pytest.mark.parametrize(("name", "parameter"), DECISIVE)
def test_each_tensor_that_decides_must_be_there_and_fit(name, parameter):
    shapes = shapes_of(MODELS[name].architecture)
    expected = len(shapes[parameter])
    with pytest.raises(CheckpointError) as caught:
        infer({key: shape for key, shape in shapes.items() if key != parameter})
    assert str(caught.value) == f"The weights do not look like a CLIP: {parameter} is missing."
    for shape in ((), (1,) * (expected + 1), (0,) * expected):
        with pytest.raises(CheckpointError) as caught:
            infer(shapes | {parameter: shape})
        assert str(caught.value) == (
            f"The weights do not look like a CLIP: {parameter} has shape {shape}, expected {expected} axes."
        )


@pytest.mark.parametrize("rows", [1, 3, 51])
def test_a_grid_must_be_square(rows):
    shapes = shapes_of(MODELS["ViT-B/32"].architecture) | {"visual.positional_embedding": (rows, 768)}
    with pytest.raises(CheckpointError) as caught:
        infer(shapes)
    assert str(caught.value) == (
        f"The weights do not look like a CLIP: visual.positional_embedding has {rows} rows, expected a square + 1."
    )


def test_a_tower_must_have_layers():
    shapes = {
        name: shape
        for name, shape in shapes_of(MODELS["ViT-B/32"].architecture).items()
        if not name.startswith("transformer.resblocks.")
    }
    with pytest.raises(CheckpointError) as caught:
        infer(shapes)
    assert str(caught.value) == (
        "The weights do not look like a CLIP: The architecture's text.layers is 0; it must be a whole number above 0."
    )


@pytest.mark.parametrize("wrong", [[[1]], "3", float("nan"), True, -1], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_of_another_type_is_named_with_what_it_must_be(name, wrong):
    described = EXAMPLES[name].to_dict()
    for place in ("image", "text"):
        for field in described[place].keys() - {"kind"}:
            with pytest.raises(ClipError, match=rf"^The architecture's {place}\.{field}\b.* is .*; it must be .*\.$"):
                Architecture.from_dict(described | {place: described[place] | {field: wrong}})
