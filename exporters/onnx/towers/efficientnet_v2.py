"""EfficientNetV2 in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import efficientnet_v2 as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import BatchNorm2d, MLPHead, Parameters, conv_norm, mean_of_map, part, sigmoid


class ConvNorm:
    """A convolution, padded to keep the size at stride 1, and a batch normalisation."""

    def __init__(self, weights: Parameters, tower: core.EfficientNetV2, stride: int = 1, groups: int = 1) -> None:
        self.stride, self.groups = stride, groups
        self.conv, self.norm = weights["0.weight"], BatchNorm2d(part(weights, "1"), tower.epsilon)

    def __call__(self, x: Value) -> Value:
        return conv_norm(x, self.conv, self.norm, self.stride, self.groups)


class SqueezeExcitation:
    """Channels scaled by a number each, which the means of all channels decide."""

    def __init__(self, weights: Parameters) -> None:
        self.fc1, self.fc1_bias = weights["fc1.weight"], weights["fc1.bias"]
        self.fc2, self.fc2_bias = weights["fc2.weight"], weights["fc2.bias"]

    def __call__(self, x: Value) -> Value:
        graph = x.graph
        scale = graph.node("GlobalAveragePool", x)  # [n, c, 1, 1]
        scale = silu(graph.node("Conv", scale, self.fc1, self.fc1_bias))
        return x * sigmoid(graph.node("Conv", scale, self.fc2, self.fc2_bias))


class FusedMBConv:
    """A 3 x 3 convolution and, where it widens the map, a 1 x 1 convolution back."""

    def __init__(self, weights: Parameters, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        self.residual = stride == 1 and inputs == tower.widths[stage]
        self.block = [ConvNorm(part(weights, "block.0"), tower, stride)]
        if tower.expansions[stage] > 1:
            self.block.append(ConvNorm(part(weights, "block.1"), tower))

    def __call__(self, x: Value) -> Value:
        first, *project = self.block
        y = silu(first(x))
        for conv in project:
            y = conv(y)
        return x + y if self.residual else y


class MBConv:
    """A 1 x 1 convolution that widens the map, a depthwise 3 x 3, squeeze and excitation, a 1 x 1 back."""

    def __init__(self, weights: Parameters, tower: core.EfficientNetV2, stage: int, inputs: int, stride: int) -> None:
        self.residual = stride == 1 and inputs == tower.widths[stage]
        self.block = (
            ConvNorm(part(weights, "block.0"), tower),
            ConvNorm(part(weights, "block.1"), tower, stride, groups=inputs * tower.expansions[stage]),
            SqueezeExcitation(part(weights, "block.2")),
            ConvNorm(part(weights, "block.3"), tower),
        )

    def __call__(self, x: Value) -> Value:
        expand, depthwise, excite, project = self.block
        y = project(excite(silu(depthwise(silu(expand(x))))))
        return x + y if self.residual else y


class EfficientNet:
    """A stem, stages of blocks, a 1 x 1 convolution, the mean of its map: [n, 3, r, r] -> [n, width]."""

    def __init__(self, weights: Parameters, tower: core.EfficientNetV2) -> None:
        self.stem = ConvNorm(part(weights, "features.0"), tower, stride=2)
        self.stages: list[list[FusedMBConv | MBConv]] = []
        inputs = tower.stem
        for stage, (outputs, blocks, stride) in enumerate(zip(tower.widths, tower.blocks, tower.strides)):
            block = FusedMBConv if stage < tower.fused else MBConv
            names = [f"features.{stage + 1}.{index}" for index in range(blocks)]
            channels, strides = [inputs] + [outputs] * (blocks - 1), [stride] + [1] * (blocks - 1)
            self.stages.append(
                [block(part(weights, name), tower, stage, *numbers) for name, *numbers in zip(names, channels, strides)]
            )
            inputs = outputs
        self.last = ConvNorm(part(weights, f"features.{len(tower.widths) + 1}"), tower)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        x = silu(self.stem(x))
        observe("features.0", x)
        for stage, blocks in enumerate(self.stages):
            for index, block in enumerate(blocks):
                x = block(x)
                observe(f"features.{stage + 1}.{index}", x)
        return mean_of_map(silu(self.last(x)))


class EfficientNetV2:
    """EfficientNet without its classification layer, then an MLP without biases."""

    def __init__(self, weights: Parameters, tower: core.EfficientNetV2) -> None:
        self.trunk = EfficientNet(part(weights, "trunk"), tower)
        self.head = MLPHead(part(weights, "head"))

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        return self.head(self.trunk(x, below("trunk.", observe)))


def silu(x: Value) -> Value:
    """x * sigmoid(x)."""
    return x * sigmoid(x)
