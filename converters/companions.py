"""The files that Hugging Face and open_clip want beside the weights; `converters.configurations` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf, nextafter
from pathlib import Path
from typing import Any

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.models import OPENAI_VOCABULARY_SIZE
from clip_core.preprocess import resampling_of
from clip_core.text import vocabulary
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import Activation, Transformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import tokenizer_files
from converters.configurations import ASSUMED

# The configuration that the two libraries look for, and the weights that they look for beside it, preferred first.
_BESIDE = {
    "huggingface": ("config.json", ("model.safetensors", "pytorch_model.bin")),
    "open_clip": ("open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
}
# How Hugging Face calls the activations.
_HUGGINGFACE_ACTIVATIONS: dict[Activation, str] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
# What the libraries read in place of a file that is written here.
_INSTEAD = ("processor_config.json", "tokenizer.json", "added_tokens.json")


def weights_name(layout: str) -> str | None:
    """The name of the weights in a folder of the project whose layout it is; None for those that have no folders."""
    return _BESIDE[layout][1][0] if layout in _BESIDE else None


def beside(
    path: Path, architecture: Architecture, assumed: Sequence[str], merges: str | None, layout: str
) -> dict[Path, str]:
    """The files, and their text, that Hugging Face or open_clip needs to load ``path``, if they look for its name.

    Args:
        assumed: the fields of the architecture that nobody has stated, which the configuration names, as it has to give
            them a value.
        merges: of the vocabulary; None: OpenAI's, which is found or fetched, if that is of the model's size. The files
            of a vocabulary that is neither given nor OpenAI's are left out.

    Raises:
        ClipError: a file that is there would be read instead, or the vocabulary is not the model's.
        DownloadError: OpenAI's vocabulary is nowhere to be found.
    """
    name, weights_names = _BESIDE.get(layout, ("", ()))
    if path.name not in weights_names:
        return {}
    preferred = weights_names[: weights_names.index(path.name)]
    for other in (*preferred, *(f"{weights}.index.json" for weights in preferred), *_INSTEAD):
        if path.with_name(other).exists():
            raise ClipError(
                f"{path.with_name(other)} would be read instead of what is written here; remove it, or choose another "
                "folder."
            )
    openai = merges is None and architecture.text.end_of_text == OPENAI_VOCABULARY_SIZE - 1
    tokenizer: dict[str, str] = {}
    if layout == "huggingface":
        merges = vocabulary.openai_merges() if openai else merges
        if merges is None:
            _refuse_tokenizer(path)
        config = _huggingface(architecture)
        tokenizer["preprocessor_config.json"] = _dump(_huggingface_preprocessor(architecture.image))
    else:
        config = _open_clip(architecture)
        if merges is not None:  # else open_clip takes OpenAI's
            config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."  # the one in this very folder
    if assumed:
        config[ASSUMED] = list(assumed)
    if merges is not None:
        tokenizer |= tokenizer_files.texts(merges, architecture.text)
    return {path.with_name(name): text for name, text in {name: _dump(config), **tokenizer}.items()}


def _refuse_tokenizer(path: Path) -> None:
    """Refuse to write a model whose vocabulary nobody knows beside the tokenizer of another one."""
    for name in tokenizer_files.VOCABULARY:
        if path.with_name(name).exists():
            raise ClipError(
                f"{path.with_name(name)} would be taken for the vocabulary of this model, which says nothing of its "
                "own; remove it, or choose another folder."
            )


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _huggingface(architecture: Architecture) -> dict[str, Any]:
    image, text = architecture.image, architecture.text
    assert isinstance(image, VisionTransformer)  # dialects.spell has refused the others

    def tower(tower: Transformer) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": _HUGGINGFACE_ACTIVATIONS[tower.activation],
            "layer_norm_eps": tower.epsilon,
            "projection_dim": architecture.embed_dim,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture.embed_dim,
        "dtype": "float32",  # to compute in, as here, whatever the weights are stored as
        "text_config": tower(text)
        | {
            "model_type": "clip_text_model",
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            "bos_token_id": text.end_of_text - 1,
            "eos_token_id": text.end_of_text,  # CLIPModel pools at the first one
            "pad_token_id": text.end_of_text,
        },
        "vision_config": tower(image)
        | {
            "model_type": "clip_vision_model",
            "image_size": image.resolution,
            "patch_size": image.patch,
            "num_channels": 3,
        },
    }


def _huggingface_preprocessor(image: VisionTransformer | ModifiedResNet) -> dict[str, Any]:
    side, pixels = image.resolution, image.pixels
    square = {"height": side, "width": side}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if pixels.resize == "squash" else {"shortest_edge": side},
        "resample": resampling_of(pixels.interpolation),
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pixels.mean,
        "image_std": pixels.deviation,
    }


def _open_clip(architecture: Architecture) -> dict[str, Any]:
    image, text = architecture.image, architecture.text
    activations = {tower.activation for tower in architecture.transformers.values()}
    if len(activations) > 1 and "quick_gelu" in activations:
        raise ClipError(
            f"open_clip has quick_gelu in both towers or in none, and these have {' and '.join(sorted(activations))}; "
            "choose the layout huggingface."
        )
    vision: dict[str, Any] = {"image_size": image.resolution, "width": image.width}
    if isinstance(image, ModifiedResNet):
        vision |= {"layers": list(image.blocks), "head_width": image.feature_width // image.heads}
    else:
        vision |= {"layers": image.layers, "patch_size": image.patch, "head_width": image.width // image.heads}
        vision |= _open_clip_blocks(image)
    language: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_open_clip_blocks(text),
    }
    if text.end_of_text != text.vocabulary_size - 1:  # else it is the highest token, at which open_clip pools
        language |= {"pool_type": "eos", "eos_id": text.end_of_text}
    return {
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


def _open_clip_blocks(tower: Transformer) -> dict[str, Any]:
    ratio = tower.mlp_width / tower.width
    if int(tower.width * ratio) != tower.mlp_width:  # which open_clip rounds down
        ratio = nextafter(ratio, inf)
    settings: dict[str, Any] = {"mlp_ratio": ratio, "norm_kwargs": {"eps": tower.epsilon}}
    return settings | ({"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {})
