"""Hugging Face's transformers: names of its CLIPModel and SiglipModel, and the configuration beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts.configuration import as_object, colour, number, placed, read_json, side, without_assumed
from clip_core.layouts.parts import (
    Folder,
    Layout,
    Renaming,
    Word,
    join_attention,
    modules,
    mount_text,
    split_attention,
    starts,
)
from clip_core.naming import Weights
from clip_core.pixels import DEVIATION, MEAN, Interpolation, Pixels
from clip_core.preprocess import resampling_of
from clip_core.towers.parts import Activation, ImageTower, Transformer

_NAMES = Renaming(
    towers={
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "text.transformer.resblocks": "text_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
    },
    block=modules(
        {
            # q, k and v are stored apart; `join_attention` and `split_attention` are the bridge to these names.
            **{f"attn.{part}_proj": f"self_attn.{part}_proj" for part in "qkv"},
            "attn.out_proj": "self_attn.out_proj",
            "ln_1": "layer_norm1",
            "ln_2": "layer_norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
    ),
    # CLIP's names come last, so that the names that both have are read as CLIP's; `_join` corrects them.
    top=modules(
        {
            "text.ln_final": "text_model.final_layer_norm",
            "text.text_projection": "text_model.head",
            "visual.attnpool.attn.out_proj": "vision_model.head.attention.out_proj",
            "visual.attnpool.ln": "vision_model.head.layernorm",
            "visual.attnpool.mlp.c_fc": "vision_model.head.mlp.fc1",
            "visual.attnpool.mlp.c_proj": "vision_model.head.mlp.fc2",
            "ln_final": "text_model.final_layer_norm",
            "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled like this
            "visual.ln_post": "vision_model.post_layernorm",
        }
    )
    | {
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.conv1.bias": "vision_model.embeddings.patch_embedding.bias",
        "visual.attnpool.probe": "vision_model.head.probe",
        "visual.attnpool.attn.in_proj_weight": "vision_model.head.attention.in_proj_weight",
        "visual.attnpool.attn.in_proj_bias": "vision_model.head.attention.in_proj_bias",
        "text_projection": "text_projection.weight",
        "visual.proj": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    },
)
# transformers' names of activations -> ours; its others are none of a CLIP that can be run here.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# How Hugging Face calls the activations.
_ACTIVATIONS_THERE: dict[Activation, str] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
# What CLIPTextConfig, CLIPVisionConfig, CLIPConfig and CLIPImageProcessor of transformers take for a key that is left
# out, as they leave out what equals it when they write.
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_PROCESSOR_DEFAULTS = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": DEVIATION,
}
# What SiglipTextConfig, SiglipVisionConfig and SiglipImageProcessor take otherwise.
_SIGLIP_DEFAULTS = {
    "text": _TEXT_DEFAULTS
    | {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "vision": _VISION_DEFAULTS | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
_SIGLIP_PROCESSOR_DEFAULTS = _PROCESSOR_DEFAULTS | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": (0.5,) * 3,
    "image_std": (0.5,) * 3,
}
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_DEFAULTS = {"text": _TEXT_DEFAULTS, "vision": _VISION_DEFAULTS}
# The types of model that can be computed here, and what their image processors take otherwise.
_KINDS = {"clip": _PROCESSOR_DEFAULTS, "metaclip_2": _PROCESSOR_DEFAULTS, "siglip": _SIGLIP_PROCESSOR_DEFAULTS}
_LEGACY_END = 2  # with this eos_token_id, transformers' CLIPModel takes the highest token of a text for its end


def _join(weights: Weights) -> Weights:
    joined = join_attention(weights)
    return mount_text(joined) if "visual.attnpool.probe" in joined else joined


def _split(name: str, array: np.ndarray, architecture: Architecture) -> list[tuple[str, np.ndarray]]:
    """The attention pool's inputs are in one tensor."""
    return [(name, array)] if name.startswith("visual.attnpool.") else split_attention(name, array, architecture)


def _words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    file = path.with_name("config.json")
    if not file.exists() or (layout != "huggingface" and not _is_of_a_clip(file)):
        return []
    try:
        config = as_object(read_json(file), "it")
        is_siglip = inferred.image.kind == "siglip"
        kind = config.get("model_type", "siglip" if is_siglip else "clip")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ClipError(f"it is of a model of the type {kind!r:.80}; known here are {', '.join(_KINDS)}.")
        if (kind == "siglip") != is_siglip:
            raise ClipError(
                f"it is of a model of the type {kind}, and the image tower of the weights of the kind "
                f"{inferred.image.kind}."
            )
        if "auto_map" in config:
            raise ClipError("its auto_map names code of its own, which is not run here.")
        fields = _fields_of_siglip(config) if is_siglip else _fields_of_clip(config)
        if is_siglip:
            _check_grid(fields, inferred.image)
    except ClipError as error:
        raise CheckpointError(f"{file.name} beside it cannot be used: {error}") from error
    told = "resolution" not in inferred.image.untold
    resolution = inferred.image.resolution if told else fields["image.resolution"]
    found = [Word(f"{file.name} beside it", fields), *_processor(path, resolution, kind)]
    return without_assumed(found, config, inferred)


def _check_grid(fields: Mapping[str, Any], image: Any) -> None:
    """Refuse other patches than those of the weights, which do not tell the resolution themselves."""
    resolution, patch = fields["image.resolution"], fields["image.patch"]
    if (resolution // patch, patch) != (image.grid, image.patch):
        raise ClipError(
            f"by its vision_config, or transformers' defaults, image_size is {resolution} and patch_size {patch}, and "
            f"the weights are for {image.grid} patches of {image.patch} pixels along each side."
        )


def _fields_of_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    text, vision = (_tower(config, name, _DEFAULTS[name]) for name in ("text", "vision"))
    end = text["eos_token_id"]
    legacy = end == _LEGACY_END and config.get("model_type", "clip") == "clip"
    ends = {} if end is None else {"end_of_text": number(text, "vocab_size", 0) - 1 if legacy else end}
    return {"embed_dim": config.get("projection_dim", 512)} | _fields_of_both(text, vision) | placed("text", ends)


def _fields_of_siglip(config: Mapping[str, Any]) -> dict[str, Any]:
    text, vision = (_tower(config, name, _SIGLIP_DEFAULTS[name]) for name in ("text", "vision"))
    if vision.get("vision_use_head", True) is not True:
        raise ClipError("its vision_use_head leaves out the attention pool, which cannot be computed here.")
    projection = text.get("projection_size")
    embed_dim = text["hidden_size"] if projection is None else projection
    return {"embed_dim": embed_dim, "logit_bias": True} | _fields_of_both(text, vision)


def _fields_of_both(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    if vision.get("num_channels", 3) != 3:
        raise ClipError(f"its num_channels is {vision['num_channels']!r:.80}, and pictures have 3 channels here.")
    texts = {"context_length": text["max_position_embeddings"], "vocabulary_size": text["vocab_size"]}
    images = {"resolution": side(vision, "image_size", 0), "patch": side(vision, "patch_size", 0)}
    return placed("text", _transformer(text) | texts) | placed("image", _transformer(vision) | images)


def _is_of_a_clip(file: Path) -> bool:
    """Whether a ``config.json``, which many projects have, is of Hugging Face's CLIP or SigLIP."""
    try:
        config = read_json(file)
    except ClipError:
        return False
    return isinstance(config, dict) and config.get("model_type") in _KINDS


def _tower(config: Mapping[str, Any], tower: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """All keys of one tower; the older ``text_config_dict`` and its defaults go before ``text_config``."""
    newer, older = (config.get(name) for name in (f"{tower}_config", f"{tower}_config_dict"))
    result = defaults | as_object(newer if newer is not None else {}, f"{tower}_config")
    if older is not None:
        result |= defaults | as_object(older, f"{tower}_config_dict")
    return result


def _transformer(tower: Mapping[str, Any]) -> dict[str, Any]:
    activation = tower["hidden_act"]
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ClipError(f"it sets hidden_act to {activation!r:.80}, which cannot be computed here.")
    return {
        "width": tower["hidden_size"],
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_width": tower["intermediate_size"],
        "activation": _ACTIVATIONS[activation],
        "epsilon": tower["layer_norm_eps"],
    }


def _processor(path: Path, resolution: int, kind: str) -> list[Word]:
    """What ``processor_config.json``, the newer one, and ``preprocessor_config.json`` say of the pixels."""
    found = []
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = path.with_name(name)
        if not file.exists():
            continue
        try:
            config = as_object(read_json(file), "it")
            if name == "processor_config.json":
                if "image_processor" not in config:
                    continue
                config = as_object(config["image_processor"], "image_processor")
            pixels = _pixels(config, resolution, _KINDS[kind])
        except ClipError as error:
            raise CheckpointError(f"{name} beside it cannot be used: {error}") from error
        found.append(Word(f"{name} beside it", {"image.pixels": pixels}))
    return found


def _pixels(config: Mapping[str, Any], resolution: int, defaults: dict[str, Any]) -> Pixels:
    given = defaults | {name: value for name, value in config.items() if value is not None}
    for name, value in given.items():
        switch = name.startswith(("do_", "use_")) and name not in (*_PROCESSOR_DEFAULTS, "do_convert_rgb")
        if switch and value is not False:
            raise ClipError(f"it sets {name!r:.80} to {value!r:.80}, which cannot be computed here.")
    for name in ("do_resize", "do_rescale"):
        if given[name] is not True:
            raise ClipError(
                f"it sets {name} to {given[name]!r:.80}, and pictures are always resized and rescaled here."
            )
    factor = given["rescale_factor"]
    if type(factor) is not float or abs(255 * factor - 1) > 1e-6:
        raise ClipError(f"it sets rescale_factor to {factor!r:.80}, expected 1/255.")
    if type(given["resample"]) is not int or given["resample"] not in _FILTERS:
        raise ClipError(
            f"it sets resample to {given['resample']!r:.80}; only 2 (bilinear) and 3 (bicubic) are known here."
        )
    size, square = given["size"], {"height": resolution, "width": resolution}
    if type(size) is int:  # as older versions wrote it
        size = {"shortest_edge": size}
    crop = given["crop_size"] if given["do_center_crop"] is True else square
    if crop not in (square, resolution) or size not in (square, {"shortest_edge": resolution}):
        raise ClipError(
            f"it makes pictures of size {size!r:.80}, crop_size {crop!r:.80}, and the model's have {resolution} pixels "
            "along each side."
        )
    if size != square and given["do_center_crop"] is not True:
        raise ClipError("it resizes the shorter side without do_center_crop, and the pictures of a CLIP are square.")
    plain = given["do_normalize"] is not True
    return Pixels(
        (0.0,) * 3 if plain else colour(given["image_mean"]),
        (1.0,) * 3 if plain else colour(given["image_std"]),
        _FILTERS[given["resample"]],
        "squash" if size == square else "shortest",
    )


def _describe(architecture: Architecture, own_tokenizer: bool) -> dict[str, dict[str, Any]]:
    return {
        "config.json": _configuration(architecture),
        "preprocessor_config.json": _preprocessor(architecture.image),
    }


def _configuration(architecture: Architecture) -> dict[str, Any]:
    image, text = architecture.image, architecture.text

    def tower(tower: Transformer) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": _ACTIVATIONS_THERE[tower.activation],
            "layer_norm_eps": tower.epsilon,
        }

    texts = tower(text) | {"max_position_embeddings": text.context_length, "vocab_size": text.vocabulary_size}
    images = tower(image) | {"image_size": image.resolution, "patch_size": image.patch, "num_channels": 3}
    if image.kind == "siglip":
        unused = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "dtype": "float32",  # to compute in, as here, whatever the weights are stored as
            "text_config": texts
            | unused
            | {"model_type": "siglip_text_model", "projection_size": architecture.embed_dim},
            "vision_config": images | {"model_type": "siglip_vision_model"},
        }
    projection = {"projection_dim": architecture.embed_dim}
    # Both pool at the first token that ends a text, but for token 2 in a CLIPModel.
    model, kind = ("MetaClip2Model", "metaclip_2") if text.end_of_text == _LEGACY_END else ("CLIPModel", "clip")
    return {
        "architectures": [model],
        "model_type": kind,
        **projection,
        "dtype": "float32",
        "text_config": texts
        | projection
        | {
            "model_type": f"{kind}_text_model",
            "bos_token_id": text.end_of_text - 1,
            "eos_token_id": text.end_of_text,
            "pad_token_id": text.end_of_text,
        },
        "vision_config": images | projection | {"model_type": f"{kind}_vision_model"},
    }


def _preprocessor(image: ImageTower) -> dict[str, Any]:
    resolution, pixels = image.resolution, image.pixels
    square = {"height": resolution, "width": resolution}
    library = "Siglip" if image.kind == "siglip" else "CLIP"
    return {
        "image_processor_type": f"{library}ImageProcessor",
        "processor_class": f"{library}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if pixels.resize == "squash" else {"shortest_edge": resolution},
        "resample": resampling_of(pixels.interpolation),
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pixels.mean,
        "image_std": pixels.deviation,
    }


LAYOUT = Layout(
    "huggingface",
    lambda weights: starts(weights, "text_model.", "vision_model."),
    _NAMES,
    _NAMES.inverse(),
    towers=(("vit", "transformer"), ("siglip", "siglip")),
    transposed=("projection",),
    added_axes={"visual.attnpool.probe": 2},
    scalar_axes=lambda architecture: int(architecture.image.kind == "siglip"),
    join=_join,
    split=_split,
    words=_words,
    has_tokenizer=lambda path, layout: layout == "huggingface",
    folder=Folder(("model.safetensors", "pytorch_model.bin"), _describe, needs_tokenizer=True),
)
