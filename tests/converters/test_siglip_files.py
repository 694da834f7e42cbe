"""SigLIP's files: of transformers and open_clip, read and written, with the configuration and the tokenizer beside."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS, timm
from clip_core.pixels import Pixels
from clip_core.text.loading import tokenizer_from
from clip_core.towers.siglip import SIGLIP_PIXELS
from converters import ModelFile, convert, read, write
from tests.models import sample_weights
from tests.siglip import SIGLIP, siglip_folder, tokenizer_json
from tests.weights import same

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm as timm_library
    from open_clip.tokenizer import get_clean_fn
    from transformers import AutoTokenizer, Siglip2Config, Siglip2Model, SiglipImageProcessor, SiglipModel

WEIGHTS = sample_weights(SIGLIP)


@pytest.fixture
def folder(tmp_path) -> Path:
    return siglip_folder(tmp_path / "theirs")


def test_a_folder_of_transformers_says_all_of_its_model(folder):
    found = read(folder)
    pixels = replace(SIGLIP_PIXELS, interpolation="bilinear")
    assert found.architecture == replace(SIGLIP, image=replace(SIGLIP.image, pixels=pixels))
    assert (found.layout, found.assumed) == ("huggingface", ())
    state = {name: tensor.numpy() for name, tensor in SiglipModel.from_pretrained(folder).state_dict().items()}
    assert np.array_equal(found.weights["visual.attnpool.probe"], state["vision_model.head.probe"][0, 0])
    assert np.array_equal(found.weights["text.text_projection.bias"], state["text_model.head.bias"])
    tokens = tokenizer_from(found.vocabulary).tokenize("A red, CIRCLE!", SIGLIP.text.context_length)
    expected = ["\u2581red", "\u2581", "circle", "</s>", "</s>"]
    pieces = [piece for piece, _ in json.loads(tokenizer_json())["model"]["vocab"]]
    assert [pieces[token] for token in tokens[0]] == ["\u2581a", *expected, "</s>"]


def test_a_folder_is_written_back_bit_for_bit_and_transformers_loads_it(folder, tmp_path):
    convert(folder, tmp_path / "ours.safetensors")
    report = convert(tmp_path / "ours.safetensors", tmp_path / "back", layout="huggingface")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert same(after, {name: before[name] for name in after})
    assert before.keys() == after.keys()
    assert set(report.beside) == {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = SiglipModel.from_pretrained(tmp_path / "back")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
        processor = SiglipImageProcessor.from_pretrained(tmp_path / "back")
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in theirs.state_dict().items())
    ours = tokenizer_from(read(folder).vocabulary)
    texts = ["A red, CIRCLE!", "", "photo of th"]
    assert tokenizer(texts, padding="max_length", max_length=7)["input_ids"] == ours.tokenize(texts, 7).tolist()
    assert (processor.size["height"], processor.resample, list(processor.image_mean)) == (33, 2, [0.5] * 3)
    save_file(after, tmp_path / "back" / "model.safetensors")  # without a manifest
    assert read(tmp_path / "back").architecture == read(folder).architecture


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        (None, {"model_type": "blip"}, "it is of a model of the type 'blip'; known here are clip, metaclip_2, siglip"),
        ("vision_config", {"vision_use_head": False}, "its vision_use_head leaves out the attention pool, which"),
        ("text_config", {"hidden_act": "relu"}, "it sets hidden_act to 'relu', which cannot be computed here"),
        ("text_config", {"vocab_size": 51}, "vocabulary_size is 51 by config.json beside it, but 50 by the weights"),
        ("vision_config", {"image_size": 40}, "image_size is 40 and patch_size 8, and the weights are for 4 patches"),
        ("vision_config", {"num_channels": 1}, "its num_channels is 1, and pictures have 3 channels here"),
        (None, {"vision_config": {}}, r"config\.json beside it .*image_size is 224 and patch_size 16, and the weights"),
        (None, {"model_type": "clip"}, r"config\.json beside it .*type clip, and the image tower of .* kind siglip"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(folder, section, changes, sentence):
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=sentence):
        read(folder)


def test_a_naflex_model_is_refused_in_one_sentence(tmp_path):
    section = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1, "projection_size": 32}
    config = Siglip2Config(text_config=section | sizes, vision_config=section | {"num_patches": 16, "patch_size": 8})
    Siglip2Model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'}: The weights are those of a NaFlex model of SigLIP 2, whose pictures have "
        "different shapes, and here all have one; take the SigLIP 2 model for one resolution."
    )


def test_what_a_configuration_leaves_out_is_as_in_transformers(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    for section in ("text_config", "vision_config"):
        for name in ("hidden_act", "layer_norm_eps"):
            del config[section][name]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 33, "width": 33}}')
    assert (read(folder).architecture, read(folder).assumed) == (SIGLIP, ())


def test_without_a_configuration_what_is_usual_for_siglip_is_assumed(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match="heads of 64 do not fit the image tower's width 48"):
        read(tmp_path / "alone.safetensors")
    found = read(tmp_path / "alone.safetensors", activation="gelu_tanh", heads=(3, 2))
    assert found.architecture == replace(SIGLIP, image=replace(SIGLIP.image, resolution=32))
    assert found.assumptions() == ("epsilon 1e-06", "resolution 32", "SigLIP ViT's pixels")


def test_a_tokenizer_for_another_vocabulary_is_not_written(folder, tmp_path):
    larger = replace(SIGLIP, text=replace(SIGLIP.text, vocabulary_size=51))
    model = ModelFile(sample_weights(larger), larger, vocabulary=read(folder).vocabulary)
    with pytest.raises(ClipError, match="a tokenizer of 50 tokens, and its text tower is for 51; give the model's"):
        write(model, tmp_path / "folder", layout="huggingface")


def test_names_of_open_clip_become_those_of_transformers(tmp_path, folder):
    """And back, bit for bit."""
    architecture = read(folder).architecture
    write(ModelFile(WEIGHTS, architecture), tmp_path / "timm.safetensors", layout="timm")
    stored = load_file(tmp_path / "timm.safetensors")
    assert stored["visual.trunk.attn_pool.kv.weight"].shape == (96, 48)
    convert(tmp_path / "timm.safetensors", tmp_path / "hf", layout="huggingface")
    convert(tmp_path / "hf", tmp_path / "again.safetensors", layout="timm")
    assert same(load_file(tmp_path / "again.safetensors"), stored)
    assert {name: LAYOUTS["timm"].canonical(LAYOUTS["timm"].spell(name)) for name in WEIGHTS} == {
        name: name for name in WEIGHTS
    }
    assert read(tmp_path / "hf").architecture.image.pixels == Pixels((0.5,) * 3, (0.5,) * 3, "bilinear", "squash")


def test_a_part_of_the_pool_that_is_missing_is_named(tmp_path):
    write(ModelFile(WEIGHTS, SIGLIP), tmp_path / "timm.safetensors", layout="timm")
    stored = load_file(tmp_path / "timm.safetensors")
    del stored["visual.trunk.attn_pool.kv.bias"]
    save_file(stored, tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=r"visual\.attnpool\.attn\.in_proj_bias is missing"):
        read(tmp_path / "damaged.safetensors", activation="gelu_tanh", heads=(3, 2))


@pytest.fixture
def open_clip_folder(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes a folder as those of open_clip's SigLIP, with changes in two sections of its configuration.

    timm's ViT-B is as small there as that of `SIGLIP`.
    """
    monkeypatch.setitem(timm._SIZES, "base", (48, 2, 3, 80))
    image = replace(SIGLIP.image, resolution=32, patch=16, activation="gelu")
    architecture = replace(SIGLIP, image=image, text=replace(SIGLIP.text, activation="gelu"))

    def make(text: dict[str, Any], vision: dict[str, Any]) -> Path:
        write(ModelFile(sample_weights(architecture), architecture), tmp_path / "whole.safetensors", layout="timm")
        folder = tmp_path / "folder"
        folder.mkdir()
        save_file(load_file(tmp_path / "whole.safetensors"), folder / "open_clip_model.safetensors")
        language = {
            **{"context_length": 7, "vocab_size": 50, "width": 32, "heads": 2, "layers": 3, "mlp_ratio": 2.25},
            **{"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}},
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
        }
        images = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224"}
        images |= {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
        model = {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True}
        model |= {"vision_cfg": images | vision, "text_cfg": language | text}
        pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pixels}))
        (folder / "tokenizer.json").write_text(tokenizer_json())
        (folder / "tokenizer_config.json").write_text('{"pad_token": "</s>"}')
        return folder

    return make


def test_a_folder_of_open_clip_says_all_of_its_model(open_clip_folder):
    """With the exact GELU, which open_clip computes there, and the cleaning of its texts."""
    found = read(open_clip_folder({}, {}))
    assert (found.layout, found.assumed) == ("timm", ())
    assert (found.architecture.image.activation, found.architecture.text.activation) == ("gelu", "gelu")
    assert (found.architecture.image.heads, found.architecture.image.epsilon) == (3, 1e-6)
    assert found.architecture.image.pixels == SIGLIP_PIXELS
    tokenizer = tokenizer_from(found.vocabulary)
    for text in ("A_red,  CIRCLE!", " photo\tof (a) th-circle "):
        assert tokenizer.encode(text) == tokenizer.encode(get_clean_fn("canonicalize")(text))
    assert tokenizer.encode("A_red") == tokenizer.encode("a red") != tokenizer.encode("ared")


@pytest.mark.parametrize(
    ("text", "vision", "sentence"),
    [
        ({"pool_type": "argmax"}, {}, "its text_cfg sets 'pool_type' to 'argmax', and a SigLIP has 'last' there"),
        ({"no_causal_mask": False}, {}, "its text_cfg sets 'no_causal_mask' to False, and a SigLIP has True there"),
        ({"tokenizer_kwargs": {"language": "en"}}, {}, "its text_cfg sets 'tokenizer_kwargs' to {'language': 'en'}"),
        ({}, {"timm_pool": "avg"}, "its vision_cfg sets 'timm_pool' to 'avg', and a SigLIP has 'map' there"),
        ({}, {"timm_model_name": "resnet50"}, "its vision_cfg sets 'timm_model_name' to 'resnet50', which cannot be"),
        (
            {},
            {"timm_model_name": "vit_large_patch16_siglip_256"},
            "image.width is 1024 by open_clip_config",
        ),
    ],
)
def test_what_open_clip_puts_together_otherwise_is_refused(text, vision, sentence, open_clip_folder):
    with pytest.raises(CheckpointError) as caught:
        read(open_clip_folder(text, vision))
    assert sentence in str(caught.value)


@pytest.mark.slow
def test_every_trunk_is_timms():
    """And of the same activation."""
    found = {name: timm.trunk(name) for name in timm_library.list_models("vit_*_siglip_*") if "gap" not in name}
    assert len(found) == 16
    for name, fields in found.items():
        with torch.device("meta"):
            trunk = timm_library.create_model(name, num_classes=0)
        activation = trunk.blocks[0].mlp.act
        assert fields == {
            "width": trunk.embed_dim,
            "layers": len(trunk.blocks),
            "heads": trunk.attn_pool.num_heads,
            "mlp_width": trunk.blocks[0].mlp.fc1.out_features,
            "patch": trunk.patch_embed.proj.kernel_size[0],
            "activation": "gelu" if type(activation) is torch.nn.GELU else "gelu_tanh",
            "epsilon": trunk.norm.eps,
        }, name
        assert type(trunk.attn_pool.mlp.act) is type(activation)
