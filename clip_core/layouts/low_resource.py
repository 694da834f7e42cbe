"""Low-resource CLIP (github.com/cs582/CLIP_implementation): the names of its model.

Its checkpoints are files without a suffix, whose entry ``model_state_dict`` has the weights but not the temperature,
which was never trained. Each head of a text's attention has matrices of its own there, used as ``x @ W``. The weights
were trained with another attention (`clip_core.towers.low_resource`), and with pixels from 0 to 255.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from clip_core.architecture import Architecture
from clip_core.layouts.parts import Layout, Renaming, Word, modules, starts
from clip_core.naming import INITIAL_LOGIT_SCALE, Weights

_IMAGE = Renaming(
    towers={"visual.transformer.resblocks": "image_encoder.transformer.layers"},
    block=modules(
        {
            "attn.out_proj": "self_attn.out_proj",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.c_fc": "linear1",
            "mlp.c_proj": "linear2",
        }
    )
    | {"attn.in_proj_weight": "self_attn.in_proj_weight", "attn.in_proj_bias": "self_attn.in_proj_bias"},
    top=modules(
        {
            "visual.ln_pre": "image_encoder.layer_norm",
            "visual.ln_post": "image_encoder.mlp_head.0",
            "visual.head_fc": "image_encoder.mlp_head.1",
            "visual.head_proj": "image_encoder.mlp_head.2",
        }
    )
    | {
        "visual.class_embedding": "image_encoder.class_token",
        "visual.patch_embedding": "image_encoder.patch_embedding",
        "visual.positional_embedding": "image_encoder.pos_embedding",
        "visual.proj": "img_mm_encoder.weight",
    },
)
_TEXT = Renaming(
    towers={"text.transformer.resblocks": "text_encoder.transformer.transformers"},
    block=modules(
        {
            "attn.out_proj": "masked_self_attention.fc",
            "ln_1": "layer_norm_att",
            "ln_2": "layer_norm_mlp",
            "mlp.c_fc": "mlp.fc_hidden",
            "mlp.c_proj": "mlp.fc_out",
        }
    ),
    top=modules({"text.ln_final": "text_encoder.transformer.layer_norm"})
    | {
        "text.token_embedding.weight": "text_encoder.token_embedder.embedding.weight",
        "text.positional_embedding": "text_encoder.transformer.pos_encoder",
        "text.text_projection": "txt_mm_encoder.weight",
    },
)
_image, _text = _IMAGE.inverse(), _TEXT.inverse()
_HEAD = re.compile(r"(.+)\.masked_self_attention\.attention_heads\.([0-9]+)\.w([qkv])")


def _split(name: str, array: np.ndarray, architecture: Architecture) -> list[tuple[str, np.ndarray]]:
    """The packed inputs of a text's attention [3 * d, d] as a matrix [1, d, d / heads] of each head and kind."""
    if not (name.startswith("text.") and name.endswith(".attn.in_proj_weight")):
        return [(name, array)]
    block, heads = name.removesuffix(".attn.in_proj_weight"), architecture.text.heads
    return [
        (f"{block}.masked_self_attention.attention_heads.{head}.w{kind}", part.T[None])
        for kind, third in zip("qkv", np.split(array, 3))
        for head, part in enumerate(np.split(third, heads))
    ]


def _join(weights: Weights) -> Weights:
    """The reverse of `_split` over all of ``weights``, with the temperature that the project trains with."""
    joined = {"logit_scale": np.array(INITIAL_LOGIT_SCALE, np.float32), **weights}
    parts: dict[str, dict[tuple[int, int], str]] = {}
    for name in weights:
        if match := _HEAD.fullmatch(name):
            block, head, kind = match.groups()
            parts.setdefault(block, {})["qkv".index(kind), int(head)] = name
    for block, names in parts.items():
        arrays = [weights[names[place]] for place in sorted(names)]
        # Parts that do not fit together stay as they are: the table then names them.
        if {array.shape for array in arrays} == {(1, len(arrays) // 3 * arrays[0].shape[-1], arrays[0].shape[-1])}:
            joined[f"{block}.attn.in_proj_weight"] = np.concatenate([array[0].T for array in arrays])
            for name in names.values():
                del joined[name]
    return joined


def _words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    """What its code says but its files do not: what `LowResourceVisionTransformer.infer` and its like take."""
    if layout != "low_resource":
        return []
    names = ("activation", "heads", "epsilon")
    fields = {f"{place}.{name}": getattr(tower, name) for place, tower in inferred.towers.items() for name in names}
    return [Word("Low-resource CLIP's code", fields | {"text.end_of_text": 1})]


LAYOUT = Layout(
    "low_resource",
    lambda weights: starts(weights, "image_encoder.patch_embedding", "text_encoder.token_embedder."),
    lambda name: _IMAGE(name) if name.startswith("visual.") else _TEXT(name),
    lambda name: _image(name) if name.startswith(("image_encoder.", "img_mm_encoder.")) else _text(name),
    towers=(("low_resource", "low_resource"),),
    transposed=("visual.proj", "text.text_projection"),
    added_axes={
        "visual.class_embedding": 2,
        "visual.patch_embedding": 1,
        "visual.positional_embedding": 1,
        "text.positional_embedding": 1,
    },
    join=_join,
    split=_split,
    words=_words,
)
