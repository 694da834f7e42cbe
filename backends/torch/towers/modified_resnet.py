"""The ResNet of OpenAI's CLIP in PyTorch."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from backends.torch.layers import Block, Blocks, Observed, attend, attention_maps, looked_at
from clip_core.towers import modified_resnet as core


class Bottleneck(Block):
    """A residual block whose stride is an average pool behind the second convolution, so that nothing aliases."""

    expansion = 4  # of the channels, by the last convolution

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, outputs = stride, planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu3 = nn.ReLU()
        self.downsample = None
        if stride > 1 or inplanes != outputs:
            pool, conv = nn.AvgPool2d(stride), nn.Conv2d(inplanes, outputs, 1, bias=False)
            # OpenAI's names.
            self.downsample = nn.Sequential(OrderedDict({"-1": pool, "0": conv, "1": nn.BatchNorm2d(outputs)}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu3(x + y)


class AttentionPool2d(nn.Module):
    """The mean of a feature map attends over the map: [n, c, h, w] -> [n, embed_dim]."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        super().__init__()
        width = tower.feature_width
        self.num_heads = tower.heads
        self.positional_embedding = nn.Parameter(torch.empty(tower.grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._tokens(x)
        parts = list(self.children())
        if not looked_at(x, *parts) or any(type(part) is not nn.Linear for part in parts):
            x = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.num_heads)
            return self.c_proj(x.squeeze(1))
        # By the call of OpenAI's class, which other code sees and may replace.
        x = x.transpose(0, 1)  # [n, l, c] -> [l, n, c]
        x, _ = F.multi_head_attention_forward(
            x[:1],
            x,
            x,
            x.shape[-1],
            self.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return x.squeeze(0)

    def attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w] -> [n, heads, 1, 1 + h * w]: how much the mean looks at itself, and at each cell."""
        x = self._tokens(x)
        return attention_maps(self.q_proj(x[:, :1]), self.k_proj(x), self.num_heads)

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)  # [n, c, h, w] -> [n, h * w, c]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        return x + self.positional_embedding.to(x.dtype)


class ModifiedResNet(Observed):
    """The ResNet image tower of section 2.4 of the paper: three-convolution stem, average-pooled strides."""

    def __init__(self, tower: core.ModifiedResNet, embed_dim: int) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = tower.resolution, embed_dim
        half = tower.width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(half, tower.width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(tower.width)
        self.relu3 = nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        inputs = tower.width
        for stage, blocks in enumerate(tower.blocks):
            inner = tower.width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = Blocks()
            for stride in strides:
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = inner * 4
            setattr(self, f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool2d(tower, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x.to(self.conv1.weight.dtype))))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.avgpool(x)
        self.observe("stem", x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)
