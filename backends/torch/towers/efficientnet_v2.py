"""EfficientNetV2 in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from backends.torch.layers import Block, MLPHead, Observed, run
from clip_core.towers import efficientnet_v2 as core


class ConvNorm(nn.Sequential):
    """A convolution, padded to keep the size at stride 1, and a batch normalisation."""

    def __init__(
        self, tower: core.EfficientNetV2, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, tower.epsilon, tower.momentum))


class SqueezeExcitation(nn.Module):
    """Channels scaled by a number each, which the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean(dim=(2, 3), keepdim=True)  # [n, c, 1, 1]
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(scale))))


class FusedMBConv(Block):
    """A 3 x 3 convolution and, where it widens the map, a 1 x 1 convolution back."""

    def __init__(self, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        super().__init__()
        outputs, inner = tower.widths[stage], inputs * tower.expansions[stage]
        self.residual = stride == 1 and inputs == outputs
        if tower.expansions[stage] == 1:
            self.block = nn.ModuleList([ConvNorm(tower, inputs, outputs, 3, stride)])
        else:
            self.block = nn.ModuleList([ConvNorm(tower, inputs, inner, 3, stride), ConvNorm(tower, inner, outputs, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *project = self.block
        y = F.silu(first(x))
        for conv in project:
            y = conv(y)
        return x + y if self.residual else y


class MBConv(Block):
    """A 1 x 1 convolution that widens the map, a depthwise 3 x 3, squeeze and excitation, a 1 x 1 back."""

    def __init__(self, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        super().__init__()
        outputs, inner = tower.widths[stage], inputs * tower.expansions[stage]
        self.residual = stride == 1 and inputs == outputs
        self.block = nn.ModuleList(
            [
                ConvNorm(tower, inputs, inner, 1),
                ConvNorm(tower, inner, inner, 3, stride, groups=inner),
                SqueezeExcitation(inner, max(inputs // core.SQUEEZE, 1)),
                ConvNorm(tower, inner, outputs, 1),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expand, depthwise, excite, project = self.block
        y = project(excite(F.silu(depthwise(F.silu(expand(x))))))
        return x + y if self.residual else y


class EfficientNet(Observed):
    """A stem, stages of blocks, a 1 x 1 convolution, the mean of its map: [n, 3, r, r] -> [n, width]."""

    def __init__(self, tower: core.EfficientNetV2) -> None:
        super().__init__()
        self.features = nn.ModuleList([ConvNorm(tower, 3, tower.stem, 3, stride=2)])
        inputs = tower.stem
        for stage, (outputs, blocks, stride) in enumerate(zip(tower.widths, tower.blocks, tower.strides)):
            block = FusedMBConv if stage < tower.fused else MBConv
            later = (block(tower, stage, outputs, 1) for _ in range(blocks - 1))
            self.features.append(nn.ModuleList([block(tower, stage, inputs, stride), *later]))
            inputs = outputs
        self.features.append(ConvNorm(tower, inputs, tower.width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem, *stages, last = self.features
        x = F.silu(stem(x))
        self.observe("features.0", x)
        for stage, blocks in enumerate(stages):
            for index, block in enumerate(blocks):
                x = run(block, x)
                self.observe(f"features.{stage + 1}.{index}", x)
        return F.silu(last(x)).mean(dim=(2, 3))


class EfficientNetV2(nn.Module):
    """EfficientNet without its classification layer, then an MLP without biases."""

    def __init__(self, tower: core.EfficientNetV2, embed_dim: int) -> None:
        super().__init__()
        self.trunk = EfficientNet(tower)
        self.head = MLPHead(tower.width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))
