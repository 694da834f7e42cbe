"""The ResNet of OpenAI's CLIP in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F

from backends.nnabla.functions import attend, attention_maps, mean, reshape, section
from backends.nnabla.layers import BatchNorm2d, Block, Conv2d, Linear, Observed, run
from backends.nnabla.module import Module, empty
from clip_core.towers import modified_resnet as core


class Bottleneck(Block):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        self.stride = stride
        self.conv1 = Conv2d(inputs, inner, 1)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = Conv2d(inner, inner, 3, padding=1)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = Conv2d(inner, inner * 4, 1)
        self.bn3 = BatchNorm2d(inner * 4)
        self.downsample: list[Conv2d | BatchNorm2d] | None = None
        if stride > 1 or inputs != inner * 4:
            self.downsample = [Conv2d(inputs, inner * 4, 1), BatchNorm2d(inner * 4)]

    def __call__(self, x: nn.Variable) -> nn.Variable:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.average_pooling(x, (self.stride,) * 2), F.average_pooling(y, (self.stride,) * 2)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            for part in self.downsample:
                x = part(x)
        return F.relu(x + y)


class AttentionPool2d(Module):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        width = tower.feature_width
        self.heads = tower.heads
        self.positional_embedding = empty(tower.grid**2 + 1, width)
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, embed_dim)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        x = self._tokens(x)
        x = attend(self.q_proj(section(x, 0, 1, axis=1)), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(reshape(x, (x.shape[0], -1)))

    def attention_maps(self, x: nn.Variable) -> nn.Variable:
        """[n, c, h, w] -> [n, heads, 1, 1 + h * w]: how much the mean looks at itself, and at each cell."""
        x = self._tokens(x)
        return attention_maps(self.q_proj(section(x, 0, 1, axis=1)), self.k_proj(x), self.heads)

    def _tokens(self, x: nn.Variable) -> nn.Variable:
        x = F.transpose(reshape(x, (*x.shape[:2], -1)), (0, 2, 1))  # [n, c, h, w] -> [n, h * w, c]
        x = F.concatenate(mean(x, 1, keepdims=True), x, axis=1)
        return x + F.reshape(self.positional_embedding, (1, *self.positional_embedding.shape))


class ModifiedResNet(Observed):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        half = tower.width // 2
        self.conv1 = Conv2d(3, half, 3, stride=2, padding=1)
        self.bn1 = BatchNorm2d(half)
        self.conv2 = Conv2d(half, half, 3, padding=1)
        self.bn2 = BatchNorm2d(half)
        self.conv3 = Conv2d(half, tower.width, 3, padding=1)
        self.bn3 = BatchNorm2d(tower.width)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = []
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def __call__(self, x: nn.Variable) -> nn.Variable:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.average_pooling(x, (2, 2))
        self.observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, x)
                self.observe(f"layer{stage}.{index}", x)
        return self.attnpool(x)
