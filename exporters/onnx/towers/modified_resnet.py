"""The ResNet of OpenAI's CLIP in ONNX."""

from __future__ import annotations

from clip_core.backend import Observe, ignore
from clip_core.towers import modified_resnet as core
from exporters.onnx.graph import Value
from exporters.onnx.layers import BatchNorm2d, Linear, Parameters, attend, conv_norm, part, relu


class Bottleneck:
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, weights: Parameters, stride: int) -> None:
        self.stride = stride
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"))
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"))
        self.conv3, self.bn3 = weights["conv3.weight"], BatchNorm2d(part(weights, "bn3"))
        self.downsample: tuple[Value, BatchNorm2d] | None = None
        if "downsample.0.weight" in weights:
            self.downsample = weights["downsample.0.weight"], BatchNorm2d(part(weights, "downsample.1"))

    def __call__(self, x: Value) -> Value:
        y = relu(conv_norm(x, self.conv1, self.bn1))
        y = relu(conv_norm(y, self.conv2, self.bn2))
        if self.stride > 1:
            x, y = average_pool(x, self.stride), average_pool(y, self.stride)
        y = conv_norm(y, self.conv3, self.bn3)
        if self.downsample is not None:
            x = conv_norm(x, *self.downsample)
        return relu(x + y)


class AttentionPool2d:
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, weights: Parameters, tower: core.ModifiedResNet) -> None:
        self.heads, self.width = tower.heads, tower.feature_width
        self.positional_embedding = weights["positional_embedding"]
        self.k_proj = Linear(part(weights, "k_proj"))
        self.q_proj = Linear(part(weights, "q_proj"))
        self.v_proj = Linear(part(weights, "v_proj"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: Value) -> Value:
        graph = x.graph
        mean = graph.node("GlobalAveragePool", x)
        x = graph.node("Concat", *(part.reshape(0, self.width, -1) for part in (mean, x)), axis=2)
        x = x.transpose(0, 2, 1) + self.positional_embedding  # [n, c, 1 + h * w] -> [n, 1 + h * w, c]
        x = attend(self.q_proj(x.until(1, axis=1)), self.k_proj(x), self.v_proj(x), self.heads, self.width)
        return self.c_proj(x.at(0, axis=1))


class ModifiedResNet:
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    def __init__(self, weights: Parameters, tower: core.ModifiedResNet) -> None:
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"))
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"))
        self.conv3, self.bn3 = weights["conv3.weight"], BatchNorm2d(part(weights, "bn3"))
        for stage, blocks in enumerate(tower.blocks):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            names = (f"layer{stage + 1}.{block}" for block in range(blocks))
            layer = [Bottleneck(part(weights, name), stride) for name, stride in zip(names, strides)]
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(part(weights, "attnpool"), tower)

    def __call__(self, x: Value, observe: Observe = ignore) -> Value:
        for conv, norm, stride in ((self.conv1, self.bn1, 2), (self.conv2, self.bn2, 1), (self.conv3, self.bn3, 1)):
            x = relu(conv_norm(x, conv, norm, stride))
        x = average_pool(x, 2)
        observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                observe(f"layer{stage}.{index}", x)
        return self.attnpool(x)


def average_pool(x: Value, size: int) -> Value:
    """The mean of each size x size cell of [n, c, h, w]; rows and columns left over at the end are dropped."""
    return x.graph.node("AveragePool", x, kernel_shape=[size] * 2, strides=[size] * 2)
