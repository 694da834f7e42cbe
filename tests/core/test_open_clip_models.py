"""The named models of open_clip have the numbers of its configurations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from clip_core.architecture import Architecture
from clip_core.models import ARCHITECTURES, MODELS, OPEN_CLIP
from clip_core.naming import count
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

NAMED = {name: named for name, named in ARCHITECTURES.items() if named.family is OPEN_CLIP}
OPENAI = {
    "ViT-B-32-quickgelu": "ViT-B/32",
    "ViT-B-16-quickgelu": "ViT-B/16",
    "ViT-L-14-quickgelu": "ViT-L/14",
    "ViT-L-14-336-quickgelu": "ViT-L/14@336px",
}
VISION_KEYS = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}


def of_openais_shape() -> dict[str, Architecture]:
    """Each model of open_clip that has nothing but other numbers than OpenAI's Vision Transformers."""
    found = {}
    for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json"):
        config = json.loads(path.read_text())
        vision, text = config["vision_cfg"], config["text_cfg"]
        if vision.keys() <= VISION_KEYS and text.keys() <= TEXT_KEYS and isinstance(vision["layers"], int):
            assert config.keys() <= {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}, path
            activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
            width = vision["width"]
            found[path.stem] = Architecture(
                config["embed_dim"],
                VisionTransformer(
                    vision["image_size"],
                    vision["patch_size"],
                    width,
                    vision["layers"],
                    heads=width // vision.get("head_width", 64),
                    mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
                    activation=activation,
                ),
                TextTransformer(
                    text["context_length"],
                    text["vocab_size"],
                    text["width"],
                    text["layers"],
                    text["heads"],
                    activation=activation,
                ),
            )
    return found


def test_every_model_of_openais_shape_is_there():
    openai = {name: MODELS[ours].architecture for name, ours in OPENAI.items()}
    assert of_openais_shape() == openai | {name: named.architecture for name, named in NAMED.items()}
    assert len(NAMED) == 27


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ViT-B-16-plus-240", 208.38), ("ViT-H-14", 986.11), ("ViT-g-14", 1366.68), ("ViT-bigG-14", 2539.57)],
)
def test_parameters(name, millions):
    """As open_clip publishes them."""
    assert round(count(NAMED[name].architecture) / 1e6, 2) == millions
