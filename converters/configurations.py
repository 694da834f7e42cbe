"""What the configuration beside a weights file says of the model: Hugging Face's, open_clip's, and its trainer's.

A key that changes what a model computes is taken over or refused by its name; none is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_core import files
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import DEVIATION, HEAD_WIDTH, MAX_NUMBER, MEAN, Interpolation, Pixels
from converters.knowledge import Word, fields_of

MAX_BYTES = 1 << 20
ASSUMED = "triclip_assumed"
"""The key of a configuration written here for the fields that nobody has stated; both libraries pass over it."""

# transformers' names of activations -> ours; its others are none of a CLIP that can be run here.
_HUGGINGFACE_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
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
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEGACY_END = 2  # with this eos_token_id, transformers takes the highest token of a text for its end

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
        "hf_tokenizer_name": (".",),  # the one in the folder (`has_tokenizer`)
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


def words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    """What the configurations beside ``path`` say of the model in it.

    Args:
        layout: whose names the weights have.
        inferred: the architecture that the shapes of the weights tell.

    Returns:
        One word per configuration, which may contradict each other.

    Raises:
        CheckpointError: one cannot be read, or asks for what cannot be computed here.
    """
    readers = (_huggingface, _open_clip, _open_clip_trainer)
    return [word for reader in readers for word in reader(path, layout, inferred)]


def has_tokenizer(path: Path, layout: str) -> bool:
    """Whether the tokenizer in the folder of ``path``, if there is one, is that of the model."""
    if layout == "huggingface":
        return True
    try:
        config = _json(path.with_name("open_clip_config.json"))
        return bool(config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == ".")
    except (ClipError, KeyError, TypeError):  # what is wrong with it is told by `words`
        return False


def _open_clip(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    file = path.with_name("open_clip_config.json")
    if not file.exists():
        return []
    try:
        config = _object(_json(file), "it")
        model = _object(config.get("model_cfg"), "model_cfg")
        vision, text = (_object(model.get(f"{tower}_cfg"), f"{tower}_cfg") for tower in ("vision", "text"))
        _refuse_others(model, "model", ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg"))
        shape = ("width", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs")
        _refuse_others(vision, "vision", (*shape, "image_size", "patch_size", "head_width"))
        _refuse_others(text, "text", (*shape, "context_length", "vocab_size", "heads"))
        quick = bool(model.get("quick_gelu", False))
        width, resolution = _number(vision, "width", 768), _side(vision, "image_size", 224)
        image: dict[str, Any] = {"width": width, "resolution": resolution}
        if isinstance(vision.get("layers"), list):
            image |= {"blocks": tuple(vision["layers"])}
            width *= 32
        else:
            image |= {"layers": vision.get("layers", 12), "patch": _side(vision, "patch_size", 16)}
            image |= _transformer_of_open_clip(vision, width, quick)
        image |= {
            "heads": width // _number(vision, "head_width", HEAD_WIDTH),
        }
        if (preparation := config.get("preprocess_cfg")) is not None:
            image |= {"pixels": _pixels_of_open_clip(_object(preparation, "preprocess_cfg"), resolution)}
        vocabulary_size = _number(text, "vocab_size", 49408)
        text_width = _number(text, "width", 512)
        # The highest token of a text is its end, or a token of their tokenizer's.
        end = text.get("eos_id", _LEGACY_END) if text.get("pool_type") == "eos" else vocabulary_size - 1
        texts = {
            "context_length": text.get("context_length", 77),
            "vocabulary_size": vocabulary_size,
            "width": text_width,
            "layers": text.get("layers", 12),
            "heads": text.get("heads", 8),
            "end_of_text": end,
        } | _transformer_of_open_clip(text, text_width, quick)
        fields = {"embed_dim": model.get("embed_dim")} | _placed("image", image) | _placed("text", texts)
    except ClipError as error:
        raise CheckpointError(f"{file.name} beside it cannot be used: {error}") from error
    return _known([Word(f"{file.name} beside it", fields)], config, inferred)


def _transformer_of_open_clip(section: Mapping[str, Any], width: int, quick: bool) -> dict[str, Any]:
    """Inner width, activation and epsilon of one tower."""
    ratio = section.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
        raise ClipError(f"its mlp_ratio is {ratio!r:.80}; it must be a number above 0.")
    norm, act = (_object(section.get(f"{name}_kwargs") or {}, f"{name}_kwargs") for name in ("norm", "act"))
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


def _pixels_of_open_clip(section: Mapping[str, Any], resolution: int) -> Pixels:
    given = {name: value for name, value in section.items() if value is not None}
    for name in given.keys() - {"mean", "std", "interpolation", "resize_mode", "size", "mode", "fill_color"}:
        raise ClipError(f"preprocess_cfg has the key {name!r:.80}, which is not known here.")
    if given.get("mode", "RGB") != "RGB":
        raise ClipError(f"preprocess_cfg has the mode {given['mode']!r:.80}; only RGB can be computed here.")
    if (size := _side(given, "size", resolution)) != resolution:
        raise ClipError(f"preprocess_cfg has the size {size}, and the image tower {resolution}.")
    interpolation = given.get("interpolation", "bicubic")
    return Pixels(
        _colour(given.get("mean", MEAN)),
        _colour(given.get("std", DEVIATION)),
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


def _huggingface(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    file = path.with_name("config.json")
    if not file.exists() or (layout != "huggingface" and not _is_of_a_clip(file)):
        return []
    try:
        config = _object(_json(file), "it")
        if (kind := config.get("model_type", "clip")) != "clip":
            raise ClipError(f"it is of a model of the type {kind!r:.80}, not of a clip.")
        if "auto_map" in config:
            raise ClipError("its auto_map names code of its own, which is not run here.")
        text, vision = _tower_of_huggingface(config, "text"), _tower_of_huggingface(config, "vision")
        size, end = text["vocab_size"], text["eos_token_id"]
        fields = (
            {"embed_dim": config.get("projection_dim", 512)}
            | _placed(
                "text",
                _transformer_of_huggingface(text)
                | {
                    "context_length": text["max_position_embeddings"],
                    "vocabulary_size": size,
                    "end_of_text": _number(text, "vocab_size", 0) - 1 if end == _LEGACY_END else end,
                },
            )
            | _placed(
                "image",
                _transformer_of_huggingface(vision)
                | {"resolution": _side(vision, "image_size", 0), "patch": _side(vision, "patch_size", 0)},
            )
        )
    except ClipError as error:
        raise CheckpointError(f"{file.name} beside it cannot be used: {error}") from error
    found = [Word(f"{file.name} beside it", fields), *_processor(path, inferred.image.resolution)]
    return _known(found, config, inferred)


def _known(found: list[Word], config: Mapping[str, Any], inferred: Architecture) -> list[Word]:
    """``found`` without what ``config`` says is only assumed, unless somebody has corrected it since."""
    names, guesses = config.get(ASSUMED, []), fields_of(inferred)
    if not isinstance(names, list):
        raise CheckpointError(f"{found[0].source} cannot be used: its {ASSUMED} is {type(names).__name__}, not a list.")

    def holds(name: str, value: Any) -> bool:
        return name not in names or value != guesses.get(name)

    return [
        replace(word, fields={name: value for name, value in word.fields.items() if holds(name, value)})
        for word in found
    ]


def _is_of_a_clip(file: Path) -> bool:
    """Whether a ``config.json``, which many projects have, is of Hugging Face's CLIP."""
    try:
        config = _json(file)
    except ClipError:
        return False
    return isinstance(config, dict) and config.get("model_type") == "clip"


def _tower_of_huggingface(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """All keys of one tower; the older ``text_config_dict`` and its defaults go before ``text_config``."""
    defaults = _TEXT_DEFAULTS if tower == "text" else _VISION_DEFAULTS
    newer, older = (config.get(name) for name in (f"{tower}_config", f"{tower}_config_dict"))
    result = defaults | _object(newer if newer is not None else {}, f"{tower}_config")
    if older is not None:
        result |= defaults | _object(older, f"{tower}_config_dict")
    return result


def _transformer_of_huggingface(tower: Mapping[str, Any]) -> dict[str, Any]:
    activation = tower["hidden_act"]
    if not isinstance(activation, str) or activation not in _HUGGINGFACE_ACTIVATIONS:
        raise ClipError(f"it sets hidden_act to {activation!r:.80}, which cannot be computed here.")
    return {
        "width": tower["hidden_size"],
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_width": tower["intermediate_size"],
        "activation": _HUGGINGFACE_ACTIVATIONS[activation],
        "epsilon": tower["layer_norm_eps"],
    }


def _processor(path: Path, resolution: int) -> list[Word]:
    """What ``processor_config.json``, the newer one, and ``preprocessor_config.json`` say of the pixels."""
    found = []
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = path.with_name(name)
        if not file.exists():
            continue
        try:
            config = _object(_json(file), "it")
            if name == "processor_config.json":
                if "image_processor" not in config:
                    continue
                config = _object(config["image_processor"], "image_processor")
            pixels = _pixels_of_huggingface(config, resolution)
        except ClipError as error:
            raise CheckpointError(f"{name} beside it cannot be used: {error}") from error
        found.append(Word(f"{name} beside it", {"image.pixels": pixels}))
    return found


def _pixels_of_huggingface(config: Mapping[str, Any], resolution: int) -> Pixels:
    given = _PROCESSOR_DEFAULTS | {name: value for name, value in config.items() if value is not None}
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
        (0.0,) * 3 if plain else _colour(given["image_mean"]),
        (1.0,) * 3 if plain else _colour(given["image_std"]),
        _FILTERS[given["resample"]],
        "squash" if size == square else "shortest",
    )


def _open_clip_trainer(path: Path, layout: str, inferred: Architecture) -> list[Word]:
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
        if not isinstance(inferred.image, ModifiedResNet):
            fields["image.heads"] = max(inferred.image.width // _TRAINERS_HEADS[plain], 1)
    if preparation := {ours: value for theirs, ours in _TRAINERS_PIXELS.items() if (value := _given(settings, theirs))}:
        try:
            fields["image.pixels"] = _pixels_of_open_clip(preparation, inferred.image.resolution)
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


def _json(file: Path) -> Any:
    """The value in a file.

    Raises:
        ClipError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(files.read_regular(file, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ClipError(f"it is not JSON ({error!r:.100}).") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ClipError(f"{what} is {type(value).__name__}, expected an object.")
    return value


def _number(section: Mapping[str, Any], name: str, default: int) -> int:
    value = section.get(name, default)
    if type(value) is not int or not 1 <= value <= MAX_NUMBER:
        raise ClipError(f"its {name} is {value!r:.80}; it must be a whole number from 1 to {MAX_NUMBER}.")
    return value


def _side(section: Mapping[str, Any], name: str, default: int) -> int:
    """The side of a square that is given as one number or as two equal ones."""
    value = section.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return _number({name: value}, name, default)


def _colour(value: Any) -> Any:
    """Red, green and blue; what is no list is left to `Architecture.check`."""
    return tuple(value) if isinstance(value, list) else value


def _placed(place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{place}.{name}": value for name, value in fields.items()}
