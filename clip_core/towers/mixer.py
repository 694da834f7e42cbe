"""The two MLP-Mixers of Mixer CLIP (github.com/corentin-ryr/CLIP-mixer), for pictures and for texts.

A Mixer block (arXiv 2105.01601, section 2) has an MLP over the tokens of each channel, where a transformer attends, and
an MLP over the channels of each token. The first has one weight for each token, so a Mixer has no positions, and takes
exactly as many tokens as it was made for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from clip_core.errors import ClipError
from clip_core.parameters import Initial, Normal, Parameter, Uniform, conv, linear, norm
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.towers.parts import (
    BLOCK_NOISES,
    MLP_RATIO,
    Activation,
    ImageTower,
    Mixer,
    Shapes,
    TextTower,
    check_resolution,
    check_token,
    fill,
)

_BLOCKS = "mixer.resblocks"


@dataclass(frozen=True)
class VisionMixer(ImageTower):
    """An image tower that cuts the picture into ``patch`` x ``patch`` pixels and mixes them; its feature is the state
    of a class token.
    """

    kind: ClassVar[str] = "mixer"
    title: ClassVar[str] = "Mixer"
    mark: ClassVar[str] = "conv1.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "epsilon", "pixels")
    noises: ClassVar[tuple[str, ...]] = BLOCK_NOISES

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    token_mlp_width: int = None  # type: ignore[assignment]  # of the MLP over the tokens; None: 4 times their number
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP over the channels; None: 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    pixels: Pixels = OPENAI_PIXELS

    def __post_init__(self) -> None:
        fill(self, "token_mlp_width", lambda: MLP_RATIO * self.tokens)
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.resolution // self.patch

    @property
    def tokens(self) -> int:
        """The patches and the class token."""
        return self.grid**2 + 1

    def check(self, place: str) -> None:
        super().check(place)
        check_resolution(self.resolution, self.patch, "its patch")

    def doubts(self, place: str, assumed: Collection[str]) -> Iterator[str]:
        yield from super().doubts(place, assumed)
        yield from _doubts(self, place, assumed)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        """Initial values are those of Mixer CLIP: PyTorch's defaults, and OpenAI's for the class token and ``proj``."""
        width = self.width
        yield Parameter("class_embedding", (width,), "vector", Normal(width**-0.5))
        yield Parameter("proj", (width, embed_dim), "projection", Normal(width**-0.5))
        yield conv("conv1", width, 3, self.patch)
        yield from norm("ln_pre", width)
        yield from _blocks(self)
        yield from norm("ln_post", width)

    def position_grids(self) -> NoReturn:
        raise ClipError(
            f"The image tower is a Mixer, whose matrices are for {self.grid} x {self.grid} patches and cannot be "
            f"interpolated as positions can, so its resolution stays {self.resolution}; leave --resolution "
            "(resolution=...) out."
        )

    def multiplications(self, embed_dim: int) -> int:
        patches = self.grid**2 * 3 * self.patch**2 * self.width
        return patches + _multiplications(self) + self.width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "class_embedding" in shapes and shapes.count(f"{_BLOCKS}.") > 0

    @classmethod
    def infer(cls, shapes: Shapes) -> VisionMixer:
        width, _, patch, _ = shapes.shape("conv1.weight", 4)
        resolution = shapes.grid(f"{_BLOCKS}.0.token_mlp.c_proj.bias", dimensions=1) * patch
        return cls(resolution, patch, width, **_numbers(shapes))

    def summary(self) -> str:
        return f"Mixer of {self.layers} layers, {self.width} wide, patches of {self.patch}"


@dataclass(frozen=True)
class TextMixer(TextTower):
    """A text tower that mixes all tokens, padding included; its feature is the state at the first end-of-text token."""

    kind: ClassVar[str] = "mixer"
    title: ClassVar[str] = "Mixer"
    mark: ClassVar[str] = "token_embedding.weight"
    untold: ClassVar[tuple[str, ...]] = ("activation", "epsilon", "end_of_text")
    noises: ClassVar[tuple[str, ...]] = BLOCK_NOISES

    context_length: int
    vocabulary_size: int
    width: int
    layers: int
    token_mlp_width: int = None  # type: ignore[assignment]  # of the MLP over the tokens; None: 4 times their number
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP over the channels; None: 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    end_of_text: int = None  # type: ignore[assignment]  # a token; None stands for the last of the vocabulary

    def __post_init__(self) -> None:
        fill(self, "token_mlp_width", lambda: MLP_RATIO * self.tokens)
        fill(self, "mlp_width", lambda: MLP_RATIO * self.width)
        fill(self, "end_of_text", lambda: self.vocabulary_size - 1)

    @property
    def tokens(self) -> int:
        """All of a text's, padding included."""
        return self.context_length

    @property
    def required_token(self) -> int:
        return self.end_of_text

    @property
    def shortest_length(self) -> int:
        return self.context_length

    def check(self, place: str) -> None:
        super().check(place)
        check_token(f"{place}.end_of_text", self.end_of_text, self.vocabulary_size)

    def doubts(self, place: str, assumed: Collection[str]) -> Iterator[str]:
        yield from super().doubts(place, assumed)
        yield from _doubts(self, place, assumed)

    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        """Initial values are those of Mixer CLIP: OpenAI's scheme for matrices, PyTorch's default for biases."""
        width = self.width
        yield Parameter("text_projection", (width, embed_dim), "projection", Normal(width**-0.5))
        yield Parameter("token_embedding.weight", (self.vocabulary_size, width), "embedding", Normal(0.02))
        yield from _blocks(self, Normal((2 * width) ** -0.5), Normal(width**-0.5 * (2 * self.layers) ** -0.5))
        yield from norm("ln_final", width)

    def multiplications(self, embed_dim: int) -> int:
        return _multiplications(self) + self.width * embed_dim

    @classmethod
    def recognises(cls, shapes: Shapes) -> bool:
        return "token_embedding.weight" in shapes and shapes.count(f"{_BLOCKS}.") > 0

    @classmethod
    def infer_embed_dim(cls, shapes: Shapes) -> int:
        return shapes.shape("text_projection", 2)[1]

    @classmethod
    def infer(cls, shapes: Shapes) -> TextMixer:
        vocabulary_size, width = shapes.shape("token_embedding.weight", 2)
        (context_length,) = shapes.shape(f"{_BLOCKS}.0.token_mlp.c_proj.bias", 1)
        return cls(context_length, vocabulary_size, width, **_numbers(shapes))

    def summary(self) -> str:
        return f"Mixer of {self.layers} layers, {self.width} wide"


def _blocks(mixer: Mixer, inner: Initial | None = None, outer: Initial | None = None) -> Iterator[Parameter]:
    """The parameters of the blocks; ``inner`` and ``outer`` are initial values of the first and second matrices of each
    MLP, by default PyTorch's, which go by the number of inputs as those of the biases do.
    """

    def mlp(prefix: str, width: int, inner_width: int) -> Iterator[Parameter]:
        first, second = Uniform(width**-0.5), Uniform(inner_width**-0.5)
        yield from linear(f"{prefix}.c_fc", inner_width, width, inner or first, bias=first)
        yield from linear(f"{prefix}.c_proj", width, inner_width, outer or second, bias=second)

    for layer in range(mixer.layers):
        block = f"{_BLOCKS}.{layer}"
        yield from norm(f"{block}.ln_1", mixer.width)
        yield from mlp(f"{block}.token_mlp", mixer.tokens, mixer.token_mlp_width)
        yield from norm(f"{block}.ln_2", mixer.width)
        yield from mlp(f"{block}.mlp", mixer.width, mixer.mlp_width)


def _numbers(shapes: Shapes) -> dict[str, Any]:
    """The fields that the blocks tell. The first one speaks for all: the table finds those that differ."""
    return {
        "layers": shapes.count(f"{_BLOCKS}."),
        "token_mlp_width": shapes.shape(f"{_BLOCKS}.0.token_mlp.c_fc.bias", 1)[0],
        "mlp_width": shapes.shape(f"{_BLOCKS}.0.mlp.c_fc.bias", 1)[0],
    }


def _multiplications(mixer: Mixer) -> int:
    per_block = mixer.tokens * mixer.token_mlp_width * mixer.width + mixer.tokens * mixer.mlp_width * mixer.width
    return mixer.layers * 2 * per_block


def _doubts(mixer: Mixer, place: str, assumed: Collection[str]) -> Iterator[str]:
    """What `Tower.doubts` adds for a Mixer."""
    if "activation" in assumed and mixer.mlp_width != MLP_RATIO * mixer.width:
        yield f"the {place} tower's MLP is {mixer.mlp_width} wide inside"
