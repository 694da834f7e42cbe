"""The residual networks of torchvision, with the head that simple-clip puts on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.errors import ClipError
from clip_core.parameters import Parameter, batch_norm, mlp_head, torchvision_conv
from clip_core.pixels import TORCHVISION_PIXELS, Pixels
from clip_core.towers.parts import ImageTower, ResidualBlock, Shapes, halved

EXPANSION = 4  # of a bottleneck's last convolution to its narrow ones


@dataclass(frozen=True)
class TorchvisionResNet(ImageTower):
    """An image tower of residual blocks whose feature is the mean of the last map, behind an MLP without biases.

    The network is that of arXiv 1512.03385, with a bottleneck's stride in its 3 x 3 convolution as in torchvision.
    ResNet-18 has 2-2-2-2 basic blocks, ResNet-50 has 3-4-6-3 bottlenecks.
    """

    kind: ClassVar[str] = "torchvision_resnet"
    title: ClassVar[str] = "torchvision ResNet"
    mark: ClassVar[str] = "trunk.conv1.weight"
    untold: ClassVar[tuple[str, ...]] = ("resolution", "epsilon", "momentum", "pixels")

    resolution: int  # pixels along one side
    blocks: tuple[int, int, int, int]
    block: ResidualBlock
    width: int = 64  # channels of the first stage's 3 x 3 convolutions; each later stage has twice as many
    epsilon: float = 1e-5  # of every batch normalisation
    momentum: float = 0.1  # share of a batch in the running statistics
    pixels: Pixels = TORCHVISION_PIXELS

    @property
    def feature_width(self) -> int:
        """Channels of the last feature map."""
        return self.width * 8 * (EXPANSION if self.block == "bottleneck" else 1)

    def check(self, place: str) -> None:
        super().check(place)
        if len(self.blocks) != 4:
            raise ClipError(f"The architecture's {place}.blocks is {self.blocks!r}; it must be four numbers.")

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        yield torchvision_conv("trunk.conv1", self.width, 3, size=7)
        yield from batch_norm("trunk.bn1", self.width)
        for prefix, channels, sizes, stride in self._blocks():
            for index, size in enumerate(sizes):
                yield torchvision_conv(f"{prefix}.conv{index + 1}", channels[index + 1], channels[index], size)
                yield from batch_norm(f"{prefix}.bn{index + 1}", channels[index + 1])
            if stride > 1 or channels[0] != channels[-1]:
                yield torchvision_conv(f"{prefix}.downsample.0", channels[-1], channels[0], size=1)
                yield from batch_norm(f"{prefix}.downsample.1", channels[-1])
        yield from mlp_head(self.feature_width, embed_dim)

    def _blocks(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
        """Of each block: its name, the channels before and after each convolution, their sizes, and the stride."""
        inputs = self.width
        for stage, blocks in enumerate(self.blocks):
            inner = self.width * 2**stage
            for block in range(blocks):
                name, stride = f"trunk.layer{stage + 1}.{block}", 2 if stage and block == 0 else 1
                if self.block == "basic":
                    yield name, (inputs, inner, inner), (3, 3), stride
                    inputs = inner
                else:
                    yield name, (inputs, inner, inner, inner * EXPANSION), (1, 3, 1), stride
                    inputs = inner * EXPANSION

    def multiplications(self, embed_dim: int) -> int:
        side = halved(self.resolution)
        total = side**2 * 3 * 7**2 * self.width
        side = halved(side)
        for _, channels, sizes, stride in self._blocks():
            strided = sizes.index(3)
            for index, size in enumerate(sizes):
                if index == strided and stride > 1:
                    side = halved(side)
                total += side**2 * channels[index] * channels[index + 1] * size**2
            if stride > 1 or channels[0] != channels[-1]:
                total += side**2 * channels[0] * channels[-1]
        return total + self.feature_width * (self.feature_width + embed_dim)

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return any(name.startswith("trunk.layer1.") for name in shapes)

    @classmethod
    def infer(cls, shapes: Shapes) -> TorchvisionResNet:
        width = shapes.shape("trunk.conv1.weight", 4)[0]
        one, two, three, four = (shapes.count(f"trunk.layer{stage}.") for stage in (1, 2, 3, 4))
        block: ResidualBlock = "bottleneck" if "trunk.layer1.0.conv3.weight" in shapes else "basic"
        return cls(224, (one, two, three, four), block, width)

    def summary(self) -> str:
        return f"ResNet of torchvision with {'-'.join(map(str, self.blocks))} {self.block} blocks, {self.width} wide"
