"""simple-clip's own files, against a module built as its package builds one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet
from transformers import DistilBertConfig, DistilBertModel

import converters
from backends.numpy import CLIP
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.initialize import initialize
from clip_core.layouts import LAYOUTS
from clip_core.pixels import TORCHVISION_PIXELS, Pixels
from clip_core.similarity import normalize
from clip_core.text.loading import tokenizer_from
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from tests.converters.small import ARCHITECTURES

ARCHITECTURE = Architecture(
    16,
    TorchvisionResNet(
        resolution=224,
        blocks=(1, 1, 1, 1),
        block="basic",
        pixels=Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "squash"),
    ),
    DistilBERT(context_length=8, vocabulary_size=50, width=24, layers=2),
    logit_bias=True,
)


class Squeeze(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(-1).squeeze(-1)


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = DistilBertConfig(vocab_size=50, max_position_embeddings=8, dim=24, n_layers=2, hidden_dim=96)
        self.model = DistilBertModel(config)


class SimpleClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        network = ResNet(BasicBlock, [1, 1, 1, 1])
        self.image_encoder = nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1), Squeeze())
        self.text_encoder = TextEncoder()
        self.image_projection = self.head(512)
        self.text_projection = self.head(24)
        self.t_prime = nn.Parameter(torch.tensor(1.5))
        self.b = nn.Parameter(torch.tensor(-0.5))

    @staticmethod
    def head(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 16, bias=False))


@pytest.fixture
def module() -> SimpleClip:
    torch.manual_seed(0)
    result = SimpleClip().eval()
    for name, tensor in result.state_dict().items():
        if name.endswith(("bias", "running_mean", "running_var")):
            tensor += 0.1 * torch.rand_like(tensor)
    return result


def test_its_file_computes_what_its_module_does(module, tmp_path):
    path = tmp_path / "clip_model.pth"
    torch.save(module.state_dict(), path)
    found = converters.read(path)
    assert (found.layout, found.architecture, found.assumed) == ("simple_clip", ARCHITECTURE, ())
    generator = np.random.default_rng(0)
    pixels = generator.random((2, 3, 224, 224), np.float32)
    tokens = generator.integers(1, 50, (3, 8))
    with torch.no_grad():
        images = module.image_projection(module.image_encoder(torch.from_numpy(pixels))).double().numpy()
        states = module.text_encoder.model(torch.from_numpy(tokens), torch.ones(3, 8)).last_hidden_state
        texts = module.text_projection(states.mean(dim=1)).double().numpy()
    expected = np.exp(1.5) * normalize(images) @ normalize(texts).T - 0.5
    per_image, _ = CLIP(found.architecture, found.weights, precision="fp64")(pixels, tokens)
    assert np.abs(per_image - expected).max() < 1e-5


def test_its_names_are_written(module, tmp_path):
    """All of them, and no other."""
    torch.save(module.state_dict(), tmp_path / "clip_model.pth")
    found = converters.read(tmp_path / "clip_model.pth")
    converters.write(found, tmp_path / "again.pth", layout="simple_clip")
    written = torch.load(tmp_path / "again.pth", weights_only=True)
    state = module.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_v2_s"])
def test_the_names_of_its_image_encoders(name):
    with torch.device("meta"):
        network = models.get_model(name)
    encoder = nn.Sequential(*list(network.children())[:-1])
    layout = LAYOUTS["simple_clip"]
    canonical = [layout.canonical(f"image_encoder.{theirs}") for theirs in encoder.state_dict()]
    trained = [theirs for theirs in network.state_dict() if not theirs.startswith(("fc.", "classifier."))]
    assert canonical == [f"visual.trunk.{theirs}" for theirs in trained]
    assert [layout.spell(ours) for ours in canonical] == [f"image_encoder.{theirs}" for theirs in encoder.state_dict()]


def test_a_tokenizer_beside_it_is_taken_along(module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "clip_model.pth")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(45))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    converters.convert(tmp_path / "clip_model.pth", tmp_path / "model.safetensors")
    found = converters.read(tmp_path / "model.safetensors")
    assert (found.architecture, found.assumed) == (ARCHITECTURE, ())
    assert tokenizer_from(found.vocabulary).tokenize(["Word7 word0"], 8).tolist() == [[2, 12, 5, 3, 0, 0, 0, 0]]


def test_a_file_of_its_older_model_says_what_it_lacks(module, tmp_path):
    state = {name: tensor for name, tensor in module.state_dict().items() if "_encoder." in name}
    state |= {"projection_head.0.weight": torch.ones(512, 512), "projection_head.2.weight": torch.ones(24, 512)}
    torch.save(state, tmp_path / "clip_model.pth")
    with pytest.raises(
        CheckpointError, match=r"an early simple-clip.*lacks image_projection, text_projection, t_prime and b, "
    ):
        converters.read(tmp_path / "clip_model.pth")


def test_another_model_of_the_same_towers_keeps_its_pixels(tmp_path):
    """What simple-clip's package does is said of its own files alone."""
    architecture = replace(ARCHITECTURES["torchvision"], logit_bias=False)
    assert LAYOUTS["simple_clip"].words(tmp_path / "model.safetensors", "openai", architecture) == []


def test_what_its_package_computes_otherwise_is_said(tmp_path):
    weights = initialize(ARCHITECTURE, 0)
    converters.write(converters.ModelFile(weights, ARCHITECTURE), tmp_path / "own.pt", layout="simple_clip")
    other = replace(ARCHITECTURE, image=replace(ARCHITECTURE.image, pixels=TORCHVISION_PIXELS))
    sentence = r"other\.pt is another model to simple-clip's package, which has its own image\.pixels; TriCLIP reads"
    with pytest.warns(UserWarning, match=sentence):
        converters.write(converters.ModelFile(weights, other), tmp_path / "other.pt", layout="simple_clip")
    assert converters.read(tmp_path / "other.pt").architecture == other
