"""The residual networks of torchvision in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from backends.torch.layers import Block, MLPHead, Observed, run
from clip_core.towers import torchvision_resnet as core


class BasicBlock(Block):
    """A residual block of two convolutions."""

    def __init__(self, tower: core.TorchvisionResNet, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        numbers = tower.epsilon, tower.momentum
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, *numbers)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, *numbers)
        self.downsample = downsample_of(tower, inputs, inner, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class Bottleneck(Block):
    """A residual block of three convolutions, the second of which has the stride."""

    def __init__(self, tower: core.TorchvisionResNet, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs, numbers = inner * core.EXPANSION, (tower.epsilon, tower.momentum)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, *numbers)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, *numbers)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, *numbers)
        self.downsample = downsample_of(tower, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class ResNet(Observed):
    """A stem, four stages of blocks, the mean of the last map: [n, 3, r, r] -> [n, feature_width]."""

    def __init__(self, tower: core.TorchvisionResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, tower.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(tower.width, tower.epsilon, tower.momentum)
        block, expansion = (BasicBlock, 1) if tower.block == "basic" else (Bottleneck, core.EXPANSION)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.ModuleList()
            for stride in strides:
                layer.append(block(tower, inputs, inner, stride))
                inputs = inner * expansion
            setattr(self, f"layer{stage + 1}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        self.observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, x)
                self.observe(f"layer{stage}.{index}", x)
        return x.mean(dim=(2, 3))


class TorchvisionResNet(nn.Module):
    """The residual network without its classification layer, then an MLP without biases."""

    def __init__(self, tower: core.TorchvisionResNet, embed_dim: int) -> None:
        super().__init__()
        self.trunk = ResNet(tower)
        self.head = MLPHead(tower.feature_width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


def downsample_of(tower: core.TorchvisionResNet, inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The convolution of a block's input, where it changes its shape."""
    if stride == 1 and inputs == outputs:
        return None
    norm = nn.BatchNorm2d(outputs, tower.epsilon, tower.momentum)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm)
