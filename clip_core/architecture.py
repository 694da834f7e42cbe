"""What shape a CLIP has: frozen descriptions of its towers, the named models, and reading a shape off the weights.

The numbers, addresses and digests of the nine OpenAI models are those of OpenAI's package (github.com/openai/CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isqrt
from typing import Any, Literal

from clip_core.errors import CheckpointError, ClipError

HEAD_WIDTH = 64  # OpenAI's models have heads of this width in every tower
OPENAI_CONTEXT_LENGTH = 77
OPENAI_VOCABULARY_SIZE = 49408

# A made-up description must not keep its reader busy with listing parameters.
MAX_LAYERS = 1000
MAX_NUMBER = 10**7

Activation = Literal["quick_gelu", "gelu"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class VisionTransformer:
    """An image tower that cuts the picture into ``patch`` x ``patch`` pixels and attends over them (ViT)."""

    resolution: int  # pixels along one side
    patch: int  # pixels along one side
    width: int
    layers: int
    heads: int

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
    """The causal text tower; its feature is the state at the end-of-text token."""

    context_length: int
    vocabulary_size: int
    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Architecture:
    """A whole CLIP: two towers that end in a joint space of ``embed_dim`` dimensions."""

    embed_dim: int
    image: VisionTransformer | ModifiedResNet
    text: TextTransformer
    activation: Activation = "quick_gelu"  # not stored in the weights: OpenAI's need quick_gelu
    logit_bias: bool = False  # whether a learnt number is added to the logits, as the sigmoid loss wants it

    def to_dict(self) -> dict[str, Any]:
        """This architecture as plain data for JSON; `from_dict` reads it back."""
        kind = "vit" if isinstance(self.image, VisionTransformer) else "resnet"
        return asdict(self) | {"image": {"kind": kind} | asdict(self.image)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            ClipError: a field is missing, unknown, or not of its type.
        """
        expected = [field.name for field in fields(cls)]
        towers = {"vit": VisionTransformer, "resnet": ModifiedResNet}
        try:
            if set(data) | {"logit_bias"} != set(expected):  # files written for models without one leave it out
                raise ValueError(f"its fields are {sorted(data)}, expected {sorted(expected)}")
            image = dict(data["image"])
            kind = image.pop("kind", None)
            if kind not in towers:
                raise ValueError(f"its image tower is of the kind {kind!r}, expected vit or resnet")
            if "blocks" in image:
                image["blocks"] = tuple(image["blocks"])
            tower = towers[kind](**image)
            text = TextTransformer(**data["text"])
            result = cls(data["embed_dim"], tower, text, data["activation"], data.get("logit_bias", False))
        except (TypeError, ValueError) as error:
            raise ClipError(f"The description of the architecture cannot be read: {error}.") from error
        result.check()
        return result

    def check(self) -> None:
        """Refuse an architecture that cannot be built.

        Raises:
            ClipError: naming the first impossible number.
        """
        numbers: dict[str, Any] = {"embed_dim": self.embed_dim}
        for tower in ("image", "text"):
            numbers |= {f"{tower}.{name}": value for name, value in vars(getattr(self, tower)).items()}
        for name, value in numbers.items():
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is not int or number < 1:
                    raise ClipError(f"The architecture's {name} is {value!r}; it must be a whole number above 0.")
                if number > (MAX_LAYERS if name.endswith(("layers", "blocks")) else MAX_NUMBER):
                    raise ClipError(f"The architecture's {name} is {value!r}, more than any model that can be built.")
        if self.activation not in ("quick_gelu", "gelu"):
            raise ClipError(f"The architecture's activation is {self.activation!r}; it must be quick_gelu or gelu.")
        if type(self.logit_bias) is not bool:
            raise ClipError(f"The architecture's logit_bias is {self.logit_bias!r}; it must be true or false.")
        attention_widths = {"text": self.text.width}
        if isinstance(self.image, VisionTransformer):
            attention_widths["image"] = self.image.width
            unit, unit_name = self.image.patch, "its patch"
        else:
            if len(self.image.blocks) != 4:
                raise ClipError(f"The architecture's image.blocks is {self.image.blocks!r}; it must be four numbers.")
            attention_widths["image"] = self.image.feature_width
            unit, unit_name = 32, "32"
        if self.image.resolution % unit:
            raise ClipError(f"The image resolution {self.image.resolution} is not a multiple of {unit_name} ({unit}).")
        for tower, width in attention_widths.items():
            heads = getattr(self, tower).heads
            if width % heads:
                raise ClipError(f"The {tower} tower's width {width} cannot be divided into {heads} heads.")


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


def infer(shapes: Mapping[str, Shape], activation: Activation = "quick_gelu") -> Architecture:
    """Read the architecture off the shapes of weights under OpenAI's names; heads are taken to be 64 wide.

    Args:
        shapes: parameter name -> shape.
        activation: the weights do not tell; OpenAI's need ``quick_gelu``.

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

    embed_dim = shape("text_projection", 2)[1]
    image: VisionTransformer | ModifiedResNet
    if "visual.proj" in shapes:
        width, _, patch, _ = shape("visual.conv1.weight", 4)
        image = VisionTransformer(
            resolution=grid("visual.positional_embedding") * patch,
            patch=patch,
            width=width,
            layers=count("visual.transformer.resblocks."),
            heads=max(width // HEAD_WIDTH, 1),
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
        width=text_width,
        layers=count("transformer.resblocks."),
        heads=max(text_width // HEAD_WIDTH, 1),
    )
    result = Architecture(embed_dim, image, text, activation, logit_bias="logit_bias" in shapes)
    try:
        result.check()
    except ClipError as error:
        raise CheckpointError(f"The weights do not look like a CLIP: {error}") from error
    return result
