"""EfficientNetV2 as torchvision has it, with the head that simple-clip puts on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from clip_core.errors import ClipError
from clip_core.parameters import Parameter, batch_norm, mlp_head, torchvision_conv
from clip_core.pixels import TORCHVISION_PIXELS, Pixels
from clip_core.towers.parts import ImageTower, Shapes, halved

SQUEEZE = 4  # a block's input has so many times the channels of its squeeze-and-excitation
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the published networks' stages, of which the smallest has six


@dataclass(frozen=True)
class EfficientNetV2(ImageTower):
    """An image tower of inverted residual blocks whose feature is the mean of the last map, behind an MLP without bias.

    The network is that of arXiv 2104.00298, table 4. The first stages have fused blocks, the others depthwise
    convolutions with squeeze-and-excitation. Stochastic depth, which only changes training, is left out: each framework
    would drop other blocks, and runs in two frameworks could not be compared.
    """

    kind: ClassVar[str] = "efficientnet_v2"
    title: ClassVar[str] = "EfficientNetV2"
    mark: ClassVar[str] = "trunk.features.0.0.weight"
    untold: ClassVar[tuple[str, ...]] = ("resolution", "strides", "epsilon", "momentum", "pixels")

    resolution: int  # pixels along one side
    stem: int  # channels of the first convolution
    widths: tuple[int, ...]  # channels of each stage
    blocks: tuple[int, ...]  # in each stage
    expansions: tuple[int, ...]  # of a block's inner channels to its input's, in each stage
    strides: tuple[int, ...]  # of each stage's first block
    fused: int  # the first stages, whose blocks are fused
    width: int  # channels of the last convolution
    epsilon: float = 1e-3  # of every batch normalisation
    momentum: float = 0.1  # share of a batch in the running statistics
    pixels: Pixels = TORCHVISION_PIXELS

    def check(self, place: str) -> None:
        super().check(place)
        stages = len(self.widths)
        for name in ("blocks", "expansions", "strides"):
            if len(value := getattr(self, name)) != stages:
                raise ClipError(
                    f"The architecture's {place}.{name} is {value!r}; it must be {stages} numbers, as widths has."
                )
        if self.fused > stages:
            raise ClipError(f"The architecture's {place}.fused is {self.fused}; there are {stages} stages.")
        if 1 in self.expansions[self.fused :]:
            raise ClipError(
                f"The architecture's {place}.expansions is {self.expansions!r}; behind the fused stages they must be "
                "above 1."
            )

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        yield from _conv_norm("trunk.features.0", self.stem, 3, size=3)
        for stage, block, inputs in self._blocks():
            prefix = f"trunk.features.{stage + 1}.{block}.block"
            parameters = _fused if stage < self.fused else _depthwise
            yield from parameters(prefix, self.widths[stage], inputs, self.expansions[stage])
        yield from _conv_norm(f"trunk.features.{len(self.widths) + 1}", self.width, self.widths[-1], size=1)
        yield from mlp_head(self.width, embed_dim)

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        """Of each block: its stage, its number in it, and the channels before it."""
        inputs = self.stem
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                yield stage, block, inputs
                inputs = self.widths[stage]

    def multiplications(self, embed_dim: int) -> int:
        side = halved(self.resolution)
        total = side**2 * 3 * 3**2 * self.stem
        for stage, block, inputs in self._blocks():
            outputs, inner = self.widths[stage], inputs * self.expansions[stage]
            before, side = side, -(-side // (self.strides[stage] if block == 0 else 1))
            if stage >= self.fused:
                total += before**2 * inputs * inner + side**2 * inner * (3**2 + outputs)
                total += 2 * inner * max(inputs // SQUEEZE, 1)
            elif inner == inputs:
                total += side**2 * 3**2 * inputs * outputs
            else:
                total += side**2 * inner * (3**2 * inputs + outputs)
        return total + side**2 * self.widths[-1] * self.width + self.width * (self.width + embed_dim)

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "trunk.features.0.0.weight" in shapes

    @classmethod
    def infer(cls, shapes: Shapes) -> EfficientNetV2:
        stages = shapes.count("trunk.features.") - 2  # without the first and the last convolution
        widths, blocks, expansions, fused = [], [], [], 0
        for stage in range(1, stages + 1):
            prefix = f"trunk.features.{stage}."
            first, inputs = shapes.shape(f"{prefix}0.block.0.0.weight", 4)[:2]
            last = shapes.count(f"{prefix}0.block.") - 1  # 0 or 1 of a fused block, else 3
            widths.append(shapes.shape(f"{prefix}0.block.{last}.0.weight", 4)[0])
            blocks.append(shapes.count(prefix))
            expansions.append(first // inputs if last else 1)
            fused += last < 2
        return cls(
            224,
            stem=shapes.shape("trunk.features.0.0.weight", 4)[0],
            widths=tuple(widths),
            blocks=tuple(blocks),
            expansions=tuple(expansions),
            strides=(*STRIDES, *[1] * stages)[:stages],
            fused=fused,
            width=shapes.shape(f"trunk.features.{stages + 1}.0.weight", 4)[0],
        )

    def summary(self) -> str:
        return f"EfficientNetV2 of {'-'.join(map(str, self.blocks))} blocks, {self.width} wide"


def _conv_norm(prefix: str, outputs: int, inputs: int, size: int) -> Iterator[Parameter]:
    yield torchvision_conv(f"{prefix}.0", outputs, inputs, size)
    yield from batch_norm(f"{prefix}.1", outputs)


def _fused(prefix: str, outputs: int, inputs: int, expansion: int) -> Iterator[Parameter]:
    if expansion == 1:
        yield from _conv_norm(f"{prefix}.0", outputs, inputs, size=3)
    else:
        yield from _conv_norm(f"{prefix}.0", inputs * expansion, inputs, size=3)
        yield from _conv_norm(f"{prefix}.1", outputs, inputs * expansion, size=1)


def _depthwise(prefix: str, outputs: int, inputs: int, expansion: int) -> Iterator[Parameter]:
    inner, squeezed = inputs * expansion, max(inputs // SQUEEZE, 1)
    yield from _conv_norm(f"{prefix}.0", inner, inputs, size=1)
    yield from _conv_norm(f"{prefix}.1", inner, 1, size=3)
    yield torchvision_conv(f"{prefix}.2.fc1", squeezed, inner, size=1)
    yield Parameter(f"{prefix}.2.fc1.bias", (squeezed,), "vector")
    yield torchvision_conv(f"{prefix}.2.fc2", inner, squeezed, size=1)
    yield Parameter(f"{prefix}.2.fc2.bias", (inner,), "vector")
    yield from _conv_norm(f"{prefix}.3", outputs, inner, size=1)
