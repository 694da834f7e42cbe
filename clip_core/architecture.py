"""What shape a CLIP has: frozen descriptions of its towers, the named models, and reading a shape off the weights.

The numbers, addresses and digests of the nine OpenAI models are those of OpenAI's package (github.com/openai/CLIP), and
so is what a tower takes for a field that is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import isqrt
from typing import Any, Literal, get_args

from clip_core.errors import CheckpointError, ClipError

HEAD_WIDTH = 64  # OpenAI's models have heads of this width in every tower
MLP_RATIO = 4  # of the inner width of a block's MLP to the tower's width
OPENAI_CONTEXT_LENGTH = 77
OPENAI_VOCABULARY_SIZE = 49408

# A made-up description must not keep its reader busy with listing parameters.
MAX_LAYERS = 1000
MAX_NUMBER = 10**7

# OpenAI's x * sigmoid(1.702 x), the exact GELU, and its approximation by tanh.
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["shortest", "squash"]
Colour = tuple[float, float, float]  # red, green and blue, which go from 0 to 1
Shape = tuple[int, ...]

# Of the pictures OpenAI trained on.
MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
DEVIATION: Colour = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """What becomes of a picture: resized to the tower's resolution, then (value / 255 - mean) / deviation.

    The defaults are those of OpenAI's package.
    """

    mean: Colour = MEAN
    deviation: Colour = DEVIATION
    interpolation: Interpolation = "bicubic"  # Pillow's filter
    # The shorter side becomes as long as the resolution and the middle is kept, or both sides are stretched to it.
    resize: Resize = "shortest"


OPENAI_PIXELS = Pixels()


@dataclass(frozen=True)
class VisionTransformer:
    """An image tower that cuts the picture into ``patch`` x ``patch`` pixels and attends over them (ViT)."""

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    heads: int
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    pixels: Pixels = OPENAI_PIXELS

    def __post_init__(self) -> None:
        _fill(self, "mlp_width", lambda: MLP_RATIO * self.width)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.resolution // self.patch


@dataclass(frozen=True)
class ModifiedResNet:
    """An image tower of bottleneck blocks with anti-aliased strides and an attention pool (paper, section 2.4)."""

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


@dataclass(frozen=True)
class TextTransformer:
    """The causal text tower; its feature is the state at the first end-of-text token."""

    context_length: int
    vocabulary_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int = None  # type: ignore[assignment]  # of the MLP inside; None stands for 4 times the width
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of every layer normalisation
    end_of_text: int = None  # type: ignore[assignment]  # a token; None stands for the last of the vocabulary

    def __post_init__(self) -> None:
        _fill(self, "mlp_width", lambda: MLP_RATIO * self.width)
        _fill(self, "end_of_text", lambda: self.vocabulary_size - 1)


def _fill(tower: Any, name: str, value: Callable[[], int]) -> None:
    if getattr(tower, name) is None:
        with suppress(TypeError):  # what it follows from is no number, which `Architecture.check` says
            object.__setattr__(tower, name, value())


Transformer = VisionTransformer | TextTransformer
_IMAGE_TOWERS: dict[str, type[VisionTransformer | ModifiedResNet]] = {
    "vit": VisionTransformer,
    "resnet": ModifiedResNet,
}


@dataclass(frozen=True)
class Architecture:
    """A whole CLIP: two towers that end in a joint space of ``embed_dim`` dimensions."""

    embed_dim: int
    image: VisionTransformer | ModifiedResNet
    text: TextTransformer
    logit_bias: bool = False  # whether a learnt number is added to the logits, as the sigmoid loss wants it

    @property
    def transformers(self) -> dict[str, Transformer]:
        """The towers that are transformers, by their place (``image``, ``text``); only they have an activation."""
        return {place: tower for place, tower in vars(self).items() if isinstance(tower, Transformer)}

    def with_activation(self, activation: Activation) -> Architecture:
        """This architecture with ``activation`` in both towers."""
        towers: dict[str, Any] = {
            place: replace(tower, activation=activation) for place, tower in self.transformers.items()
        }
        return replace(self, **towers)

    def to_dict(self) -> dict[str, Any]:
        """This architecture as plain data for JSON; `from_dict` reads it back."""
        kind = next(kind for kind, tower in _IMAGE_TOWERS.items() if isinstance(self.image, tower))
        image = {"kind": kind} | asdict(self.image, dict_factory=_plain)
        return asdict(self, dict_factory=_plain) | {"image": image}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        One ``activation`` beside the towers stands for that of both, as in older descriptions; what else they leave out
        is OpenAI's.

        Raises:
            ClipError: a field is missing, unknown, or not of its type.
        """
        try:
            given = dict(data)
            activation = given.pop("activation", None)
            expected = {field.name for field in fields(cls)}
            if given.keys() | {"logit_bias"} != expected:  # files written for models without one leave it out
                raise ValueError(f"its fields are {sorted(data)}, expected {sorted(expected)}")
            image = dict(given["image"])
            kind = image.pop("kind", None)
            if kind not in _IMAGE_TOWERS:
                raise ValueError(f"its image tower is of the kind {kind!r}, expected {' or '.join(_IMAGE_TOWERS)}")
            given["image"] = _tower(_IMAGE_TOWERS[kind], "image", image, activation)
            given["text"] = _tower(TextTransformer, "text", dict(given["text"]), activation)
            result = cls(**given)
        except (TypeError, ValueError) as error:
            raise ClipError(f"The description of the architecture cannot be read: {error}.") from error
        result.check()
        return result

    def check(self) -> None:
        """Refuse an architecture that cannot be built.

        Raises:
            ClipError: naming the first impossible value.
        """
        _check_number("embed_dim", self.embed_dim)
        for place, tower in (("image", self.image), ("text", self.text)):
            for name, value in vars(tower).items():
                _check_field(f"{place}.{name}", value)
        if type(self.logit_bias) is not bool:
            raise ClipError(f"The architecture's logit_bias is {self.logit_bias!r}; it must be true or false.")
        if not self.text.end_of_text < self.text.vocabulary_size:
            raise ClipError(
                f"The architecture's text.end_of_text is {self.text.end_of_text}, which is outside the vocabulary of "
                f"{self.text.vocabulary_size}."
            )
        attention_widths = {"text": self.text.width}
        if isinstance(self.image, VisionTransformer):
            attention_widths["image"] = self.image.width
            unit, unit_name = self.image.patch, "its patch"
        else:
            if len(self.image.blocks) != 4:
                raise ClipError(f"The architecture's image.blocks is {self.image.blocks!r}; it must be four numbers.")
            if self.image.width == 1:
                raise ClipError("The architecture's image.width is 1; half of it must be a whole number above 0.")
            attention_widths["image"] = self.image.feature_width
            unit, unit_name = 32, "32"
        if self.image.resolution % unit:
            raise ClipError(f"The image resolution {self.image.resolution} is not a multiple of {unit_name} ({unit}).")
        for place, width in attention_widths.items():
            heads = getattr(self, place).heads
            if width % heads:
                raise ClipError(f"The {place} tower's width {width} cannot be divided into {heads} heads.")


def differences(found: Architecture, expected: Architecture) -> list[str]:
    """Every field in which two architectures differ, as ``text.heads 4 rather than 8``."""

    def leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from leaves(part, f"{place}.{name}" if place else name)
        else:
            yield place, value

    ours, theirs = dict(leaves(found.to_dict(), "")), dict(leaves(expected.to_dict(), ""))
    return [
        f"{place} {ours.get(place, 'none')} rather than {theirs.get(place, 'none')}"
        for place in ours | theirs
        if ours.get(place) != theirs.get(place)
    ]


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def _tower(kind: type, place: str, data: dict[str, Any], activation: Any) -> Any:
    """One tower from plain data; ``activation`` is that of the towers that do not say their own.

    Raises:
        TypeError, ValueError: a field is missing or unknown.
    """
    known = {field.name: field for field in fields(kind)}
    if "activation" in known and data.setdefault("activation", activation) is None:
        del data["activation"]
    if unknown := sorted(map(str, data.keys() - known)):
        raise ValueError(f"its {place} tower has no field {unknown[0]}, only {', '.join(known)}")
    # What is computed may differ between two models of one shape, so it is never left to a default.
    needed = [name for name, field in known.items() if field.default is MISSING or name == "activation"]
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"its {place} tower lacks {', '.join(missing)}")
    if "blocks" in data:
        data["blocks"] = tuple(data["blocks"])
    if "pixels" in data:
        pixels = dict(data["pixels"])
        colours = {name: tuple(pixels[name]) for name in ("mean", "deviation") if name in pixels}
        data["pixels"] = Pixels(**pixels | colours)
    return kind(**data)


def _check_field(name: str, value: Any) -> None:
    if name.endswith(".activation"):
        _check_choice(name, value, ACTIVATIONS)
    elif name.endswith(".epsilon"):
        _check_range(name, value, 1e-12, 1e-3)  # Paddle takes no larger one
    elif name == "text.end_of_text":
        if type(value) is not int or value < 0:
            raise ClipError(f"The architecture's {name} is {value!r}; it must be a whole number from 0.")
    elif isinstance(value, Pixels):
        _check_choice(f"{name}.interpolation", value.interpolation, get_args(Interpolation))
        _check_choice(f"{name}.resize", value.resize, get_args(Resize))
        # A deviation below one step of a byte would make pixels that no float32 need hold.
        for part, colour, lowest in (("mean", value.mean, 0), ("deviation", value.deviation, 1 / 255)):
            if not isinstance(colour, tuple) or len(colour) != 3:
                raise ClipError(f"The architecture's {name}.{part} is {colour!r}; it must be three numbers.")
            for number in colour:
                _check_range(f"{name}.{part}", number, lowest, 1)
    else:
        _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if type(number) is not int or number < 1:
            raise ClipError(f"The architecture's {name} is {value!r}; it must be a whole number above 0.")
        if number > (MAX_LAYERS if name.endswith(("layers", "blocks")) else MAX_NUMBER):
            raise ClipError(f"The architecture's {name} is {value!r}, more than any model that can be built.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        *others, last = choices
        raise ClipError(f"The architecture's {name} is {value!r}; it must be {', '.join(others)} or {last}.")


def _check_range(name: str, value: Any, lowest: float, highest: float) -> None:
    if type(value) not in (int, float) or not lowest <= value <= highest:  # false for NaN, too
        raise ClipError(
            f"The architecture's {name} is {value!r}; it must be a number from {lowest:.3g} to {highest:g}."
        )


@dataclass(frozen=True)
class NamedModel:
    """A model that `clip.load` knows by name: its architecture, and where its official weights come from."""

    name: str
    architecture: Architecture
    file: str
    sha256: str | None = None  # None: the file ships inside this package

    @property
    def url(self) -> str | None:
        """The official address, which carries the digest; None for the packaged model."""
        if self.sha256 is None:
            return None
        return f"https://openaipublic.azureedge.net/clip/models/{self.sha256}/{self.file}"


def _text(width: int) -> TextTransformer:
    return TextTransformer(OPENAI_CONTEXT_LENGTH, OPENAI_VOCABULARY_SIZE, width, layers=12, heads=width // HEAD_WIDTH)


def _vit(embed_dim: int, resolution: int, patch: int, width: int, layers: int, text_width: int) -> Architecture:
    image = VisionTransformer(resolution, patch, width, layers, heads=width // HEAD_WIDTH)
    return Architecture(embed_dim, image, _text(text_width))


def _resnet(
    embed_dim: int, resolution: int, blocks: tuple[int, int, int, int], width: int, text_width: int
) -> Architecture:
    image = ModifiedResNet(resolution, width, blocks, heads=width * 32 // HEAD_WIDTH)
    return Architecture(embed_dim, image, _text(text_width))


SHAPES = Architecture(
    embed_dim=128,
    image=VisionTransformer(resolution=64, patch=8, width=128, layers=4, heads=2),
    text=TextTransformer(OPENAI_CONTEXT_LENGTH, vocabulary_size=770, width=128, layers=3, heads=2),
)

MODELS: dict[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel("shapes", SHAPES, "shapes.safetensors"),
        NamedModel(
            "RN50",
            _resnet(1024, 224, (3, 4, 6, 3), 64, 512),
            "RN50.pt",
            "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        ),
        NamedModel(
            "RN101",
            _resnet(512, 224, (3, 4, 23, 3), 64, 512),
            "RN101.pt",
            "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        ),
        NamedModel(
            "RN50x4",
            _resnet(640, 288, (4, 6, 10, 6), 80, 640),
            "RN50x4.pt",
            "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        ),
        NamedModel(
            "RN50x16",
            _resnet(768, 384, (6, 8, 18, 8), 96, 768),
            "RN50x16.pt",
            "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        ),
        NamedModel(
            "RN50x64",
            _resnet(1024, 448, (3, 15, 36, 10), 128, 1024),
            "RN50x64.pt",
            "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        ),
        NamedModel(
            "ViT-B/32",
            _vit(512, 224, 32, 768, 12, 512),
            "ViT-B-32.pt",
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        ),
        NamedModel(
            "ViT-B/16",
            _vit(512, 224, 16, 768, 12, 512),
            "ViT-B-16.pt",
            "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        ),
        NamedModel(
            "ViT-L/14",
            _vit(768, 224, 14, 1024, 24, 768),
            "ViT-L-14.pt",
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        ),
        NamedModel(
            "ViT-L/14@336px",
            _vit(768, 336, 14, 1024, 24, 768),
            "ViT-L-14-336px.pt",
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        ),
    )
}


def name_of(architecture: Architecture) -> str | None:
    """The registry's name for exactly this architecture, or None."""
    return next((name for name, model in MODELS.items() if model.architecture == architecture), None)


def infer(shapes: Mapping[str, Shape]) -> Architecture:
    """Read the architecture off the shapes of weights under OpenAI's names.

    What they do not tell is OpenAI's: heads 64 wide, activation, epsilon, end of text and pixels.

    Args:
        shapes: parameter name -> shape.

    Raises:
        CheckpointError: a tensor that decides the architecture is missing or cannot be of a CLIP.
    """

    def shape(name: str, dimensions: int) -> Shape:
        if name not in shapes:
            raise CheckpointError(f"The weights do not look like a CLIP: {name} is missing.")
        if len(shapes[name]) != dimensions or 0 in shapes[name]:
            raise CheckpointError(
                f"The weights do not look like a CLIP: {name} has shape {shapes[name]}, expected {dimensions} axes."
            )
        return shapes[name]

    def count(prefix: str) -> int:
        # Counting what follows the prefix, without trusting that the indices are dense: `naming` finds the gaps.
        return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

    def grid(name: str) -> int:
        rows = shape(name, 2)[0]
        side = isqrt(max(rows - 1, 0))
        if side < 1 or side * side != rows - 1:
            raise CheckpointError(
                f"The weights do not look like a CLIP: {name} has {rows} rows, expected a square + 1."
            )
        return side

    def transformer(prefix: str, width: int) -> dict[str, Any]:
        # The bias has the same shape in every layout, and one block speaks for all: `naming` finds those that differ.
        biases = (shape for name, shape in shapes.items() if name.startswith(prefix) and name.endswith("mlp.c_fc.bias"))
        mlp_width = next((shape[0] for shape in biases if len(shape) == 1 and shape[0]), MLP_RATIO * width)
        return {
            "width": width,
            "layers": count(prefix),
            "heads": max(width // HEAD_WIDTH, 1),
            "mlp_width": mlp_width,
        }

    embed_dim = shape("text_projection", 2)[1]
    image: VisionTransformer | ModifiedResNet
    if not any(name.startswith("visual.layer1.") for name in shapes):
        width, _, patch, _ = shape("visual.conv1.weight", 4)
        image = VisionTransformer(
            resolution=grid("visual.positional_embedding") * patch,
            patch=patch,
            **transformer("visual.transformer.resblocks.", width),
        )
    else:
        width = shape("visual.layer1.0.conv1.weight", 4)[0]
        image = ModifiedResNet(
            resolution=grid("visual.attnpool.positional_embedding") * 32,
            width=width,
            blocks=(
                count("visual.layer1."),
                count("visual.layer2."),
                count("visual.layer3."),
                count("visual.layer4."),
            ),
            heads=max(width * 32 // HEAD_WIDTH, 1),
        )
    vocabulary_size, text_width = shape("token_embedding.weight", 2)
    text = TextTransformer(
        context_length=shape("positional_embedding", 2)[0],
        vocabulary_size=vocabulary_size,
        **transformer("transformer.resblocks.", text_width),
    )
    result = Architecture(embed_dim, image, text, logit_bias="logit_bias" in shapes)
    try:
        result.check()
    except ClipError as error:
        raise CheckpointError(f"The weights do not look like a CLIP: {error}") from error
    return result
