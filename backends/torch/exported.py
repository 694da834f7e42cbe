"""Models of PyTorch as files that run without this project: TorchScript, and programs of ``torch.export``."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.torch.model import CLIP
from clip_core import files
from clip_core.naming import Weights

TORCHSCRIPT, PROGRAM = ".pt", ".pt2"  # the suffixes of both formats
METADATA = "triclip.json"  # in the archive
OUTPUTS = {"image": ("image_features",), "text": ("text_features",), "both": ("logits_per_image", "logits_per_text")}


class Image(nn.Module):
    """Pixels float32 [n, 3, r, r] -> image features float32 [n, d], not normalised."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(image).float()


class Text(nn.Module):
    """Tokens int64 [n, length] -> text features float32 [n, d], not normalised."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(text).float()


class Both(nn.Module):
    """Pixels [n, 3, r, r] and tokens [m, length] -> logits float32 per image [n, m] and per text [m, n]."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        per_image, per_text = self.clip(image, text)
        return per_image.float(), per_text.float()


MODULES: dict[str, Callable[[CLIP], nn.Module]] = {"image": Image, "text": Text, "both": Both}


def save(clip: CLIP, part: str, path: Path, inputs: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a tower, or both, in the format of the path's suffix; batches and texts may have any length.

    Args:
        part: ``image``, ``text`` or ``both``.
        inputs: ``image`` and ``text``, of which those of the part are sent through it to record what it computes.
    """
    module = MODULES[part](_with_part(clip, part)).eval()
    names = ("image", "text") if part == "both" else (part,)
    given = tuple(torch.from_numpy(inputs[name]) for name in names)
    extra = {METADATA: json.dumps(metadata)}
    buffer = io.BytesIO()  # PyTorch ends the process if it cannot write to a file
    with warnings.catch_warnings(), torch.no_grad():
        # Each of both tells to use another one, and of all that a trace takes for constant.
        warnings.simplefilter("ignore")
        if path.suffix == TORCHSCRIPT:
            torch.jit.save(torch.jit.trace(module, given, check_trace=False), buffer, extra)
        else:
            program = torch.export.export(module, given, dynamic_shapes=dynamic_axes(clip, names), strict=False)
            torch.export.save(program, buffer, extra_files=extra)
    files.write_bytes(path, buffer.getvalue())


def _with_part(clip: CLIP, part: str) -> CLIP:
    """The model without the weights of the tower that is no part of the file."""
    if part == "both":
        return clip
    result = copy.copy(clip)
    result._modules = {
        name: module for name, module in clip._modules.items() if (name == "visual") == (part == "image")
    }
    if part == "image":  # the text tower's own parameters may be the model's
        result._parameters = {"logit_scale": clip.logit_scale}
    return result


def dynamic_axes(clip: CLIP, names: tuple[str, ...]) -> tuple[dict[int, Any], ...]:
    """The axes of each input that may have any length, as ``torch.export`` wants them."""
    text = clip.architecture.text
    of_text = {0: torch.export.Dim("texts")}
    if text.shortest_length < text.context_length:
        of_text[1] = torch.export.Dim("length", max=text.context_length)
    shapes = {"image": {0: torch.export.Dim("images")}, "text": of_text}
    return tuple(shapes[name] for name in names)


class Session:
    """A file that `save` has just written, ready to run: loading it runs what is in it."""

    def __init__(self, path: Path) -> None:
        self._outputs = OUTPUTS[path.stem]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == TORCHSCRIPT:
                self._module = torch.jit.load(str(path))
            else:
                self._module = torch.export.load(str(path)).module()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Weights:
        """All outputs by their names; of ``inputs`` those that the part takes are given to it."""
        with torch.no_grad():
            found = self._module(*(torch.from_numpy(array) for array in inputs.values()))
        values = found if isinstance(found, tuple | list) else (found,)
        return {name: value.numpy() for name, value in zip(self._outputs, values)}
