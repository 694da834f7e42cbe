"""The named models of SigLIP and MetaCLIP 2 have the numbers of open_clip's configurations."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clip_core.architecture import Architecture, infer
from clip_core.layouts.timm import trunk
from clip_core.models import ARCHITECTURES, META_CLIP_2, SIGLIP
from clip_core.naming import count, parameters
from clip_core.pixels import OPENAI_PIXELS
from clip_core.towers.siglip import SIGLIP_PIXELS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

CONFIGURATIONS = {path.stem: path for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
NAMED = {name: named for name, named in ARCHITECTURES.items() if named.family in (SIGLIP, META_CLIP_2)}
# Its text tower has no projection, which cannot be computed here.
LEFT_OUT = {"ViT-SO400M-16-SigLIP-i18n-256"}


def test_every_model_of_open_clip_is_there():
    theirs = {name for name in CONFIGURATIONS if "-SigLIP" in name or "-worldwide" in name}
    assert theirs - LEFT_OUT == NAMED.keys()


def transformer(section: dict[str, Any], width: int) -> dict[str, Any]:
    return {"width": width, "layers": section["layers"], "mlp_width": int(width * section.get("mlp_ratio", 4.0))}


@pytest.mark.parametrize("name", NAMED)
def test_dimensions(name):
    config = json.loads(CONFIGURATIONS[name].read_text())
    vision, text = config["vision_cfg"], config["text_cfg"]
    found: Architecture = NAMED[name].architecture
    assert (found.embed_dim, found.image.resolution) == (config["embed_dim"], vision["image_size"])
    expected = transformer(text, text["width"]) | {
        "context_length": text["context_length"],
        "vocabulary_size": text["vocab_size"],
        "heads": text["heads"],
    }
    if NAMED[name].family is META_CLIP_2:
        image = transformer(vision, vision["width"]) | {
            "patch": vision["patch_size"],
            "heads": vision["width"] // vision.get("head_width", 64),
        }
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        expected |= {"end_of_text": text["eos_id"], "activation": activation, "epsilon": 1e-5}
        image |= {"activation": activation, "epsilon": 1e-5, "pixels": OPENAI_PIXELS}
        assert not found.logit_bias
    else:
        # Whose table is compared with timm itself in tests/converters/test_siglip_files.py.
        image = trunk(vision["timm_model_name"]) | {"activation": "gelu_tanh", "pixels": SIGLIP_PIXELS}
        # open_clip computes the first ones with the exact GELU; they were trained with its approximation.
        expected |= {"activation": "gelu_tanh", "epsilon": text["norm_kwargs"]["eps"]}
        assert "SigLIP2" not in name or text["act_kwargs"] == {"approximate": "tanh"}
        assert found.logit_bias
    assert {field: getattr(found.text, field) for field in expected} == expected
    assert {field: getattr(found.image, field) for field in image} == image


@pytest.mark.parametrize("name", NAMED)
def test_the_shapes_of_the_weights_tell_the_model(name):
    """But for what they cannot: a margin of pixels that is no whole patch, and for MetaCLIP 2 what is not OpenAI's."""
    expected = NAMED[name].architecture
    found = infer({parameter.name: parameter.shape for parameter in parameters(expected)})
    if NAMED[name].family is META_CLIP_2:
        fields = ("activation", "heads")
        towers = {
            place: replace(tower, **{field: getattr(expected.towers[place], field) for field in fields})
            for place, tower in found.towers.items()
        }
        found = replace(found, **towers)
        found = replace(found, text=replace(found.text, end_of_text=expected.text.end_of_text))
    grid = expected.image.grid * expected.image.patch
    assert found == replace(expected, image=replace(expected.image, resolution=grid))


def test_parameters():
    """As published: of B/16 203 million (86 of them in the image tower), of SO400M/14 at 384 pixels 878 million."""
    base, large = (NAMED[name].architecture for name in ("ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384"))
    assert (count(base), count(large)) == (203_155_970, 877_960_498)
