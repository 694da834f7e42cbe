"""CLIP as PASSL's users write it: a wrapper built from two dictionaries, with the model inside and a loss on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from backends.paddle.model import CLIP, to_array
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.naming import Weights
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import HEAD_WIDTH
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import dialects

HEADS = ("CLIPHead", "ClipHead", "ClipCNHead")  # the last two are spellings of PASSL's documents
# What Paddle keeps in a file besides tensors: their names in a graph.
NAME_TABLE = "StructuredToParameterName@@"
# Settings that PASSL knows and CLIP's weights have one answer to.
FIXED = {"name": "CLIP", "qkv_bias": True, "pre_norm": True, "proj": True, "patch_bias": False}


class CLIPWrapper(nn.Layer):
    """A CLIP and its training loss.

    Args:
        architecture: PASSL's dictionary (``embed_dim``, ``image_resolution``, ``vision_layers``, ``vision_width``,
            ``vision_patch_size``, ``context_length``, ``vocab_size``, ``transformer_width``, ``transformer_heads``,
            ``transformer_layers``).
        head: ``{"name": "CLIPHead"}``, or one of the other names that PASSL's documents give it.
        architectual: the spelling of ``architecture`` in PASSL's documents.
        device: as for `CLIP`.
        seed: of the initial weights, which `set_state_dict` replaces.

    Raises:
        ClipError: a key is missing, unknown, or asks for what is not a CLIP.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        architectual: Mapping[str, Any] | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given = [settings for settings in (architecture, architectual) if settings is not None]
        if len(given) != 1:
            raise ClipError("CLIPWrapper needs one dictionary, architecture={...}, as PASSL's documents give it.")
        shape = architecture_of(given[0])
        check_head({"name": HEADS[0]} if head is None else head)
        self.model = CLIP(shape, initialize(shape, seed), device=device)
        self.head = CLIPHead()

    def forward(self, image: paddle.Tensor, text: paddle.Tensor, mode: str = "train") -> dict[str, paddle.Tensor]:
        """Pixels [n, 3, r, r] and their tokens [n, context] -> ``loss`` with its parts ``img_loss`` and ``text_loss``.

        Raises:
            ClipError: ``mode`` is not ``train``; use ``.model`` for features.
        """
        if mode != "train":
            raise ClipError(f"CLIPWrapper has no mode {mode!r}, only train; use .model.encode_image for features.")
        return self.head(*self.model(image, text))

    def set_state_dict(
        self, state_dict: Mapping[str, Any], use_structured_name: bool = True
    ) -> tuple[list[str], list[str]]:
        """Take over weights under PASSL's names or ours: all of them, or on any fault none.

        Args:
            state_dict: name -> tensor or array, or such a dictionary under ``state_dict``, as PASSL saves it.
            use_structured_name: there for Paddle's callers; the names are always those of the model's parts.

        Returns:
            Two empty lists, where Paddle's layers list what did not fit.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """
        entries = state_dict.get("state_dict", state_dict)
        arrays = {name: _array(name, value) for name, value in entries.items() if name != NAME_TABLE}
        self.model.load(canonical(arrays, self.model.architecture), "the state_dict")
        return [], []

    set_dict = load_dict = set_state_dict  # Paddle's other names for it


class CLIPHead(nn.Layer):
    """The symmetric softmax loss as PASSL has it: the sum of both directions, not their mean."""

    def forward(self, image_logits: paddle.Tensor, text_logits: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Logits [n, n] of n matching pairs, which are on the diagonal, per image and per text.

        Raises:
            ClipError: there are not as many images as texts.
        """
        if image_logits.shape[0] != image_logits.shape[1]:
            images, texts = image_logits.shape
            raise ClipError(
                f"The loss is of matching pairs, and {images} images came with {texts} texts; give equally many."
            )
        # Paddle's own cross entropy is never above 64 on a CPU, and finite even for NaN.
        img_loss, text_loss = ((x.logsumexp(axis=1) - x.diagonal()).mean() for x in (image_logits, text_logits))
        return {"loss": img_loss + text_loss, "img_loss": img_loss, "text_loss": text_loss}


def check_head(head: Mapping[str, Any]) -> None:
    """Refuse a head that is none of PASSL's for CLIP.

    Raises:
        ClipError: its name is missing or unknown, or it has other settings.
    """
    if head.get("name") not in HEADS:
        raise ClipError(f"There is no head {head.get('name')!r}; choose one of {', '.join(HEADS)}.")
    if unknown := sorted(head.keys() - {"name"}):
        raise ClipError(f"The head has unknown keys: {', '.join(unknown)}; it takes its name only.")


def architecture_of(settings: Mapping[str, Any]) -> Architecture:
    """PASSL's dictionary as an architecture.

    Raises:
        ClipError: a key is missing, unknown, or asks for what is not a CLIP.
    """
    left = dict(settings)
    for key, value in FIXED.items():
        if left.pop(key, value) != value:
            raise ClipError(f"The architecture has {key} = {settings[key]!r}; a CLIP has {key} = {value!r}.")
    try:
        width, layers, resolution = left.pop("vision_width"), left.pop("vision_layers"), left.pop("image_resolution")
        patch = left.pop("vision_patch_size")
        image: VisionTransformer | ModifiedResNet
        if isinstance(layers, tuple | list):
            image = ModifiedResNet(resolution, width, tuple(layers), heads=max(width * 32 // HEAD_WIDTH, 1))
        else:
            image = VisionTransformer(resolution, patch, width, layers, heads=max(width // HEAD_WIDTH, 1))
        text = TextTransformer(
            left.pop("context_length"),
            left.pop("vocab_size"),
            left.pop("transformer_width"),
            left.pop("transformer_layers"),
            left.pop("transformer_heads"),
        )
        result = Architecture(left.pop("embed_dim"), image, text)
    except KeyError as error:
        raise ClipError(f"The architecture lacks {error.args[0]}.") from error
    except TypeError as error:
        raise ClipError(f"The architecture's vision_width is {settings['vision_width']!r}; give a number.") from error
    if left:
        raise ClipError(f"The architecture has unknown keys: {', '.join(sorted(left))}.")
    result.check()
    return result


def canonical(arrays: Weights, architecture: Architecture) -> Weights:
    """Weights under PASSL's, Paddle's or OpenAI's names, as the canonical ones; names nobody knows stay as they are.

    Raises:
        CheckpointError: the model's names have a prefix, and others have not.
    """
    selection = dialects.select(arrays)
    if selection.left_out:
        raise CheckpointError(
            f"{selection.left_out[0]} in the state_dict does not start with {selection.prefix!r}, as the model's names "
            "do; remove it."
        )
    layout = dialects.detect(selection.weights)
    return dialects.reorder(dialects.to_canonical(selection.weights, layout), architecture, layout)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, paddle.Tensor):
        return to_array(value)
    if isinstance(value, np.ndarray):
        return value
    raise CheckpointError(f"{name} in the state_dict is a {type(value).__name__}, expected a tensor or an array.")
