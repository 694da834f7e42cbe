"""The registry: architectures that are known by name, and of some the official weights.

The numbers, addresses and digests of the nine OpenAI models are those of OpenAI's package (github.com/openai/CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_core.architecture import Architecture, plain
from clip_core.errors import ClipError
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from clip_core.towers.mixer import TextMixer, VisionMixer
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import HEAD_WIDTH, Activation, Tower
from clip_core.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from clip_core.towers.vision_transformer import VisionTransformer

OPENAI_CONTEXT_LENGTH = 77
OPENAI_VOCABULARY_SIZE = 49408


@dataclass(frozen=True)
class Family:
    """Models of one project."""

    name: str
    tokenizer: str  # what makes their tokens, in some words
    files: str  # that load into them beside those written here, in some words


OURS = Family("TriCLIP", "byte pairs learnt from the captions", "every layout below that has names for the towers")
OPENAI = Family(
    "OpenAI",
    "OpenAI's byte pairs",
    "OpenAI .pt; Hugging Face and open_clip folders; NNabla .h5, .protobuf and .nnp; PASSL .pdparams (ViT)",
)
MIXER_CLIP = Family("Mixer CLIP", "OpenAI's byte pairs", "state dictionaries of Mixer CLIP")
SIMPLE_CLIP = Family("simple-clip", "DistilBERT's WordPiece", "clip_model.pth of simple-clip")
LOW_RESOURCE = Family(
    "Low-resource CLIP",
    "byte pairs learnt from the captions; [EOS] is 1, [SOS] is 2, and 0 fills texts up",
    "Low-resource CLIP's checkpoints, whose text features are others there",
)

OPEN_CLIP = Family("open_clip", "OpenAI's byte pairs", "open_clip's and Hugging Face's folders and files")
SIGLIP = Family(
    "SigLIP", "SentencePiece, from the tokenizer.json in the model's folder", "Hugging Face folders; open_clip's files"
)
META_CLIP_2 = Family(
    "MetaCLIP 2",
    "SentencePiece of XLM-V (L: of mT5), from the tokenizer.json in the model's folder",
    "Hugging Face and open_clip folders",
)


@dataclass(frozen=True)
class NamedModel:
    """A model that `clip.load` knows by name: its architecture, and where its official weights come from."""

    name: str
    architecture: Architecture
    file: str
    sha256: str | None = None  # None: the file ships inside this package

    @property
    def family(self) -> Family:
        return OURS if self.sha256 is None else OPENAI

    @property
    def url(self) -> str | None:
        """The official address, which carries the digest; None for the packaged model."""
        if self.sha256 is None:
            return None
        return f"https://openaipublic.azureedge.net/clip/models/{self.sha256}/{self.file}"


@dataclass(frozen=True)
class NamedArchitecture:
    """An architecture that recipes know by name; its weights come from a file or a training.

    Its numbers are those of the project that is its source.
    """

    name: str
    architecture: Architecture
    family: Family


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
_MIXER = Architecture(
    embed_dim=512,
    image=VisionMixer(resolution=224, patch=32, width=768, layers=12),
    text=TextMixer(OPENAI_CONTEXT_LENGTH, OPENAI_VOCABULARY_SIZE, width=512, layers=12),
)

_SIGLIP_SIZES = {  # width, layers, heads, inner width of the MLP
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}


def _siglip(
    name: str, size: str, patch: int, resolution: int, vocabulary_size: int, context_length: int = 64
) -> NamedArchitecture:
    width, layers, heads, mlp_width = _SIGLIP_SIZES[size]
    image = SiglipVisionTransformer(resolution, patch, width, layers, heads, mlp_width)
    text_size = _SIGLIP_SIZES["SO400M" if size == "gopt" else size]
    text = SiglipTextTransformer(context_length, vocabulary_size, *text_size)
    return NamedArchitecture(f"ViT-{size}-{patch}-{name}", Architecture(width, image, text, logit_bias=True), SIGLIP)


_OPEN_CLIP_SIZES = {  # of the joint space; width, layers, heads and inner width of the image tower; width, layers and
    # heads of the text tower
    "S": (384, (384, 12, 6, 1536), (384, 12, 6)),
    "S-alt": (256, (384, 12, 6, 1536), (256, 10, 4)),
    "M": (512, (512, 12, 8, 2048), (512, 12, 8)),
    "M-alt": (384, (512, 12, 8, 2048), (384, 12, 6)),
    "B": (512, (768, 12, 12, 3072), (512, 12, 8)),
    "B-plus": (640, (896, 12, 14, 3584), (640, 12, 10)),
    "L": (768, (1024, 24, 16, 4096), (768, 12, 12)),
    "H": (1024, (1280, 32, 16, 5120), (1024, 24, 16)),
    "g": (1024, (1408, 40, 16, 6144), (1024, 24, 16)),
    "bigG": (1280, (1664, 48, 16, 8192), (1280, 32, 20)),
    "e": (1280, (1792, 56, 16, 15360), (1280, 36, 20)),
}


def _open_clip(
    name: str, size: str, patch: int, resolution: int = 224, activation: Activation = "gelu"
) -> NamedArchitecture:
    embed_dim, image, text = _OPEN_CLIP_SIZES[size]
    towers = (
        VisionTransformer(resolution, patch, *image, activation=activation),
        TextTransformer(OPENAI_CONTEXT_LENGTH, OPENAI_VOCABULARY_SIZE, *text, activation=activation),
    )
    return NamedArchitecture(name, Architecture(embed_dim, *towers), OPEN_CLIP)


_META_TOKENS = {"L": (250100, 1), "H": (901629, 2), "bigG": (901629, 2)}  # how many, and the one that ends a text


def _meta_clip_2(
    size: str, ending: str = "", resolution: int = 224, activation: Activation = "gelu"
) -> NamedArchitecture:
    embed_dim, image, text = _OPEN_CLIP_SIZES[size]
    tokens, end = _META_TOKENS[size]
    towers = (
        VisionTransformer(resolution, 14, *image, activation=activation),
        TextTransformer(OPENAI_CONTEXT_LENGTH, tokens, *text, activation=activation, end_of_text=end),
    )
    return NamedArchitecture(f"ViT-{size}-14-worldwide{ending}", Architecture(embed_dim, *towers), META_CLIP_2)


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


_LOW_RESOURCE_IMAGE = {
    name: LowResourceVisionTransformer(*numbers)
    for name, numbers in {
        # resolution, patch, width, layers, heads, widths inside the MLPs and inside the head
        "M/14@112": (112, 14, 256, 6, 8, 512, 512),
        "S/16@112": (112, 16, 512, 8, 8, 2048, 2048),
        "S/8@112": (112, 8, 512, 8, 8, 2048, 2048),
        "B/16@112": (112, 16, 768, 12, 12, 3072, 3072),
        "B/32@224": (224, 32, 768, 12, 12, 4096, 4096),
        "L/14@224": (224, 14, 1024, 24, 16, 4096, 1024),
    }.items()
}
_LOW_RESOURCE_TEXT = {
    name: LowResourceTextTransformer(32, 20_000, 512, layers, heads=8, mlp_width=mlp_width)
    # The 12 heads of its L do not divide the width. With 8, it is B.
    for name, layers, mlp_width in (("S", 8, 1024), ("B", 12, 2048), ("L", 12, 2048))
}
_TORCHVISION = {
    "resnet18": TorchvisionResNet(resolution=224, blocks=(2, 2, 2, 2), block="basic"),
    "resnet50": TorchvisionResNet(resolution=224, blocks=(3, 4, 6, 3), block="bottleneck"),
    "efficientnet": EfficientNetV2(  # the size S
        resolution=224,
        stem=24,
        widths=(24, 48, 64, 128, 160, 256),
        blocks=(2, 4, 4, 6, 9, 15),
        expansions=(1, 4, 4, 4, 6, 6),
        strides=(1, 2, 2, 2, 1, 2),
        fused=3,
        width=1280,
    ),
}
TOWERS: dict[str, Mapping[str, Tower]] = {"image": _LOW_RESOURCE_IMAGE, "text": _LOW_RESOURCE_TEXT}
"""Towers that recipes know by a name of their own, for descriptions of any pair of them."""

ARCHITECTURES: dict[str, NamedArchitecture] = {
    named.name: named
    for named in (
        NamedArchitecture("Mixer-B/32", _MIXER, MIXER_CLIP),
        *(
            NamedArchitecture(
                f"{image}+{text}", Architecture(512, _LOW_RESOURCE_IMAGE[image], _LOW_RESOURCE_TEXT[text]), LOW_RESOURCE
            )
            for image, text in zip(_LOW_RESOURCE_IMAGE, "SSSBBL")
        ),
        *(
            # Its texts have 100 tokens of the 512 that DistilBERT has positions for.
            NamedArchitecture(
                f"simple-clip-{name}", Architecture(256, image, DistilBERT(100), logit_bias=True), SIMPLE_CLIP
            )
            for name, image in _TORCHVISION.items()
        ),
        # Its ViT-B-32-quickgelu, ViT-B-16-quickgelu, ViT-L-14-quickgelu and ViT-L-14-336-quickgelu are OpenAI's models.
        *(_open_clip(f"ViT-{size}-{patch}", size, patch) for size in "SMB" for patch in (32, 16)),
        *(_open_clip(f"ViT-S-{patch}-alt", "S-alt", patch) for patch in (32, 16)),
        _open_clip("ViT-M-32-alt", "M-alt", 32),
        _open_clip("ViT-B-32-256", "B", 32, 256),
        _open_clip("ViT-B-32-plus-256", "B-plus", 32, 256),
        _open_clip("ViT-B-16-plus", "B-plus", 16),
        _open_clip("ViT-B-16-plus-240", "B-plus", 16, 240),
        _open_clip("ViT-L-16", "L", 16),
        _open_clip("ViT-L-16-320", "L", 16, 320),
        _open_clip("ViT-L-14", "L", 14),
        _open_clip("ViT-L-14-280", "L", 14, 280),
        _open_clip("ViT-L-14-336", "L", 14, 336),
        _open_clip("ViT-H-16", "H", 16),
        *(_open_clip(f"ViT-{size}-14", size, 14) for size in ("H", "g", "bigG", "e")),
        _open_clip("ViT-H-14-378", "H", 14, 378),
        _open_clip("ViT-H-14-quickgelu", "H", 14, activation="quick_gelu"),
        _open_clip("ViT-H-14-378-quickgelu", "H", 14, 378, "quick_gelu"),
        _open_clip("ViT-bigG-14-quickgelu", "bigG", 14, activation="quick_gelu"),
        _siglip("SigLIP", "B", 16, 224, 32000),
        *(_siglip(f"SigLIP-{resolution}", "B", 16, resolution, 32000) for resolution in (256, 384, 512)),
        *(_siglip(f"SigLIP-{resolution}", "L", 16, resolution, 32000) for resolution in (256, 384)),
        _siglip("SigLIP", "SO400M", 14, 224, 32000, context_length=16),
        *(_siglip(f"SigLIP-{resolution}", "SO400M", 14, resolution, 32000) for resolution in (378, 384)),
        _siglip("SigLIP-i18n-256", "B", 16, 256, 250000),
        _siglip("SigLIP2-256", "B", 32, 256, 256000),
        _siglip("SigLIP2", "B", 16, 224, 256000),
        *(_siglip(f"SigLIP2-{resolution}", "B", 16, resolution, 256000) for resolution in (256, 384, 512)),
        *(_siglip(f"SigLIP2-{resolution}", "L", 16, resolution, 256000) for resolution in (256, 384, 512)),
        _siglip("SigLIP2", "SO400M", 14, 224, 256000),
        _siglip("SigLIP2-378", "SO400M", 14, 378, 256000),
        *(_siglip(f"SigLIP2-{resolution}", "SO400M", 16, resolution, 256000) for resolution in (256, 384, 512)),
        *(_siglip(f"SigLIP2-{resolution}", "gopt", 16, resolution, 256000) for resolution in (256, 384)),
        *(_meta_clip_2(size) for size in _META_TOKENS),
        *(_meta_clip_2(size, "-quickgelu", activation="quick_gelu") for size in ("L", "H")),
        *(_meta_clip_2(size, "-378", resolution=378) for size in ("H", "bigG")),
    )
}
"""Without weights at a fixed address."""


def everything() -> list[NamedModel | NamedArchitecture]:
    """All that is known by name, a family at a time."""
    return [*MODELS.values(), *ARCHITECTURES.values()]


def architecture_of(name: str) -> Architecture | None:
    """The architecture of that name, or None."""
    named = MODELS.get(name) or ARCHITECTURES.get(name)
    return None if named is None else named.architecture


def written_out(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description of an architecture, with those of its towers in place of their names.

    The name of a model stands for its tower at that place.

    Raises:
        ClipError: there is no tower of that name.
    """
    result = dict(description)
    for place, towers in TOWERS.items():
        name = result.get(place)
        if isinstance(name, str):
            known = {**towers, **{named.name: getattr(named.architecture, place) for named in everything()}}
            if name not in known:
                raise ClipError(f"There is no {place} tower {name!r:.80}; choose one of {', '.join(known)}.")
            result[place] = plain(known[name])
    return result


def name_of(architecture: Architecture) -> str | None:
    """The registry's name for exactly this architecture, or None."""
    return next((named.name for named in everything() if named.architecture == architecture), None)
