"""The ResNet of OpenAI's CLIP in NumPy."""

from __future__ import annotations

import numpy as np

from backends.numpy.layers import BatchNorm2d, Linear, attend, attention_maps, conv_norm, part
from clip_core.backend import Observe, ignore
from clip_core.naming import Weights
from clip_core.towers import modified_resnet as core


class Bottleneck:
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.stride = stride
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"))
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"))
        self.conv3, self.bn3 = weights["conv3.weight"], BatchNorm2d(part(weights, "bn3"))
        self.downsample: tuple[np.ndarray, BatchNorm2d] | None = None
        if "downsample.0.weight" in weights:
            self.downsample = weights["downsample.0.weight"], BatchNorm2d(part(weights, "downsample.1"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.maximum(conv_norm(x, self.conv1, self.bn1), 0)
        y = np.maximum(conv_norm(y, self.conv2, self.bn2), 0)
        if self.stride > 1:
            x, y = average_pool(x, self.stride), average_pool(y, self.stride)
        y = conv_norm(y, self.conv3, self.bn3)
        if self.downsample is not None:
            x = conv_norm(x, *self.downsample)
        return np.maximum(x + y, 0)


class AttentionPool2d:
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, weights: Weights, tower: core.ModifiedResNet) -> None:
        self.heads = tower.heads
        self.positional_embedding = weights["positional_embedding"]
        self.k_proj = Linear(part(weights, "k_proj"))
        self.q_proj = Linear(part(weights, "q_proj"))
        self.v_proj = Linear(part(weights, "v_proj"))
        self.c_proj = Linear(part(weights, "c_proj"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = self._tokens(x)
        x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(x[:, 0])

    def attention_maps(self, x: np.ndarray) -> np.ndarray:
        """[n, c, h, w] -> [n, heads, 1, 1 + h * w]: how much the mean looks at itself, and at each cell."""
        x = self._tokens(x)
        return attention_maps(self.q_proj(x[:, :1]), self.k_proj(x), self.heads)

    def _tokens(self, x: np.ndarray) -> np.ndarray:
        x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # [n, c, h, w] -> [n, h * w, c]
        return np.concatenate([x.mean(axis=1, keepdims=True), x], axis=1) + self.positional_embedding


class ModifiedResNet:
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    def __init__(self, weights: Weights, tower: core.ModifiedResNet) -> None:
        self.conv1, self.bn1 = weights["conv1.weight"], BatchNorm2d(part(weights, "bn1"))
        self.conv2, self.bn2 = weights["conv2.weight"], BatchNorm2d(part(weights, "bn2"))
        self.conv3, self.bn3 = weights["conv3.weight"], BatchNorm2d(part(weights, "bn3"))
        for stage, blocks in enumerate(tower.blocks):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            names = (f"layer{stage + 1}.{block}" for block in range(blocks))
            layer = [Bottleneck(part(weights, name), stride) for name, stride in zip(names, strides)]
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(part(weights, "attnpool"), tower)

    def __call__(self, x: np.ndarray, observe: Observe = ignore) -> np.ndarray:
        for conv, norm, stride in ((self.conv1, self.bn1, 2), (self.conv2, self.bn2, 1), (self.conv3, self.bn3, 1)):
            x = np.maximum(conv_norm(x, conv, norm, stride), 0)
        x = average_pool(x, 2)
        observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                observe(f"layer{stage}.{index}", x)
        return self.attnpool(x)


def average_pool(x: np.ndarray, size: int) -> np.ndarray:
    """The mean of each size x size cell of [n, c, h, w]; rows and columns left over at the end are dropped."""
    n, channels, height, width = x.shape
    x = x[:, :, : height // size * size, : width // size * size]
    return x.reshape(n, channels, height // size, size, width // size, size).mean(axis=(3, 5))
