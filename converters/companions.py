"""The small JSON files that Hugging Face and open_clip keep beside the weights, and what they tell about a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_core import files
from clip_core.architecture import Activation, Architecture, ModifiedResNet, Transformer, VisionTransformer
from clip_core.errors import CheckpointError, ClipError
from clip_core.naming import Weights
from converters import dialects

MAX_BYTES = 1 << 20

# The names that the two libraries look for, and the file that they want beside them.
_BESIDE = {
    "huggingface": ("config.json", ("model.safetensors", "pytorch_model.bin")),
    "open_clip": ("open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
}


def infer_architecture(path: Path, weights: Weights, layout: str) -> Architecture:
    """The architecture by the shapes of ``weights`` in the axis order of ``layout``.

    What shapes do not tell, the activation and the number of heads, comes from the configuration that Hugging Face or
    open_clip keeps beside ``path``; without one it is quick_gelu and heads 64 wide, as in OpenAI's models.

    Raises:
        CheckpointError: the weights are not those of a CLIP, or the configuration cannot be read.
    """
    inferred = dialects.infer_architecture(weights, layout)
    try:
        if layout == "huggingface" and (config := _config(path.with_name("config.json"))) is not None:
            return _with_huggingface(inferred, config)
        # open_clip's own models have OpenAI's names, so the file's name is what tells whose they are.
        name, weights_names = _BESIDE["open_clip"]
        theirs = layout == "open_clip" or path.name in weights_names
        if theirs and (config := _config(path.with_name(name))) is not None:
            return _with_open_clip(inferred, config["model_cfg"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the configuration beside it cannot be read: {error!r:.200}.") from error
    except ClipError as error:
        raise CheckpointError(f"the configuration beside it cannot be used: {error}") from error
    return inferred


def write_beside(path: Path, architecture: Architecture, layout: str) -> None:
    """Write the configuration that Hugging Face or open_clip needs to load ``path``, when it has the name they expect.

    Raises:
        ClipError: it cannot be written.
    """
    name, weights_names = _BESIDE.get(layout, ("", ()))
    if path.name in weights_names:
        config = _huggingface(architecture) if layout == "huggingface" else _open_clip(architecture)
        files.write_text(path.with_name(name), json.dumps(config, indent=2) + "\n")


def _config(path: Path) -> dict[str, Any] | None:
    return json.loads(files.read_regular(path, MAX_BYTES)) if path.exists() else None


def _with_huggingface(inferred: Architecture, config: Mapping[str, Any]) -> Architecture:
    text, image = config.get("text_config") or {}, config.get("vision_config") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (text, image)}
    if len(activations) != 1:
        raise ClipError(f"its two towers have different activations: {', '.join(sorted(activations))}.")
    return _checked(
        inferred,
        activation=activations.pop(),
        text_heads=text.get("num_attention_heads"),
        image_heads=image.get("num_attention_heads"),
    )


def _with_open_clip(inferred: Architecture, config: Mapping[str, Any]) -> Architecture:
    head_width = config["vision_cfg"].get("head_width", 64)
    image = inferred.image
    width = image.width if isinstance(image, VisionTransformer) else image.feature_width
    return _checked(
        inferred,
        activation="quick_gelu" if config.get("quick_gelu", False) else "gelu",
        text_heads=config["text_cfg"].get("heads"),
        image_heads=width // head_width,
    )


def _checked(
    inferred: Architecture, activation: Activation, text_heads: int | None, image_heads: int | None
) -> Architecture:
    result = replace(
        inferred,
        text=replace(inferred.text, heads=text_heads or inferred.text.heads),
        image=replace(inferred.image, heads=image_heads or inferred.image.heads),
    ).with_activation(activation)
    result.check()
    return result


def _huggingface(architecture: Architecture) -> dict[str, Any]:
    image, text = architecture.image, architecture.text
    assert isinstance(image, VisionTransformer)  # dialects.spell has refused the others

    def tower(tower: Transformer) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.epsilon,
            "projection_dim": architecture.embed_dim,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture.embed_dim,
        "text_config": tower(text)
        | {
            "model_type": "clip_text_model",
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            # With 2, CLIPModel pools at the highest id, which is the end of text in every vocabulary here.
            "eos_token_id": 2,
        },
        "vision_config": tower(image)
        | {"model_type": "clip_vision_model", "image_size": image.resolution, "patch_size": image.patch},
    }


def _open_clip(architecture: Architecture) -> dict[str, Any]:
    image, text = architecture.image, architecture.text
    vision: dict[str, Any] = {"image_size": image.resolution, "width": image.width}
    if isinstance(image, ModifiedResNet):
        vision |= {"layers": list(image.blocks), "head_width": image.feature_width // image.heads}
    else:
        vision |= {"layers": image.layers, "patch_size": image.patch, "head_width": image.width // image.heads}
    return {
        "model_cfg": {
            "embed_dim": architecture.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": vision,
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocabulary_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
            },
        }
    }
