"""The residual networks and EfficientNetV2 in every backend against torchvision, with all of their numbers random."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.backend import Backend
from clip_core.initialize import initialize
from clip_core.naming import Weights, parameters
from clip_core.similarity import normalize
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.parts import ImageTower
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from clip_core.training.trainable import with_initial_scale
from tests.models import sample_pixels, sample_tokens, sample_weights
from tests.requested import FRAMEWORKS, load_backend
from tests.tolerances import CONTRACT, difference
from tests.towers import TEXTS
from tests.training.steps import LOSS_BOUND, recipe

TRUNK = "visual.trunk."
SMALL = {
    # torchvision's residual networks begin with 64 channels.
    "basic": TorchvisionResNet(resolution=40, blocks=(2, 1, 1, 1), block="basic"),
    "bottleneck": TorchvisionResNet(resolution=33, blocks=(1, 2, 1, 1), block="bottleneck", epsilon=3e-4, momentum=0.3),
    "efficientnet": EfficientNetV2(
        resolution=50,
        stem=8,
        widths=(8, 16, 24, 24),
        blocks=(2, 2, 2, 1),
        expansions=(1, 4, 4, 6),
        strides=(1, 2, 2, 1),
        fused=2,
        width=40,
    ),
}
LARGE = {
    "resnet18": TorchvisionResNet(resolution=224, blocks=(2, 2, 2, 2), block="basic"),
    "resnet50": TorchvisionResNet(resolution=224, blocks=(3, 4, 6, 3), block="bottleneck"),
    "efficientnet_v2_s": EfficientNetV2(
        resolution=224,
        stem=24,
        widths=(24, 48, 64, 128, 160, 256),
        blocks=(2, 4, 4, 6, 9, 15),
        expansions=(1, 4, 4, 4, 6, 6),
        strides=(1, 2, 2, 2, 1, 2),
        fused=3,
        width=1280,
    ),
}


def model_of(image: ImageTower) -> Architecture:
    return Architecture(16, image, TEXTS[0])


def torchvisions(image: ImageTower, weights: Weights) -> nn.Module:
    """torchvision's network with the weights of the tower's trunk, its head in place of the classification layer."""
    norm = partial(nn.BatchNorm2d, eps=image.epsilon, momentum=image.momentum)
    head = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    for layer, name in zip(head[::2], ("c_fc", "c_proj")):
        layer.weight = nn.Parameter(torch.tensor(weights[f"visual.head.{name}.weight"]))
    if isinstance(image, TorchvisionResNet):
        network = ResNet(BasicBlock if image.block == "basic" else Bottleneck, list(image.blocks), norm_layer=norm)
        network.fc = nn.Identity()
    else:
        channels = zip((image.stem, *image.widths), image.widths, image.expansions, image.strides, image.blocks)
        stages = [
            (FusedMBConvConfig if index < image.fused else MBConvConfig)(expansion, 3, stride, inputs, outputs, blocks)
            for index, (inputs, outputs, expansion, stride, blocks) in enumerate(channels)
        ]
        network = EfficientNet(stages, 0.0, 0.0, norm_layer=norm, last_channel=image.width)
        network.classifier = nn.Identity()
    trunk = {name.removeprefix(TRUNK): torch.tensor(array) for name, array in weights.items() if TRUNK in name}
    network.load_state_dict(trunk, strict=True)
    return nn.Sequential(network, head).double()


def assert_equal_to_torchvision(backend: Backend, image: ImageTower) -> None:
    architecture = model_of(image)
    weights, pixels = sample_weights(architecture), sample_pixels(architecture)
    with torch.no_grad():
        expected = torchvisions(image, weights).eval()(torch.from_numpy(pixels).double()).numpy()
    judge = Reference(architecture, weights, precision="fp64").encode_image(pixels)
    assert difference(normalize(judge), normalize(expected)) <= 1e-12
    found = backend.CLIP(architecture, weights, device="cpu").embed_image(pixels)
    assert difference(normalize(found), normalize(expected)) <= CONTRACT["image_embedding"].bound
    assert difference(normalize(expected[0]), normalize(expected[1])) > 100 * CONTRACT["image_embedding"].bound


@pytest.mark.parametrize("image", SMALL.values(), ids=SMALL.keys())
def test_inference(backend, image):
    assert_equal_to_torchvision(backend, image)


@pytest.mark.slow
@pytest.mark.parametrize("image", LARGE.values(), ids=LARGE.keys())
def test_inference_in_full_size(backend, image):
    assert_equal_to_torchvision(backend, image)


@pytest.mark.parametrize("image", SMALL.values(), ids=SMALL.keys())
def test_five_batches_in_training_mode(framework, image):
    """With the statistics of each batch; then the running ones, which all five have moved."""
    architecture = model_of(image)
    weights = sample_weights(architecture)
    theirs = torchvisions(image, weights).train()
    ours = framework.CLIP(architecture, weights, device="cpu")
    ours.train()
    for seed in range(5):
        pixels = sample_pixels(architecture, 4, seed)
        expected = theirs(torch.from_numpy(pixels).double()).detach().numpy()
        found = features_in_training(framework, ours, pixels)
        assert difference(normalize(found), normalize(expected)) <= 10 * CONTRACT["image_embedding"].bound
    ours.eval()
    exported = ours.export()
    for name, tensor in theirs[0].state_dict().items():
        found, expected = exported[TRUNK + name], tensor.numpy()
        if name.endswith("num_batches_tracked"):
            assert found == expected == 7 + 5
        elif "running" in name:
            assert difference(found, expected) <= 5e-5 * np.abs(expected).max(), name  # measured 1.2e-5
            assert difference(weights[TRUNK + name], expected) > 1e-2, name


def features_in_training(framework: Backend, model, pixels: np.ndarray) -> np.ndarray:
    if framework.name == "nnabla":
        import nnabla as nn

        with nn.auto_forward():
            return framework.to_array(model.encode_image(pixels))
    return framework.to_array(model.encode_image(pixels))


@pytest.mark.parametrize("name", LARGE)
def test_names_shapes_and_work_are_torchvisions(name):
    image = LARGE[name]
    with torch.device("meta"):
        network = models.get_model(name)
    expected = {
        TRUNK + name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.startswith(("fc.", "classifier."))
    }
    table = parameters(model_of(image))
    found = {parameter.name: parameter.shape for parameter in table if parameter.name.startswith(TRUNK)}
    assert list(found.items()) == list(expected.items())
    weights = models.get_model_weights(name).IMAGENET1K_V1
    width = image.width if isinstance(image, EfficientNetV2) else image.feature_width
    side = weights.transforms().crop_size[0]
    trunk = replace(image, resolution=side).multiplications(16) - width * (width + 16)
    assert (trunk + width * 1000) / 1e9 == pytest.approx(weights.meta["_ops"], rel=2e-3)


FAMILY = [
    pytest.param(replace(SMALL["bottleneck"], width=8), id="bottleneck"),
    pytest.param(SMALL["efficientnet"], id="efficientnet"),
]
TEXT = DistilBERT(context_length=8, vocabulary_size=40, width=24, layers=2, heads=2)


@pytest.mark.parametrize("image", FAMILY)
def test_ten_steps_beside_distilbert_are_the_same_in_every_framework(image):
    architecture, what = replace(model_of(image), text=TEXT), recipe()
    weights = with_initial_scale(initialize(architecture, 0), what.loss)
    losses = []
    for name in FRAMEWORKS:
        framework = load_backend(name)
        trainer = framework.Trainer(framework.CLIP(architecture, weights, device="cpu"), what)
        batches = ((sample_pixels(architecture, 4, seed), sample_tokens(architecture, 4, seed)) for seed in range(10))
        losses.append([trainer.step(pixels, tokens, 1e-4).loss for pixels, tokens in batches])
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=LOSS_BOUND)
