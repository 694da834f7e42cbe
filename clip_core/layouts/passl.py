"""PASSL: Paddle's axis order, names of its own, and the dictionaries that its users describe a model by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.layouts.parts import Layout, Renaming, modules, starts
from clip_core.towers.parts import HEAD_WIDTH

HEADS = ("CLIPHead", "ClipHead", "ClipCNHead")  # the last two are spellings of PASSL's documents
# Settings that PASSL knows and CLIP's weights have one answer to.
_FIXED = {"name": "CLIP", "qkv_bias": True, "pre_norm": True, "proj": True, "patch_bias": False}

_NAMES = Renaming(
    towers={"visual.transformer.resblocks": "visual.blocks", "transformer.resblocks": "transformer.blocks"},
    block=modules(
        {
            "attn.out_proj": "attn.proj",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
    )
    | {"attn.in_proj_weight": "attn.qkv.weight", "attn.in_proj_bias": "attn.qkv.bias"},
    top=modules({"visual.ln_pre": "visual.norm_pre", "visual.ln_post": "visual.norm_post"})
    | {"visual.conv1.weight": "visual.patch_embed.proj.weight"},
)

LAYOUT = Layout(
    "passl",
    lambda weights: starts(weights, "visual.blocks.", "transformer.blocks.", "visual.patch_embed."),
    _NAMES,
    _NAMES.inverse(),
    towers=(("vit", "transformer"),),
    transposed=("linear",),
    added_axes={"logit_scale": 1, "visual.class_embedding": 2, "visual.positional_embedding": 1},
    prefix="model.",
)


def architecture_of(settings: Mapping[str, Any]) -> Architecture:
    """PASSL's dictionary as an architecture.

    Raises:
        ClipError: a key is missing, unknown, or asks for what is not a CLIP.
    """
    left = dict(settings)
    for key, value in _FIXED.items():
        if left.pop(key, value) != value:
            raise ClipError(f"The architecture has {key} = {settings[key]!r}; a CLIP has {key} = {value!r}.")
    try:
        width, layers = left.pop("vision_width"), left.pop("vision_layers")
        image = {"resolution": left.pop("image_resolution"), "width": width}
        patch = left.pop("vision_patch_size")
        if isinstance(layers, tuple | list):
            image |= {"kind": "resnet", "blocks": layers, "heads": max(width * 32 // HEAD_WIDTH, 1)}
        else:
            image |= {"kind": "vit", "patch": patch, "layers": layers, "heads": max(width // HEAD_WIDTH, 1)}
        text = {
            "kind": "transformer",
            "context_length": left.pop("context_length"),
            "vocabulary_size": left.pop("vocab_size"),
            "width": left.pop("transformer_width"),
            "layers": left.pop("transformer_layers"),
            "heads": left.pop("transformer_heads"),
        }
        embed_dim = left.pop("embed_dim")
    except KeyError as error:
        raise ClipError(f"The architecture lacks {error.args[0]}.") from error
    except TypeError as error:
        raise ClipError(f"The architecture's vision_width is {settings['vision_width']!r}; give a number.") from error
    if left:
        raise ClipError(f"The architecture has unknown keys: {', '.join(sorted(left))}.")
    return Architecture.from_dict({"embed_dim": embed_dim, "image": image, "text": text, "activation": "quick_gelu"})


def check_head(head: Mapping[str, Any]) -> None:
    """Refuse a head that is none of PASSL's for CLIP.

    Raises:
        ClipError: its name is missing or unknown, or it has other settings.
    """
    if head.get("name") not in HEADS:
        raise ClipError(f"There is no head {head.get('name')!r}; choose one of {', '.join(HEADS)}.")
    if unknown := sorted(head.keys() - {"name"}):
        raise ClipError(f"The head has unknown keys: {', '.join(unknown)}; it takes its name only.")
