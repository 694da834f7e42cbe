"""The ResNet of OpenAI's CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.errors import ClipError
from clip_core.parameters import ZERO, Normal, Parameter, Uniform, batch_norm, conv, linear
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.towers.parts import HEAD_WIDTH, ImageTower, Shapes, check_heads, check_resolution


@dataclass(frozen=True)
class ModifiedResNet(ImageTower):
    """An image tower of bottleneck blocks with anti-aliased strides and an attention pool (paper, section 2.4)."""

    kind: ClassVar[str] = "resnet"
    title: ClassVar[str] = "ResNet"
    mark: ClassVar[str] = "conv1.weight"
    untold: ClassVar[tuple[str, ...]] = ("heads", "pixels")

    resolution: int  # pixels along one side
    width: int
    blocks: tuple[int, int, int, int]
    heads: int  # of the attention pool
    pixels: Pixels = OPENAI_PIXELS

    @property
    def grid(self) -> int:
        """Cells along one side of the last feature map."""
        return self.resolution // 32

    @property
    def feature_width(self) -> int:
        """Channels of the last feature map."""
        return self.width * 32

    @property
    def attention_width(self) -> int:
        return self.feature_width

    def check(self, place: str) -> None:
        super().check(place)
        if len(self.blocks) != 4:
            raise ClipError(f"The architecture's {place}.blocks is {self.blocks!r}; it must be four numbers.")
        if self.width == 1:
            raise ClipError(f"The architecture's {place}.width is 1; half of it must be a whole number above 0.")
        check_resolution(self.resolution, 32, "32")
        check_heads(place, self, self.heads)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        stem = (3, self.width // 2, self.width // 2, self.width)
        for index in (1, 2, 3):
            yield conv(f"conv{index}", stem[index], stem[index - 1], size=3)
            yield from batch_norm(f"bn{index}", stem[index])
        inputs = self.width
        for stage, blocks in enumerate(self.blocks):
            inner = self.width * 2**stage
            for block in range(blocks):
                yield from _bottleneck(f"layer{stage + 1}.{block}", inputs, inner, downsample=block == 0)
                inputs = inner * 4
        yield from self._attention_pool(embed_dim)

    def _attention_pool(self, embed_dim: int) -> Iterator[Parameter]:
        width = self.feature_width
        spread, bias = Normal(width**-0.5), Uniform(width**-0.5)
        yield Parameter("attnpool.positional_embedding", (self.grid**2 + 1, width), "embedding", spread)
        for name, outputs in (("k_proj", width), ("q_proj", width), ("v_proj", width), ("c_proj", embed_dim)):
            yield from linear(f"attnpool.{name}", outputs, width, spread, bias)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"attnpool.positional_embedding": (self.grid, 1)}

    def multiplications(self, embed_dim: int) -> int:
        half, side, inputs = self.width // 2, self.resolution // 2, self.width
        total = side**2 * 9 * (3 * half + half**2 + half * self.width)
        side //= 2
        for stage, blocks in enumerate(self.blocks):
            inner = self.width * 2**stage
            for block in range(blocks):
                total += side**2 * (inputs * inner + 9 * inner**2)
                if block == 0:
                    side //= 2 if stage else 1
                    total += side**2 * inputs * 4 * inner
                total += side**2 * 4 * inner**2
                inputs = 4 * inner
        width, tokens = self.feature_width, self.grid**2 + 1
        return total + 2 * tokens * width**2 + width**2 + 2 * tokens * width + width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return any(name.startswith("layer1.") for name in shapes)

    @classmethod
    def infer(cls, shapes: Shapes) -> ModifiedResNet:
        width = shapes.shape("layer1.0.conv1.weight", 4)[0]
        resolution = shapes.grid("attnpool.positional_embedding") * 32
        one, two, three, four = (shapes.count(f"layer{stage}.") for stage in (1, 2, 3, 4))
        return cls(resolution, width, (one, two, three, four), heads=max(width * 32 // HEAD_WIDTH, 1))

    def summary(self) -> str:
        return f"ResNet of {'-'.join(map(str, self.blocks))} blocks, {self.width} wide, {self.heads} heads"


def _bottleneck(prefix: str, inputs: int, inner: int, downsample: bool) -> Iterator[Parameter]:
    yield conv(f"{prefix}.conv1", inner, inputs, size=1)
    yield from batch_norm(f"{prefix}.bn1", inner)
    yield conv(f"{prefix}.conv2", inner, inner, size=3)
    yield from batch_norm(f"{prefix}.bn2", inner)
    yield conv(f"{prefix}.conv3", inner * 4, inner, size=1)
    yield from batch_norm(f"{prefix}.bn3", inner * 4, gain=ZERO)  # so that each block starts as the identity
    if downsample:
        yield conv(f"{prefix}.downsample.0", inner * 4, inputs, size=1)
        yield from batch_norm(f"{prefix}.downsample.1", inner * 4)
