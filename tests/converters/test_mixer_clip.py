"""Mixer CLIP's state dictionaries: a model with its names, in PyTorch's own layers, is read, inspected and written."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.layouts import LAYOUTS
from clip_core.layouts.selection import detect
from clip_core.similarity import normalize
from clip_core.towers.mixer import TextMixer, VisionMixer
from converters import ModelFile, convert, inspect, read, write
from tests.models import sample_pixels, sample_tokens, sample_weights

# The numbers of tokens, of channels and the inner widths all differ, so that no axis can be taken for another.
ARCHITECTURE = Architecture(
    16,
    VisionMixer(resolution=24, patch=8, width=32, layers=2),
    TextMixer(context_length=12, vocabulary_size=49408, width=24, layers=3),
)


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def mlp(width: int, inner: int, first: str, second: str) -> nn.Sequential:
    layers = {first: nn.Linear(width, inner), "gelu": QuickGELU(), second: nn.Linear(inner, width)}
    return nn.Sequential(OrderedDict(layers))


class MixBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.layerNorm1 = nn.LayerNorm(width)
        self.token_mix_seq = mlp(tokens, 4 * tokens, "lin1", "lin2")
        self.layerNorm2 = nn.LayerNorm(width)
        self.channel_mix_seq = mlp(width, 4 * width, "lin3", "lin4")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mix_seq(self.layerNorm1(x).mT).mT
        return x + self.channel_mix_seq(self.layerNorm2(x))


class Stack(nn.Module):
    def __init__(self, tokens: int, width: int, layers: int) -> None:
        super().__init__()
        self.mixBlocks = nn.Sequential(*(MixBlock(tokens, width) for _ in range(layers)))


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(32))
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(32), Stack(10, 32, 2), nn.LayerNorm(32)
        self.proj = nn.Parameter(torch.randn(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), self.conv1(x).flatten(2).mT], dim=1)
        return self.ln_post(self.transformer.mixBlocks(self.ln_pre(x))[:, 0]) @ self.proj


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.transformer = Stack(12, 24, 3)
        self.token_embedding = nn.Embedding(49408, 24)
        self.ln_final = nn.LayerNorm(24)
        self.text_projection = nn.Parameter(torch.randn(24, 16))
        self.logit_scale = nn.Parameter(torch.tensor(4.0))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        x = self.ln_final(self.transformer.mixBlocks(self.token_embedding(text)))
        return x[torch.arange(len(x)), text.argmax(dim=-1)] @ self.text_projection


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    torch.manual_seed(0)
    model = Theirs()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.rand_like(parameter)
    return model


def assert_same_features(file: ModelFile, model: Theirs) -> None:
    pixels, tokens = sample_pixels(ARCHITECTURE), sample_tokens(ARCHITECTURE)
    judge = Reference(file.architecture, file.weights, precision="fp64")
    with torch.no_grad():
        image, text = model.visual(torch.from_numpy(pixels)), model.encode_text(torch.from_numpy(tokens))
    for found, expected in ((judge.encode_image(pixels), image), (judge.encode_text(tokens), text)):
        np.testing.assert_allclose(normalize(found), normalize(expected.numpy()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_folder_of_a_training_state_is_read(theirs, name, prefix, tmp_path):
    state = {prefix + key: tensor.detach() for key, tensor in theirs.state_dict().items()}
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (tmp_path / other).write_bytes(b"what is not looked at")
    (tmp_path / "epoch.json").write_text(json.dumps({"epoch": 3, "step": 400}))
    found = read(tmp_path)
    assert (found.layout, found.architecture, found.prefix) == ("mixer_clip", ARCHITECTURE, prefix)
    assert found.assumptions() == (
        "activation quick_gelu",
        "epsilon 1e-05",
        "end of text 49407",
        "OpenAI's pixels",
    )
    assert_same_features(found, theirs)
    report = inspect(tmp_path)
    assert (report.layout, report.faults) == ("mixer_clip", ())


def test_what_is_written_is_what_their_model_loads(theirs, tmp_path):
    weights = sample_weights(ARCHITECTURE)
    write(ModelFile(weights, ARCHITECTURE), tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", layout="mixer_clip")
    model = Theirs()
    stored = load_file(tmp_path / "theirs.safetensors")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in stored.items()})
    found = read(tmp_path / "theirs.safetensors")
    assert found.architecture == ARCHITECTURE
    assert {name: np.array_equal(array, weights[name]) for name, array in found.weights.items()} == dict.fromkeys(
        weights, True
    )
    assert_same_features(found, model)


def test_without_a_manifest_the_axis_order_of_paddle_is_recognised(tmp_path):
    transposed = {name: array.T if "mlp" in name else array for name, array in sample_weights(ARCHITECTURE).items()}
    assert detect(transposed).name == "paddle"
    assert LAYOUTS["paddle"].infer(transposed) == ARCHITECTURE
