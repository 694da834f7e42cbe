"""Towers that start from files of torchvision and Hugging Face, by path or from their caches."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import clip
import converters
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize, random_weights
from clip_core.layouts import bert, torchvision
from clip_core.layouts.parts import split_attention
from clip_core.naming import Weights
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from converters.pretrained import with_tower

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "large", "small", "red", "blue", "circle", "square", "##s"]
ARCHITECTURE = Architecture(
    16,
    TorchvisionResNet(resolution=32, blocks=(1, 1, 1, 1), block="bottleneck", width=4),
    DistilBERT(context_length=8, vocabulary_size=len(WORDS), width=24, layers=2, heads=4),
)
TRAINED = replace(ARCHITECTURE, text=replace(ARCHITECTURE.text, context_length=20))


@pytest.fixture
def image(tmp_path) -> Path:
    """A state dictionary as torchvision publishes them, with its classification layer."""
    weights = random_weights(TRAINED, seed=1)
    state = {
        name.removeprefix("visual.trunk."): torch.tensor(array) for name, array in weights.items() if "trunk" in name
    }
    path = tmp_path / "tiny.pth"
    torch.save(state | {"fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}, path)
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    """A folder as Hugging Face's library writes one."""
    folder = tmp_path / "distilbert"
    folder.mkdir()
    tensors: Weights = {"vocab_transform.bias": np.ones(3, np.float32)}
    for name, array in random_weights(TRAINED, seed=1).items():
        own = name.removeprefix("text.")
        if own != name and not own.startswith("head."):
            tensors |= {
                f"distilbert.{bert.spell(part)}": np.ascontiguousarray(value)
                for part, value in split_attention(own, array, TRAINED)
            }
    save_file(tensors, folder / "model.safetensors")
    configuration = {"n_heads": 4, "activation": "gelu", "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def test_both_towers_but_for_their_heads(image, text):
    expected, initial = random_weights(TRAINED, seed=1), initialize(ARCHITECTURE, 0)
    found = with_tower(ARCHITECTURE, initial, "image", str(image))
    found = with_tower(ARCHITECTURE, found, "text", str(text))
    assert list(found) == list(initial)
    for name, array in found.items():
        if "head." in name or name == "logit_scale":
            assert np.array_equal(array, initial[name])
        elif name == "text.positional_embedding":
            assert np.array_equal(array, expected[name][:8])
        else:
            assert np.array_equal(array, expected[name]), name


def test_a_training_starts_from_them_and_keeps_their_tokenizer(image, text, tmp_path):
    recipe = {
        "model": {"architecture": ARCHITECTURE.to_dict(), "pretrained": {"image": str(image), "text": str(text)}},
        "training": {"steps": 2},
        "data": {"batch_size": 4},
        "optimizer": {"learning_rate": 1e-12, "weight_decay": 0.0, "frozen": ["image"]},
    }
    trained = clip.train(recipe, output=tmp_path / "run", steps=1)
    found, expected = converters.read(trained.model), random_weights(TRAINED, seed=1)
    name = "text.resblocks.1.mlp.c_fc.weight"
    assert np.allclose(found.weights[name], expected[name], rtol=0, atol=1e-9)
    assert np.array_equal(
        found.weights["visual.trunk.layer1.0.conv2.weight"], expected["visual.trunk.layer1.0.conv2.weight"]
    )
    model, _ = clip.load(trained.model, backend="numpy")
    assert model.tokenize("a red circles").tolist() == [[2, 5, 8, 10, 12, 3, 0, 0]]
    with pytest.raises(ClipError, match=r"has the weights of both towers; remove model.pretrained"):
        clip.train(recipe, output=tmp_path / "again", load=trained.model)
    image.unlink()  # which a run that goes on does not need
    assert clip.train(recipe, resume=tmp_path / "run").step == 2


def test_names_in_the_caches(image, text, tmp_path, monkeypatch):
    digest = hashlib.sha256(image.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(torchvision.PUBLISHED, "torchvision/tiny", f"tiny-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    image.rename(checkpoints / f"tiny-{digest}.pth")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = tmp_path / "hf" / "hub" / "models--distilbert--tiny"
    for revision in ("abc", "other"):
        (model / "snapshots" / revision).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc", encoding="utf-8")
    for file in text.iterdir():
        file.rename(model / "snapshots" / "abc" / file.name)
    initial, expected = initialize(ARCHITECTURE, 0), random_weights(TRAINED, seed=1)
    found = with_tower(ARCHITECTURE, initial, "image", "torchvision/tiny")
    assert np.array_equal(found["visual.trunk.bn1.running_var"], expected["visual.trunk.bn1.running_var"])
    found = with_tower(ARCHITECTURE, initial, "text", "distilbert/tiny")
    assert np.array_equal(found["text.ln_embedding.bias"], expected["text.ln_embedding.bias"])

    other = f"tiny-{'0' * 8}.pth"
    monkeypatch.setitem(torchvision.PUBLISHED, "torchvision/tiny", other)
    (checkpoints / f"tiny-{digest}.pth").rename(checkpoints / other)
    with pytest.raises(CheckpointError, match=rf"{other} is damaged: its SHA-256 does not begin with 00000000; fetch"):
        with_tower(ARCHITECTURE, initial, "image", "torchvision/tiny")


@pytest.mark.parametrize(
    ("place", "name", "sentence"),
    [
        (
            "image",
            "torchvision/resnet50",
            r"^model.pretrained.image is torchvision/resnet50, whose file is not in PyTorch's cache as "
            r".*/hub/checkpoints/resnet50-11ad3fa6\.pth; fetch https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
        ),
        ("image", "resnet.pth", r"'resnet.pth'; there is no such file, and it is none of torchvision/resnet18, "),
        (
            "text",
            "distilbert-base-uncased",
            r"neither a file nor in Hugging Face's cache as .*/hub/models--distilbert-base-uncased; "
            r"fetch it with hf download distilbert-base-uncased, or give the path of a folder that has it\.$",
        ),
        ("text", "../model.bin", r"'\.\./model\.bin'; there is no such file, and it is no name of a model\.$"),
    ],
)
def test_what_is_not_there_says_where_it_was_looked_for(place, name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(ClipError, match=sentence):
        with_tower(ARCHITECTURE, initialize(ARCHITECTURE, 0), place, name)


def test_another_tower_is_refused(image, text):
    initial = initialize(ARCHITECTURE, 0)
    with pytest.raises(CheckpointError, match=r"tiny.pth: It holds .* no parameter of a BERT"):
        with_tower(ARCHITECTURE, initial, "text", str(image))
    for changes, sentence in (
        ({"image": replace(ARCHITECTURE.image, width=8)}, "model.architecture.image, width 4 rather than 8; change"),
        ({"image": replace(ARCHITECTURE.image, epsilon=1e-4)}, "epsilon 1e-05 rather than 0.0001; change"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            with_tower(replace(ARCHITECTURE, **changes), initial, "image", str(image))
    fewer = replace(ARCHITECTURE, text=replace(ARCHITECTURE.text, heads=2))
    with pytest.raises(CheckpointError, match=r"model.architecture.text, heads 4 rather than 2; change the recipe"):
        with_tower(fewer, initial, "text", str(text))
    configuration = text / "config.json"
    configuration.write_text("{", encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: config.json beside it cannot be used: it is not JSON"
    ):
        with_tower(ARCHITECTURE, initial, "text", str(text))
    configuration.unlink()  # without one, there are as many heads as the recipe says
    assert with_tower(fewer, initial, "text", str(text)).keys() == initial.keys()
    longer = replace(ARCHITECTURE, text=replace(ARCHITECTURE.text, context_length=30))
    with pytest.raises(CheckpointError, match=r"text.positional_embedding has shape \(20, 24\), expected \(30, 24\)"):
        with_tower(longer, initialize(longer, 0), "text", str(text))


def test_a_missing_tensor_is_named(image):
    state = torch.load(image, weights_only=True)
    del state["layer2.0.bn3.bias"]
    del state["bn1.num_batches_tracked"]  # older files have none
    torch.save(state, image)
    with pytest.raises(
        CheckpointError, match=r"tiny.pth does not fit .*: visual.trunk.layer2.0.bn3.bias is missing\.$"
    ):
        with_tower(ARCHITECTURE, initialize(ARCHITECTURE, 0), "image", str(image))
