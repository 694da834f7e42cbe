"""PASSL's wrapper of CLIP: built from two dictionaries, with the model inside and a loss on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from backends.paddle.model import CLIP
from backends.paddle.tensors import to_array
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.layouts import passl, selection
from clip_core.naming import Weights

# What Paddle keeps in a file besides tensors: their names in a graph.
NAME_TABLE = "StructuredToParameterName@@"


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
        shape = passl.architecture_of(given[0])
        passl.check_head({"name": passl.HEADS[0]} if head is None else head)
        self.model = CLIP(shape, initialize(shape, seed), device=device)
        self.head = CLIPHead()

    def forward(
        self, image: paddle.Tensor, text: paddle.Tensor | None = None, mode: str = "train"
    ) -> paddle.Tensor | dict[str, paddle.Tensor]:
        """What ``mode`` asks for, of pixels [n, 3, r, r] and tokens [m, context].

        ``train``: the ``loss`` of n matching pairs with its parts ``img_loss`` and ``text_loss``. ``test``: the logits
        ``image_logits`` [n, m] and ``text_logits`` [m, n]. ``extract``: the image features [n, d], not normalised.

        Raises:
            ClipError: there is no such mode, or it needs a text.
        """
        if mode not in ("train", "test", "extract"):
            raise ClipError(f"CLIPWrapper has no mode {mode!r}, only train, test and extract.")
        if mode == "extract":
            return self.model.encode_image(image)
        if text is None:
            raise ClipError(f"The mode {mode} of CLIPWrapper needs a text beside the image; extract needs none.")
        image_logits, text_logits = self.model(image, text)
        if mode == "test":
            return {"image_logits": image_logits, "text_logits": text_logits}
        return self.head(image_logits, text_logits)

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


def canonical(arrays: Weights, architecture: Architecture) -> Weights:
    """Weights under PASSL's, Paddle's or OpenAI's names, as the canonical ones; names nobody knows stay as they are.

    Raises:
        CheckpointError: the model's names have a prefix, and others have not.
    """
    found = selection.select(arrays)
    if found.left_out:
        raise CheckpointError(
            f"{found.left_out[0]} in the state_dict does not start with {found.prefix!r}, as the model's names "
            "do; remove it."
        )
    return selection.canonical(found.weights, architecture)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, paddle.Tensor):
        return to_array(value)
    if isinstance(value, np.ndarray):
        return value
    raise CheckpointError(f"{name} in the state_dict is a {type(value).__name__}, expected a tensor or an array.")
