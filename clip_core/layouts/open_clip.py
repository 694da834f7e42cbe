"""open_clip: the names of its models with a text tower of their own, its configuration, and its trainer's."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from math import inf, nextafter
from pathlib import Path
from typing import Any

import numpy as np

from clip_core import files
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import timm
from clip_core.layouts.configuration import (
    MAX_BYTES,
    as_object,
    colour,
    number,
    placed,
    read_json,
    side,
    without_assumed,
)
from clip_core.layouts.parts import Folder, Layout, Word
from clip_core.pixels import DEVIATION, MEAN, Pixels
from clip_core.text.definitions import CLEANINGS
from clip_core.towers import TEXT_TOWERS
from clip_core.towers.parts import HEAD_WIDTH, Shapes, Transformer

_CONFIGURATION = "open_clip_config.json"

# open_clip's keys that change nothing of what a trained model computes, whatever they say.
_WITHOUT_EFFECT = {
    "model": (
        "custom_text",
        "init_logit_scale",
        "init_logit_bias",
        "nonscalar_logit_scale",
        "output_dict",
        "cast_dtype",
    ),
    "vision": (
        *("patch_dropout", "output_tokens", "final_ln_after_pool", "attn_pooler_queries", "attn_pooler_heads"),
        *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    ),
    "text": (
        *("output_tokens", "final_ln_after_pool", "pad_id", "eos_id"),
        *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    ),
}
# Those that do, with the values that can be computed here.
_POSSIBLE: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {},
    "vision": {"pool_type": ("tok",), "pos_embed_type": ("learnable",), "block_type": ("default",)},
    "text": {
        "pool_type": ("argmax", "eos"),
        "proj_type": ("linear",),
        "block_type": ("default",),
        "tokenizer_mode": ("clip",),
        "hf_tokenizer_name": (".",),  # the one in the folder (`_has_tokenizer`)
    },
}
# The width of heads in the image towers of open_clip's own models, by their names without -quickgelu. Its others have
# parts that cannot be computed here, and what stands behind ``local-dir:`` and the like is in no table.
_TRAINERS_HEADS = {
    **dict.fromkeys(("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"), 64),
    **dict.fromkeys(("ViT-S-32", "ViT-S-32-alt", "ViT-S-16", "ViT-S-16-alt"), 64),
    **dict.fromkeys(("ViT-M-32", "ViT-M-32-alt", "ViT-M-16"), 64),
    **dict.fromkeys(("ViT-B-32", "ViT-B-32-256", "ViT-B-32-plus-256", "ViT-B-16", "ViT-B-16-plus"), 64),
    **dict.fromkeys(("ViT-B-16-plus-240", "ViT-L-16", "ViT-L-16-320", "ViT-L-14", "ViT-L-14-280", "ViT-L-14-336"), 64),
    **dict.fromkeys(("ViT-H-16", "ViT-H-14", "ViT-H-14-378"), 80),
    **{"ViT-g-14": 88, "ViT-bigG-14": 104, "ViT-e-14": 112},
}
# The trainer's settings of pixels -> the keys of preprocess_cfg.
_TRAINERS_PIXELS = {
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
}
_SHAPE = ("width", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs")
_DEFAULT_END = 2  # open_clip's eos_id where none is given


def _recognises(weights: Mapping[str, np.ndarray]) -> bool:
    text = {name.removeprefix("text."): array.shape for name, array in weights.items() if name.startswith("text.")}
    # Some towers are below this prefix under their canonical names.
    ours = (tower for tower in TEXT_TOWERS.values() if not tower.at_root)
    return bool(text) and not any(tower.recognises(Shapes(text, "text.")) for tower in ours)


def _words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    return [*_configuration(path, inferred), *_trainer(path, inferred)]


def _configuration(path: Path, inferred: Architecture) -> list[Word]:
    file = path.with_name(_CONFIGURATION)
    if not file.exists():
        return []
    try:
        config = as_object(read_json(file), "it")
        model = as_object(config.get("model_cfg"), "model_cfg")
        vision, text = (as_object(model.get(f"{tower}_cfg"), f"{tower}_cfg") for tower in ("vision", "text"))
        _refuse_others(model, "model", ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg"))
        quick = bool(model.get("quick_gelu", False))
        siglip = "timm_model_name" in vision
        image = _timm_tower(vision) if siglip else _image_tower(vision, quick)
        if (preparation := config.get("preprocess_cfg")) is not None:
            image |= {"pixels": _pixels(as_object(preparation, "preprocess_cfg"), image["resolution"])}
        texts = _text_tower(text, quick, siglip)
        fields = {"embed_dim": model.get("embed_dim")} | placed("image", image) | placed("text", texts)
    except ClipError as error:
        raise CheckpointError(f"{file.name} beside it cannot be used: {error}") from error
    return without_assumed([Word(f"{file.name} beside it", fields)], config, inferred)


def _image_tower(vision: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    _refuse_others(vision, "vision", (*_SHAPE, "image_size", "patch_size", "head_width"))
    width = number(vision, "width", 768)
    image: dict[str, Any] = {"width": width, "resolution": side(vision, "image_size", 224)}
    if isinstance(vision.get("layers"), list):
        image |= {"blocks": tuple(vision["layers"])}
        width *= 32
    else:
        image |= {"layers": vision.get("layers", 12), "patch": side(vision, "patch_size", 16)}
        image |= _transformer(vision, width, quick)
    return image | {"heads": width // number(vision, "head_width", HEAD_WIDTH)}


def _timm_tower(vision: Mapping[str, Any]) -> dict[str, Any]:
    """The image tower of SigLIP."""
    image = timm.trunk(vision["timm_model_name"])
    _require(vision, "vision", {"timm_pool": "map", "timm_proj": "none"})
    _refuse_others(vision, "vision", ("image_size", "timm_model_name"))
    return image | {"resolution": side(vision, "image_size", 224)}


def _text_tower(text: Mapping[str, Any], quick: bool, siglip: bool) -> dict[str, Any]:
    read = [*_SHAPE, "context_length", "vocab_size", "heads"]
    if siglip:
        required = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
        _require(text, "text", required)
        read += required
    if siglip or text.get("pool_type") == "eos":  # the tokens are those of another tokenizer
        read += ["hf_tokenizer_name", "tokenizer_kwargs"]
        _cleaning_of(text)
    _refuse_others(text, "text", read)
    vocabulary_size, width = number(text, "vocab_size", 49408), number(text, "width", 512)
    texts = {
        "context_length": text.get("context_length", 77),
        "vocabulary_size": vocabulary_size,
        "width": width,
        "layers": text.get("layers", 12),
        "heads": text.get("heads", 8),
    } | _transformer(text, width, quick)
    if siglip:
        return texts
    # The highest token of a text is its end, or a token of their tokenizer's.
    end = text.get("eos_id", _DEFAULT_END) if text.get("pool_type") == "eos" else vocabulary_size - 1
    return texts | {"end_of_text": end}


def _require(section: Mapping[str, Any], of: str, required: Mapping[str, Any]) -> None:
    """Refuse a SigLIP that is put together in another way."""
    for name, value in required.items():
        if section.get(name) != value:
            raise ClipError(
                f"its {of}_cfg sets {name!r} to {section.get(name)!r:.80}, and a SigLIP has {value!r} there."
            )


def _cleaning_of(text: Mapping[str, Any]) -> str | None:
    """What is done to a text before its tokenizer gets it (`clip_core.text.definitions.CLEANINGS`)."""
    settings = as_object(text.get("tokenizer_kwargs") or {}, "tokenizer_kwargs")
    cleaning = settings.get("clean")
    if settings.keys() - {"clean"} or cleaning not in (None, *CLEANINGS):
        raise ClipError(f"its text_cfg sets 'tokenizer_kwargs' to {settings!r:.80}, which cannot be computed here.")
    return cleaning


def _transformer(section: Mapping[str, Any], width: int, quick: bool) -> dict[str, Any]:
    """Inner width, activation and epsilon of one tower."""
    ratio = section.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
        raise ClipError(f"its mlp_ratio is {ratio!r:.80}; it must be a number above 0.")
    norm, act = (as_object(section.get(f"{name}_kwargs") or {}, f"{name}_kwargs") for name in ("norm", "act"))
    approximate = act.get("approximate", "none")
    for name, kwargs, known in (("norm", norm, ("eps",)), ("act", act, () if quick else ("approximate",))):
        if others := kwargs.keys() - set(known):
            raise ClipError(f"its {name}_kwargs set {sorted(others)[0]!r:.80}, which cannot be computed here.")
    if approximate not in ("none", "tanh"):
        raise ClipError(f"its act_kwargs set approximate to {approximate!r:.80}, which cannot be computed here.")
    return {
        "mlp_width": int(width * ratio),
        "activation": "quick_gelu" if quick else "gelu_tanh" if approximate == "tanh" else "gelu",
        "epsilon": norm.get("eps", 1e-5),
    }


def _pixels(section: Mapping[str, Any], resolution: int) -> Pixels:
    given = {name: value for name, value in section.items() if value is not None}
    for name in given.keys() - {"mean", "std", "interpolation", "resize_mode", "size", "mode", "fill_color"}:
        raise ClipError(f"preprocess_cfg has the key {name!r:.80}, which is not known here.")
    if given.get("mode", "RGB") != "RGB":
        raise ClipError(f"preprocess_cfg has the mode {given['mode']!r:.80}; only RGB can be computed here.")
    if (size := side(given, "size", resolution)) != resolution:
        raise ClipError(f"preprocess_cfg has the size {size}, and the image tower {resolution}.")
    interpolation = given.get("interpolation", "bicubic")
    return Pixels(
        colour(given.get("mean", MEAN)),
        colour(given.get("std", DEVIATION)),
        "bicubic" if interpolation == "random" else interpolation,  # it is random in training alone
        given.get("resize_mode", "shortest"),
    )


def _refuse_others(section: Mapping[str, Any], of: str, read: Collection[str]) -> None:
    """Refuse what ``section`` sets beyond ``read``, unless it has no effect, is off, or can be computed."""
    for name, value in section.items():
        if name in read or name in _WITHOUT_EFFECT[of]:
            continue
        if value in (None, False, {}, []) or value in _POSSIBLE[of].get(name, ()):
            continue
        raise ClipError(f"its {of}_cfg sets {name!r:.80} to {value!r:.80}, which cannot be computed here.")


def _trainer(path: Path, inferred: Architecture) -> list[Word]:
    """What ``params.txt`` in the folder of a run of open_clip's trainer says, a folder above its checkpoints."""
    file = path.absolute().parent.parent / "params.txt"
    if path.absolute().parent.name != "checkpoints" or not file.exists():
        return []
    try:
        text = files.read_regular(file, MAX_BYTES).decode()
    except (ClipError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    settings = dict(line.partition(": ")[::2] for line in text.splitlines())
    source = f"{file.name} of its run"
    fields: dict[str, Any] = {}
    name = settings.get("model", "").replace("/", "-")
    if (plain := name.removesuffix("-quickgelu")) in _TRAINERS_HEADS:
        quick = name != plain or settings.get("force_quick_gelu") == "True"
        for place in inferred.transformers:
            fields[f"{place}.activation"] = "quick_gelu" if quick else "gelu"
        if inferred.image.kind == "vit":
            fields["image.heads"] = max(inferred.image.width // _TRAINERS_HEADS[plain], 1)
    if preparation := {ours: value for theirs, ours in _TRAINERS_PIXELS.items() if (value := _given(settings, theirs))}:
        try:
            fields["image.pixels"] = _pixels(preparation, inferred.image.resolution)
        except ClipError as error:
            raise CheckpointError(f"{source} cannot be used: {error}") from error
    return [Word(source, fields)] if fields else []


def _given(settings: Mapping[str, str], name: str) -> Any:
    """A setting of the trainer's, as Python prints it: a list of numbers or a word; None where nobody has set it."""
    value = settings.get(name, "None")
    if value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"params.txt of its run cannot be used: its {name} is {value!r:.80}.") from error
    return None if value == "None" else value


def _has_tokenizer(path: Path, layout: str) -> bool:
    try:
        config = read_json(path.with_name(_CONFIGURATION))
        return isinstance(config["model_cfg"]["text_cfg"]["hf_tokenizer_name"], str)
    except (ClipError, KeyError, TypeError):  # what is wrong with it is told by `_words`
        return False


def _cleaning(path: Path) -> str | None:
    try:
        return _cleaning_of(read_json(path.with_name(_CONFIGURATION))["model_cfg"]["text_cfg"])
    except (ClipError, KeyError, TypeError, AttributeError):  # what is wrong with it is told by `_words`
        return None


def _describe(architecture: Architecture, own_tokenizer: bool) -> dict[str, dict[str, Any]]:
    image, text = architecture.image, architecture.text
    activations = {tower.activation for tower in architecture.transformers.values()}
    if len(activations) > 1 and "quick_gelu" in activations:
        raise ClipError(
            f"open_clip has quick_gelu in both towers or in none, and these have {' and '.join(sorted(activations))}; "
            "choose the layout huggingface."
        )
    vision: dict[str, Any] = {"image_size": image.resolution, "width": image.width}
    if image.kind == "resnet":
        vision |= {"layers": list(image.blocks), "head_width": image.attention_width // image.heads}
    else:
        vision |= {"layers": image.layers, "patch_size": image.patch, "head_width": image.width // image.heads}
        vision |= _blocks(image)
    language: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_blocks(text),
    }
    if text.end_of_text != text.vocabulary_size - 1:  # else it is the highest token, at which open_clip pools
        language |= {"pool_type": "eos", "eos_id": text.end_of_text}
    if own_tokenizer:  # else open_clip takes OpenAI's
        language["hf_tokenizer_name"] = "."  # the one in this very folder
    config = {
        "model_cfg": {
            "embed_dim": architecture.embed_dim,
            "quick_gelu": "quick_gelu" in activations,
            "vision_cfg": vision,
            "text_cfg": language,
        },
        "preprocess_cfg": {
            "size": image.resolution,
            "mode": "RGB",
            "mean": image.pixels.mean,
            "std": image.pixels.deviation,
            "interpolation": image.pixels.interpolation,
            "resize_mode": image.pixels.resize,
        },
    }
    return {_CONFIGURATION: config}


def _blocks(tower: Transformer) -> dict[str, Any]:
    ratio = tower.mlp_width / tower.width
    if int(tower.width * ratio) != tower.mlp_width:  # which open_clip rounds down
        ratio = nextafter(ratio, inf)
    settings: dict[str, Any] = {"mlp_ratio": ratio, "norm_kwargs": {"eps": tower.epsilon}}
    return settings | ({"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {})


# open_clip's own CLIP has OpenAI's names, which is what is written.
LAYOUT = Layout(
    "open_clip",
    _recognises,
    canonical=lambda name: name.removeprefix("text."),
    towers=(("vit", "transformer"), ("resnet", "transformer")),
    other_marks=(("text.token_embedding.weight", "visual.conv1.weight"),),
    words=_words,
    has_tokenizer=_has_tokenizer,
    cleaning=_cleaning,
    folder=Folder(("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), _describe, needs_tokenizer=False),
)
