"""open_clip's SigLIP, whose image tower is timm's: its names, and what those of its image towers say.

`clip_core.layouts.open_clip` reads its configuration.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.layouts.parts import Layout, Renaming, modules, starts
from clip_core.naming import Weights

_NAMES = Renaming(
    towers={"visual.transformer.resblocks": "visual.trunk.blocks"},
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
    top=modules(
        {
            "visual.conv1": "visual.trunk.patch_embed.proj",
            "visual.ln_post": "visual.trunk.norm",
            # Queries are stored apart from keys and values; `_join` and `_split` are the bridge to these names.
            "visual.attnpool.attn.q_proj": "visual.trunk.attn_pool.q",
            "visual.attnpool.attn.kv_proj": "visual.trunk.attn_pool.kv",
            "visual.attnpool.attn.out_proj": "visual.trunk.attn_pool.proj",
            "visual.attnpool.ln": "visual.trunk.attn_pool.norm",
            "visual.attnpool.mlp.c_fc": "visual.trunk.attn_pool.mlp.fc1",
            "visual.attnpool.mlp.c_proj": "visual.trunk.attn_pool.mlp.fc2",
        }
    )
    | {
        "visual.positional_embedding": "visual.trunk.pos_embed",
        "visual.attnpool.probe": "visual.trunk.attn_pool.latent",
    },
)
_POOL = "visual.attnpool.attn."
_TRUNK = re.compile(r"vit_(base|large|so400m|giantopt)_patch([0-9]+)_siglip_[0-9]+")
_SIZES = {  # width, layers, heads, inner width of the MLP
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# timm computes these with the exact GELU, though they were trained with its approximation.
_EXACT = {
    *(f"vit_base_patch16_siglip_{resolution}" for resolution in (224, 256, 384, 512)),
    *(f"vit_large_patch16_siglip_{resolution}" for resolution in (256, 384)),
    *(f"vit_so400m_patch14_siglip_{resolution}" for resolution in (224, 378, 384)),
}


def trunk(name: object) -> dict[str, Any]:
    """The fields of the image tower that timm knows by this name.

    Raises:
        ClipError: it is none of SigLIP's.
    """
    match = _TRUNK.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ClipError(f"its vision_cfg sets 'timm_model_name' to {name!r:.80}, which cannot be computed here.")
    fields = dict(zip(("width", "layers", "heads", "mlp_width"), _SIZES[match[1]], strict=True))
    return fields | {
        "patch": int(match[2]),
        "activation": "gelu" if name in _EXACT else "gelu_tanh",
        "epsilon": 1e-6,
    }


def _split(name: str, array: np.ndarray, architecture: Architecture) -> list[tuple[str, np.ndarray]]:
    if match := re.fullmatch(re.escape(_POOL) + "in_proj_(weight|bias)", name):
        third = len(array) // 3
        return [(f"{_POOL}q_proj.{match[1]}", array[:third]), (f"{_POOL}kv_proj.{match[1]}", array[third:])]
    return [(name, array)]


def _join(weights: Weights) -> Weights:
    joined = dict(weights)
    for leaf in ("weight", "bias"):
        names = [f"{_POOL}{part}_proj.{leaf}" for part in ("q", "kv")]
        parts = [weights[name] for name in names if name in weights]
        # Parts that do not fit together stay as they are: the table then names them.
        if len(parts) == 2 and all(part.ndim for part in parts) and len({part.shape[1:] for part in parts}) == 1:
            joined[f"{_POOL}in_proj_{leaf}"] = np.concatenate(parts)
            for name in names:
                del joined[name]
    return joined


LAYOUT = Layout(
    "timm",
    lambda weights: starts(weights, "visual.trunk.patch_embed.", "visual.trunk.attn_pool."),
    _NAMES,
    _NAMES.inverse(),
    towers=(("siglip", "siglip"),),
    added_axes={"visual.positional_embedding": 1, "visual.attnpool.probe": 2},
    join=_join,
    split=_split,
)
