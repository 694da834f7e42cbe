"""The ResNet of OpenAI's CLIP in Paddle."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from backends.paddle.layers import BatchNorm2d, Block, Observed, attend, attention_maps, run
from backends.paddle.tensors import empty
from clip_core.towers import modified_resnet as core


class Bottleneck(Block):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2D(inputs, inner, 1, bias_attr=False)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = nn.Conv2D(inner, inner, 3, padding=1, bias_attr=False)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = nn.Conv2D(inner, inner * 4, 1, bias_attr=False)
        self.bn3 = BatchNorm2d(inner * 4)
        self.downsample = None
        if stride > 1 or inputs != inner * 4:
            self.downsample = nn.Sequential(nn.Conv2D(inputs, inner * 4, 1, bias_attr=False), BatchNorm2d(inner * 4))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class AttentionPool2d(nn.Layer):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        super().__init__()
        width = tower.feature_width
        self.heads = tower.heads
        self.positional_embedding = empty(tower.grid**2 + 1, width)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self._tokens(x)
        x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(x.squeeze(1))

    def attention_maps(self, x: paddle.Tensor) -> paddle.Tensor:
        """[n, c, h, w] -> [n, heads, 1, 1 + h * w]: how much the mean looks at itself, and at each cell."""
        x = self._tokens(x)
        return attention_maps(self.q_proj(x[:, :1]), self.k_proj(x), self.heads)

    def _tokens(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x.flatten(2).transpose([0, 2, 1])  # [n, c, h, w] -> [n, h * w, c]
        x = paddle.concat([x.mean(axis=1, keepdim=True), x], axis=1)
        return x + self.positional_embedding.astype(x.dtype)


class ModifiedResNet(Observed):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        super().__init__()
        half = tower.width // 2
        self.conv1 = nn.Conv2D(3, half, 3, stride=2, padding=1, bias_attr=False)
        self.bn1 = BatchNorm2d(half)
        self.conv2 = nn.Conv2D(half, half, 3, padding=1, bias_attr=False)
        self.bn2 = BatchNorm2d(half)
        self.conv3 = nn.Conv2D(half, tower.width, 3, padding=1, bias_attr=False)
        self.bn3 = BatchNorm2d(tower.width)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.LayerList()
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        self.observe("stem", x)
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = run(block, x)
                self.observe(f"layer{stage}.{index}", x)
        return self.attnpool(x)
