"""The residual networks of torchvision in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, below, ignore
from clip_core.towers import torchvision_resnet as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import BatchNorm2d, MLPHead, Parameters, conv_norm, mean_of_map, part, relu


class BasicBlock:
    """A residual block of two convolutions."""

    def __init__(self, weights: Parameters, stride: int, epsilon: float) -> None:
        self.stride = stride
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"), epsilon)
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"), epsilon)
        self.downsample = downsample_of(weights, epsilon)

    def __call__(self, x: Value) -> Value:
        y = relu(conv_norm(x, self.conv1, self.bn1, self.stride))
        y = conv_norm(y, self.conv2, self.bn2)
        if self.downsample is not None:
            x = conv_norm(x, *self.downsample, self.stride)
        return relu(x + y)


class Bottleneck:
    """A residual block of three convolutions, the second of which has the stride."""

    def __init__(self, weights: Parameters, stride: int, epsilon: float) -> None:
        self.stride = stride
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"), epsilon)
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"), epsilon)
        self.conv3, self.bn3 = weights["conv3.weight"], BatchNorm2d(part(weights, "bn3"), epsilon)
        self.downsample = downsample_of(weights, epsilon)

    def __call__(self, x: Value) -> Value:
        y = relu(conv_norm(x, self.conv1, self.bn1))
        y = relu(conv_norm(y, self.conv2, self.bn2, self.stride))
        y = conv_norm(y, self.conv3, self.bn3)
        if self.downsample is not None:
            x = conv_norm(x, *self.downsample, self.stride)
        return relu(x + y)


class ResNet:
    """A stem, four stages of blocks, the mean of the last map: [n, 3, r, r] -> [n, feature_width]."""

    def __init__(self, weights: Parameters, tower: core.TorchvisionResNet) -> None:
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"), tower.epsilon)
        block = BasicBlock if tower.block == "basic" else Bottleneck
        for stage, blocks in enumerate(tower.blocks):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            names = (f"layer{stage + 1}.{index}" for index in range(blocks))
            layer = [block(part(weights, name), stride, tower.epsilon) for name, stride in zip(names, strides)]
            setattr(self, f"layer{stage + 1}", layer)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        x = max_pool(relu(conv_norm(x, self.conv1, self.bn1, 2)))
        observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                observe(f"layer{stage}.{index}", x)
        return mean_of_map(x)


class TorchvisionResNet:
    """The residual network without its classification layer, then an MLP without biases."""

    def __init__(self, weights: Parameters, tower: core.TorchvisionResNet) -> None:
        self.trunk = ResNet(part(weights, "trunk"), tower)
        self.head = MLPHead(part(weights, "head"))

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        return self.head(self.trunk(x, below("trunk.", observe)))


def downsample_of(weights: Parameters, epsilon: float) -> tuple[Value, BatchNorm2d] | None:
    """The convolution of a block's input, where it changes its shape."""
    if "downsample.0.weight" not in weights:
        return None
    return weights["downsample.0.weight"], BatchNorm2d(part(weights, "downsample.1"), epsilon)


def max_pool(x: Value) -> Value:
    """The largest of each 3 x 3 cells of [n, c, h, w], which stand 2 apart and 1 over the edge."""
    return x.graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
