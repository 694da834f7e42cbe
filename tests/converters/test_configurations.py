"""What is not in the weights: taken from the configuration beside them, stated, assumed, asked for, or refused."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.layouts import open_clip as open_clip_layout
from clip_core.layouts.parts import Word
from clip_core.models import MODELS, name_of
from clip_core.naming import parameters
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.text import vocabulary
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, convert, inspect, knowledge, manifest, read, write
from tests.converters.small import ARCHITECTURES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip as open_clip_library

VIT = ARCHITECTURES["vit"]
# Of OpenAI's kind as far as tensors tell.
PLAIN = Architecture(8, VisionTransformer(16, 8, 64, 1, 1), TextTransformer(8, 49408, 64, 1, 1))
ALL = ("activation quick_gelu", "heads 64 wide", "epsilon 1e-05", "end of text 49407", "OpenAI's pixels")


def words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    return [word for one in LAYOUTS.values() for word in one.words(path, layout, inferred)]


def bare(architecture: Architecture, path: Path) -> Path:
    """Weights of zeros without a manifest."""
    save_file({p.name: np.zeros(p.shape, np.float16) for p in parameters(architecture)}, path)
    return path


def open_clip(model: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], pixels: dict[str, Any]) -> str:
    """A configuration of open_clip's for VIT."""
    image = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2}
    language = {"context_length": 16, "vocab_size": 50, "width": 128, "heads": 2, "layers": 3}
    model = {"embed_dim": 32, "vision_cfg": image | vision, "text_cfg": language | text} | model
    return json.dumps({"model_cfg": model, "preprocess_cfg": pixels})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (({}, {}, {}, {}), {"image.activation": "gelu", "text.activation": "gelu"}),
        (({"quick_gelu": True}, {}, {}, {}), {"image.activation": "quick_gelu", "text.activation": "quick_gelu"}),
        (({}, {"act_kwargs": {"approximate": "tanh"}}, {}, {}), {"image.activation": "gelu_tanh"}),
        (({}, {"head_width": 16}, {"heads": 8}, {}), {"image.heads": 4, "text.heads": 8}),
        (({}, {"norm_kwargs": {"eps": 1e-6}}, {"norm_kwargs": {}}, {}), {"image.epsilon": 1e-6, "text.epsilon": 1e-5}),
        (({}, {}, {"pool_type": "eos", "eos_id": 48}, {}), {"text.end_of_text": 48}),
        (({}, {}, {"pool_type": "eos", "hf_tokenizer_name": "facebook/xlm-v-base"}, {}), {"text.end_of_text": 2}),
        (({}, {"patch_dropout": 0.5, "pool_type": "tok"}, {"pool_type": "argmax"}, {}), {"text.end_of_text": 49}),
        (
            ({}, {}, {}, {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}),
            {"image.pixels": Pixels((0.5,) * 3, (0.25,) * 3, "bilinear", "squash")},
        ),
        (({}, {}, {}, {"interpolation": "random", "size": [32, 32]}), {"image.pixels": OPENAI_PIXELS}),
    ],
)
def test_open_clip_says_everything(changes, expected, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(open_clip(*changes))
    found = read(bare(VIT, tmp_path / "whatever its name.safetensors"))
    assert found.assumed == ()
    fields = found.architecture.named_fields
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (({"multimodal_cfg": {"width": 8}}, {}, {}, {}), "its model_cfg sets 'multimodal_cfg' to {'width': 8}, which"),
        (
            ({}, {}, {"no_causal_mask": True}, {}),
            "its text_cfg sets 'no_causal_mask' to True, which cannot be computed",
        ),
        (({}, {}, {"pool_type": "last"}, {}), "its text_cfg sets 'pool_type' to 'last', which cannot be computed here"),
        (({}, {}, {"proj_bias": True}, {}), "its text_cfg sets 'proj_bias' to True"),
        (({}, {}, {"hf_tokenizer_name": "bert"}, {}), "its text_cfg sets 'hf_tokenizer_name' to 'bert'"),
        (({}, {"pool_type": "avg"}, {}, {}), "its vision_cfg sets 'pool_type' to 'avg'"),
        (({}, {"no_ln_pre": True}, {}, {}), "its vision_cfg sets 'no_ln_pre' to True"),
        (({}, {"ls_init_value": 0.1}, {}, {}), "its vision_cfg sets 'ls_init_value' to 0.1"),
        (({}, {"timm_model_name": "vit"}, {}, {}), "its vision_cfg sets 'timm_model_name' to 'vit'"),
        (({}, {"invented": 3}, {}, {}), "its vision_cfg sets 'invented' to 3"),
        (
            ({}, {"act_kwargs": {"inplace": True}}, {}, {}),
            "its act_kwargs set 'inplace', which cannot be computed here",
        ),
        (({"quick_gelu": True}, {"act_kwargs": {"approximate": "tanh"}}, {}, {}), "its act_kwargs set 'approximate'"),
        (({}, {"norm_kwargs": {"bias": False}}, {}, {}), "its norm_kwargs set 'bias', which cannot be computed here"),
        (({}, {"head_width": 0}, {}, {}), "its head_width is 0; it must be a whole number from 1"),
        (({}, {"width": "64"}, {}, {}), "its width is '64'; it must be a whole number from 1"),
        (({}, {"mlp_ratio": "4"}, {}, {}), "its mlp_ratio is '4'; it must be a number above 0"),
        (({}, {"mlp_ratio": 5.0}, {}, {}), "image.mlp_width is 320 by open_clip_config.json beside it, but 256 by the"),
        (({"embed_dim": 64}, {}, {}, {}), "embed_dim is 64 by open_clip_config.json beside it, but 32 by the weights"),
        (
            ({}, {"layers": [1, 1, 1, 1]}, {}, {}),
            "image.blocks is (1, 1, 1, 1) by open_clip_config.json beside it, but",
        ),
        (({}, {}, {}, {"resize_mode": "longest"}), "image.pixels.resize is 'longest'; it must be shortest or squash"),
        (({}, {}, {}, {"mean": 0.5}), "image.pixels.mean is 0.5; it must be three numbers"),
        (({}, {}, {}, {"size": 64}), "preprocess_cfg has the size 64, and the image tower 32"),
        (({}, {}, {}, {"sharpen": True}), "preprocess_cfg has the key 'sharpen', which is not known here"),
    ],
)
def test_open_clip_asks_for_what_cannot_be(changes, what, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(open_clip(*changes))
    with pytest.raises(CheckpointError) as caught:
        read(bare(VIT, tmp_path / "a.safetensors"))
    assert what in str(caught.value)


B32 = MODELS["ViT-B/32"].architecture


def huggingface(folder: Path, config: dict[str, Any], processor: dict[str, Any] | None = None) -> Architecture:
    """What a folder of Hugging Face's says of a model with the shapes of ViT-B/32."""
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return knowledge.settle(B32, words(folder / "model.safetensors", "huggingface", B32))[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),  # whatever is left out is what transformers' classes have
        ({"text_config": {"eos_token_id": 2}}, {}),  # the highest token
        ({"text_config": {"eos_token_id": 49000}}, {"text.end_of_text": 49000}),
        ({"vision_config": {"num_attention_heads": 6}}, {"image.heads": 6}),
        (
            {"text_config": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}},
            {"text.activation": "gelu_tanh", "text.epsilon": 1e-6},
        ),
        ({"vision_config_dict": {"hidden_act": "gelu"}}, {"image.activation": "gelu"}),
        # The older key goes before the newer one, and so do the defaults of what it leaves out.
        (
            {
                "text_config": {"hidden_act": "gelu", "num_attention_heads": 4},
                "text_config_dict": {"num_attention_heads": 2},
            },
            {"text.heads": 2},
        ),
    ],
)
def test_huggingface_and_what_it_leaves_out(config, expected, tmp_path):
    found = huggingface(tmp_path, config).named_fields
    assert found == B32.named_fields | expected


def test_an_end_of_text_of_huggingface_that_is_null_is_assumed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": None}}))
    said = words(tmp_path / "model.safetensors", "huggingface", B32)
    assert knowledge.settle(B32, said)[1] == ("image.pixels", "text.end_of_text")


SQUARE = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({}, OPENAI_PIXELS),
        ({"size": 224, "crop_size": 224, "image_mean": [0.5] * 3}, replace(OPENAI_PIXELS, mean=(0.5,) * 3)),
        ({"do_normalize": False}, replace(OPENAI_PIXELS, mean=(0.0,) * 3, deviation=(1.0,) * 3)),
        ({"resample": 2}, replace(OPENAI_PIXELS, interpolation="bilinear")),
        ({"do_center_crop": False, "size": SQUARE}, replace(OPENAI_PIXELS, resize="squash")),
        ({"size": SQUARE}, replace(OPENAI_PIXELS, resize="squash")),
    ],
)
def test_the_pixels_of_huggingface(processor, expected, tmp_path):
    assert huggingface(tmp_path, {}, processor).image.pixels == expected


@pytest.mark.parametrize(
    ("processor", "what"),
    [
        ({"do_resize": False}, "it sets do_resize to False"),
        ({"do_flip_channel_order": True}, "it sets 'do_flip_channel_order' to True, which cannot be computed here"),
        ({"resample": 1}, "it sets resample to 1; only 2 (bilinear) and 3 (bicubic) are known here"),
        ({"rescale_factor": 1}, "it sets rescale_factor to 1, expected 1/255"),
        (
            {"size": 256},
            "it makes pictures of size {'shortest_edge': 256}, crop_size {'height': 224, 'width': 224}, and",
        ),
        ({"do_center_crop": False}, "it resizes the shorter side without do_center_crop"),
        ({"image_std": [0.5, 0.5]}, "image.pixels.deviation is (0.5, 0.5); it must be three numbers"),
    ],
)
def test_pixels_that_cannot_be(processor, what, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        huggingface(tmp_path, {}, processor)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "activation"),
    [
        ("model: ViT-B-32\nforce_quick_gelu: False\n", "gelu"),
        ("model: ViT-B-32\nforce_quick_gelu: True\n", "quick_gelu"),
        ("model: ViT-B-32-quickgelu\nforce_quick_gelu: False\n", "quick_gelu"),
    ],
)
def test_a_run_of_open_clips_trainer(settings, activation, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "params.txt").write_text(settings)
    found = read(bare(PLAIN, tmp_path / "checkpoints" / "epoch_1.safetensors"))
    assert (found.architecture.image.activation, found.architecture.text.activation) == (activation, activation)
    assert found.assumptions() == ("heads 64 wide", *ALL[2:])


def test_the_heads_of_a_large_model_by_the_name_in_its_run(tmp_path):
    (tmp_path / "params.txt").write_text("model: ViT-H-14\nforce_quick_gelu: False\n")
    large = replace(B32, image=replace(B32.image, width=1280, mlp_width=5120, heads=20))
    (word,) = words(tmp_path / "checkpoints" / "epoch_1.pt", "openai", large)
    assert word.fields["image.heads"] == 16


@pytest.mark.parametrize("model", ["local-dir:ViT-B-32", "hf-hub:someone/ViT-B-32", "ViT-B-32-mine", None])
def test_a_name_that_is_none_of_open_clips_says_nothing(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    name = "lr: 0.1" if model is None else f"model: {model}"
    (tmp_path / "params.txt").write_text(f"force_quick_gelu: False\nimage_mean: None\n{name}\n")
    path = bare(PLAIN, tmp_path / "checkpoints" / "epoch_1.safetensors")
    assert (read(path).architecture, read(path).assumptions()) == (PLAIN, ALL)


def test_the_trainers_names_are_those_of_open_clip():
    for name, head_width in open_clip_layout._TRAINERS_HEADS.items():
        config = open_clip_library.get_model_config(name)
        assert config["vision_cfg"].get("head_width", 64) == head_width
        assert not config.get("quick_gelu", False)
        assert config["text_cfg"]["width"] == 64 * config["text_cfg"]["heads"]
        assert config["text_cfg"].keys() <= {"context_length", "vocab_size", "width", "heads", "layers"}


@pytest.mark.parametrize(
    ("settings", "pixels"),
    [
        ("image_mean: [0.5, 0.5, 0.5]", Pixels(mean=(0.5,) * 3)),
        (
            "image_std: [0.5, 0.25, 0.5]\nimage_interpolation: bilinear",
            Pixels(OPENAI_PIXELS.mean, (0.5, 0.25, 0.5), "bilinear"),
        ),
        ("image_resize_mode: squash\nimage_interpolation: random", Pixels(resize="squash")),
    ],
)
def test_the_pixels_of_a_run(settings, pixels, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "params.txt").write_text(f"model: my-own\n{settings}\n")
    found = read(bare(PLAIN, tmp_path / "checkpoints" / "epoch_1.safetensors"))
    assert (found.architecture.image.pixels, found.assumptions()) == (pixels, ALL[:-1])


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("image_mean: [0.5, 0.5", "params.txt of its run cannot be used: its image_mean is '[0.5, 0.5'"),
        ("image_mean: [0.5]", "what is said of it cannot be: "),
        ("image_resize_mode: longest", "what is said of it cannot be: "),
    ],
)
def test_pixels_of_a_run_that_cannot_be(setting, what, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "params.txt").write_text(setting)
    with pytest.raises(CheckpointError, match=re.escape(what)):
        read(bare(PLAIN, tmp_path / "checkpoints" / "epoch_1.safetensors"))


def test_a_bare_file_is_read_as_openais_and_says_so(tmp_path):
    found = read(bare(PLAIN, tmp_path / "a.safetensors"))
    assert (found.architecture, found.assumptions()) == (PLAIN, ALL)
    assert inspect(tmp_path / "a.safetensors").assumed == ALL
    # Another project's configuration is none of its business.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert read(tmp_path / "a.safetensors").assumptions() == ALL


def test_what_was_assumed_or_stated_is_carried(tmp_path):
    bare(PLAIN, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "assumed.pt").assumed == ALL
    assert read(tmp_path / "assumed.pt").assumptions() == ALL
    # An assumption is no knowledge: it may still be stated.
    stated = convert(tmp_path / "assumed.pt", tmp_path / "stated.h5", activation="gelu", heads=(4, 2))
    assert stated.assumed == ALL[2:]
    found = read(tmp_path / "stated.h5")
    assert (found.architecture.image.heads, found.architecture.text.heads) == (4, 2)
    assert {tower.activation for tower in found.architecture.transformers.values()} == {"gelu"}
    with pytest.raises(
        CheckpointError, match=r"image\.activation is 'quick_gelu' by what was stated, but 'gelu' by its"
    ):
        read(tmp_path / "stated.h5", activation="quick_gelu")


@pytest.mark.parametrize(("layout", "file"), [("huggingface", "config.json"), ("open_clip", "open_clip_config.json")])
@pytest.mark.parametrize("kept", [True, False], ids=["manifest", "no manifest"])
def test_a_configuration_written_here_settles_nothing_that_was_assumed(layout, file, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "openai_merges", lambda: None)  # which nothing here needs
    report = convert(bare(PLAIN, tmp_path / "a.safetensors"), tmp_path / "folder", layout=layout)
    assert report.assumed == ALL
    if not kept:
        save_file(load_file(report.target), report.target)
    assert read(tmp_path / "folder").assumptions() == ALL
    # Who corrects it there has stated it.
    config = tmp_path / "folder" / file
    key, other = ('"hidden_act": "quick_gelu"', '"hidden_act": "gelu"')
    if layout == "open_clip":
        key, other = ('"quick_gelu": true', '"quick_gelu": false')
    config.write_text(config.read_text().replace(key, other))
    found = read(tmp_path / "folder")
    assert {tower.activation for tower in found.architecture.transformers.values()} == {"gelu"}
    assert found.assumptions() == ALL[1:]
    config.write_text(config.read_text().replace('"triclip_assumed": [', '"triclip_assumed": 5, "x": ['))
    with pytest.raises(CheckpointError, match=rf"{file} beside it cannot be used: its triclip_assumed is int, not a"):
        read(tmp_path / "folder")


def both(folder: Path, pixels: dict[str, Any] | None, processor: dict[str, Any] | None, quick: bool = False) -> Path:
    """Weights with the configurations of both libraries beside them."""
    model = json.loads(open_clip({"quick_gelu": quick}, {}, {}, {}))["model_cfg"]
    preparation = {} if pixels is None else {"preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model} | preparation))
    shape = {"hidden_act": "gelu", "num_hidden_layers": 2, "intermediate_size": 256, "hidden_size": 64}
    image = shape | {"num_attention_heads": 1, "image_size": 32, "patch_size": 8}
    text = shape | {"num_attention_heads": 2, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3}
    text |= {"max_position_embeddings": 16, "vocab_size": 50, "eos_token_id": 49}
    config = {"model_type": "clip", "projection_dim": 32, "vision_config": image, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(SQUARE | processor))
    return bare(VIT, folder / "a.safetensors")


SQUARE = {"size": {"shortest_edge": 32}, "crop_size": 32}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def test_two_configurations_tell_more_than_one(tmp_path):
    halves = Pixels((0.5,) * 3, (0.5,) * 3)
    path = both(tmp_path, {"mean": [0.5] * 3, "std": [0.5] * 3}, None)
    assert (read(path).architecture.image.pixels, read(path).assumed) == (halves, ())
    path = both(tmp_path, None, HALVES)
    assert (read(path).architecture.image.pixels, read(path).assumed) == (halves, ())


def test_two_configurations_that_contradict_are_refused(tmp_path):
    path = both(tmp_path, None, None, quick=True)
    with pytest.raises(
        CheckpointError,
        match=r"activation is 'gelu' by config\.json beside it, but 'quick_gelu' by open_clip_config\.js",
    ):
        read(path)
    path = both(tmp_path, {}, HALVES)
    with pytest.raises(
        CheckpointError, match=r"pixels is .* by preprocessor_config\.json beside it, but .* by open_clip_"
    ):
        read(path)


def test_the_two_files_of_a_processor(tmp_path):
    path = both(tmp_path, None, HALVES)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SQUARE | HALVES}))
    assert read(path).architecture.image.pixels == Pixels((0.5,) * 3, (0.5,) * 3)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SQUARE}))
    with pytest.raises(
        CheckpointError, match=r"by processor_config\.json beside it, but .* by preprocessor_config\.json"
    ):
        read(path)
    (tmp_path / "processor_config.json").write_text("{}")  # which says nothing of pictures
    assert read(path).architecture.image.pixels == Pixels((0.5,) * 3, (0.5,) * 3)


def test_a_statement_against_a_configuration_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(open_clip({}, {}, {}, {}))
    bare(VIT, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is 'quick_gelu' by what was stated, but 'gelu' by open_clip_config\.json"
    ):
        read(tmp_path / "a.safetensors", activation="quick_gelu")
    assert read(tmp_path / "a.safetensors", activation="gelu", heads=(1, 2)).assumed == ()


def test_a_known_digest_says_everything(tmp_path, monkeypatch):
    bare(PLAIN, tmp_path / "a.safetensors")
    digest = inspect(tmp_path / "a.safetensors").sha256
    monkeypatch.setitem(MODELS, "known", replace(MODELS["RN50"], name="known", architecture=PLAIN, sha256=digest))
    found = read(tmp_path / "a.safetensors")
    assert (name_of(found.architecture), found.assumed) == ("known", ())


def test_what_is_expected_takes_the_place_of_openais(tmp_path):
    """A recipe's architecture: it settles what nobody says, and contradicts nobody."""
    expected = PLAIN.with_activation("gelu")
    found = read(bare(PLAIN, tmp_path / "a.safetensors"), expected=expected)
    assert (found.architecture, found.assumptions()) == (expected, ("activation gelu", *ALL[1:]))
    write(ModelFile(found.weights, PLAIN), tmp_path / "b.safetensors")
    with pytest.raises(
        CheckpointError, match=r"image\.activation is 'quick_gelu' by its manifest, but 'gelu' by the rec"
    ):
        read(tmp_path / "b.safetensors", expected=expected)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (replace(PLAIN, text=replace(PLAIN.text, vocabulary_size=50, end_of_text=49)), "the vocabulary has 50 tokens"),
        (
            replace(PLAIN, image=replace(PLAIN.image, width=96, mlp_width=384)),
            "heads of 64 do not fit the image tower's",
        ),
        (replace(PLAIN, text=replace(PLAIN.text, mlp_width=320)), "the text tower's MLP is 320 wide inside"),
        (replace(PLAIN, image=replace(PLAIN.image, width=1280, mlp_width=5120)), "the image tower is 1280 wide"),
    ],
)
def test_what_is_none_of_openais_is_asked_for(architecture, reason, tmp_path):
    path = bare(architecture, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert f"it is none of OpenAI's models: {reason}" in str(caught.value)
    state = str(caught.value).index(
        "state it with clip convert FILE TARGET --activation quick_gelu|gelu|gelu_tanh --he"
    )
    like = str(caught.value).index("name the model that it comes from with clip convert FILE TARGET --like ORIGINAL")
    # Only the original tells a vocabulary, too.
    assert (like < state) == (architecture.text.vocabulary_size == 50)
    assert str(caught.value).endswith(".")
    assert len(inspect(path).faults) == 1
    found = read(path, activation="gelu", heads=(1, 1))
    assert found.architecture.text.vocabulary_size == architecture.text.vocabulary_size


@pytest.mark.parametrize(
    ("stated", "what"),
    [
        ({"activation": "relu"}, "There is no activation 'relu'; choose one of quick_gelu, gelu, gelu_tanh."),
        ({"heads": (1,)}, "The heads are (1,); give two numbers above 0, of the image and of the text tower."),
        ({"heads": (0, 1)}, "The heads are (0, 1); give two numbers above 0, of the image and of the text tower."),
        ({"heads": (3, 1)}, "The image tower's width 64 cannot be divided into 3 heads."),
    ],
)
def test_statements_that_cannot_be(stated, what, tmp_path):
    with pytest.raises(ClipError) as caught:
        read(bare(PLAIN, tmp_path / "a.safetensors"), **stated)
    assert str(caught.value).endswith(what)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"vocabulary": 5}, "its vocabulary is int, expected a text"),
        ({"vocabulary": ["a b"]}, "its vocabulary is list, expected a text"),
        ({"source_sha256": 5}, "its source_sha256 is int, expected a text"),
        ({"assumed": ["image.colour"]}, "it assumes 'image.colour', which is no field of the architecture"),
        ({"assumed": 5}, "the manifest cannot be read"),
        ({"format": 3}, "the manifest has format 3, expected 2; update this package"),
    ],
)
def test_a_manifest_with_values_of_other_types(change, what):
    """With a digest that is right, as somebody can make it."""
    body = json.loads(manifest.Manifest(PLAIN, {}).to_text()) | change
    del body["sha256"]
    with pytest.raises(CheckpointError) as caught:
        manifest.Manifest.from_text(json.dumps(body | {"sha256": manifest._digest(body)}))
    assert what in str(caught.value)


def test_a_manifest_of_the_first_format_is_read():
    """As files have it that were written when both towers had one activation, and nothing was known to be assumed."""
    body = json.loads(manifest.Manifest(VIT, {}).to_text())
    for name in ("sha256", "assumed"):
        del body[name]
    body |= {
        "format": 1,
        "architecture": {
            "embed_dim": 32,
            "image": {"kind": "vit", "resolution": 32, "patch": 8, "width": 64, "layers": 2, "heads": 1},
            "text": {"context_length": 16, "vocabulary_size": 50, "width": 128, "layers": 3, "heads": 2},
            "activation": "gelu",
        },
    }
    found = manifest.Manifest.from_text(json.dumps(body | {"sha256": manifest._digest(body)}))
    assert (found.architecture, found.assumed) == (VIT.with_activation("gelu"), ())
