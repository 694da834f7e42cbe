"""EfficientNetV2 in NNabla."""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import mean
from backends.nnabla.layers import BatchNorm2d, Block, Conv2d, MLPHead, Observed, Sequential, run
from backends.nnabla.module import Module
from clip_core.towers import efficientnet_v2 as core


class ConvNorm(Sequential):
    """A convolution, padded to keep the size at stride 1, and a batch normalisation."""

    def __init__(
        self, tower: core.EfficientNetV2, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        conv = Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups)
        super().__init__(conv, BatchNorm2d(outputs, tower.epsilon, tower.momentum))


class SqueezeExcitation(Module):
    """Channels scaled by a number each, which the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        self.fc1 = Conv2d(channels, squeezed, 1, bias=True)
        self.fc2 = Conv2d(squeezed, channels, 1, bias=True)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        scale = mean(x, (2, 3), keepdims=True)  # [n, c, 1, 1]
        return x * F.sigmoid(self.fc2(F.swish(self.fc1(scale))))


class FusedMBConv(Block):
    """A 3 x 3 convolution and, where it widens the map, a 1 x 1 convolution back."""

    def __init__(self, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        outputs, inner = tower.widths[stage], inputs * tower.expansions[stage]
        self.residual = stride == 1 and inputs == outputs
        if tower.expansions[stage] == 1:
            self.block = [ConvNorm(tower, inputs, outputs, 3, stride)]
        else:
            self.block = [ConvNorm(tower, inputs, inner, 3, stride), ConvNorm(tower, inner, outputs, 1)]

    def __call__(self, x: nn.Variable) -> nn.Variable:
        first, *project = self.block
        y = F.swish(first(x))
        for conv in project:
            y = conv(y)
        return x + y if self.residual else y


class MBConv(Block):
    """A 1 x 1 convolution that widens the map, a depthwise 3 x 3, squeeze and excitation, a 1 x 1 back."""

    def __init__(self, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        outputs, inner = tower.widths[stage], inputs * tower.expansions[stage]
        self.residual = stride == 1 and inputs == outputs
        self.block = Sequential(
            ConvNorm(tower, inputs, inner, 1),
            ConvNorm(tower, inner, inner, 3, stride, groups=inner),
            SqueezeExcitation(inner, max(inputs // core.SQUEEZE, 1)),
            ConvNorm(tower, inner, outputs, 1),
        )

    def __call__(self, x: nn.Variable) -> nn.Variable:
        expand, depthwise, excite, project = self.block
        y = project(excite(F.swish(depthwise(F.swish(expand(x))))))
        return x + y if self.residual else y


class EfficientNet(Observed):
    """A stem, stages of blocks, a 1 x 1 convolution, the mean of its map: [n, 3, r, r] -> [n, width]."""

    def __init__(self, tower: core.EfficientNetV2) -> None:
        self.features: list[Any] = [ConvNorm(tower, 3, tower.stem, 3, stride=2)]
        inputs = tower.stem
        for stage, (outputs, blocks, stride) in enumerate(zip(tower.widths, tower.blocks, tower.strides)):
            block = FusedMBConv if stage < tower.fused else MBConv
            later = (block(tower, stage, outputs, 1) for _ in range(blocks - 1))
            self.features.append(Sequential(block(tower, stage, inputs, stride), *later))
            inputs = outputs
        self.features.append(ConvNorm(tower, inputs, tower.width, 1))

    def __call__(self, x: nn.Variable) -> nn.Variable:
        stem, *stages, last = self.features
        x = F.swish(stem(x))
        self.observe("features.0", x)
        for stage, blocks in enumerate(stages):
            for index, block in enumerate(blocks):
                x = run(block, x)
                self.observe(f"features.{stage + 1}.{index}", x)
        return mean(F.swish(last(x)), (2, 3))


class EfficientNetV2(Module):
    """EfficientNet without its classification layer, then an MLP without biases."""

    def __init__(self, tower: core.EfficientNetV2, embed_dim: int) -> None:
        self.trunk = EfficientNet(tower)
        self.head = MLPHead(tower.width, embed_dim)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return self.head(self.trunk(x))
