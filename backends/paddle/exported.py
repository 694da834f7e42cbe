"""Models of Paddle as files for Paddle Inference, which run without this project."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import inference, nn
from paddle.static import InputSpec

from backends.paddle.model import CLIP
from clip_core import files
from clip_core.chunks import threads
from clip_core.naming import Weights

# The ends of the names of the weights and of the metadata beside a file. Paddle takes name.other.json for a method.
WEIGHTS, METADATA = ".pdiparams", "-triclip.json"
OUTPUTS = {"image": ("image_features",), "text": ("text_features",), "both": ("logits_per_image", "logits_per_text")}


class Image(nn.Layer):
    """Pixels float32 [n, 3, r, r] -> image features float32 [n, d], not normalised."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    @paddle.jit.not_to_static  # nothing in it has to be translated to be recorded
    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.clip.encode_image(image)


class Text(nn.Layer):
    """Tokens int64 [n, length] -> text features float32 [n, d], not normalised."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    @paddle.jit.not_to_static
    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        return self.clip.encode_text(text)


class Both(nn.Layer):
    """Pixels [n, 3, r, r] and tokens [m, length] -> logits float32 per image [n, m] and per text [m, n]."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    @paddle.jit.not_to_static
    def forward(self, image: paddle.Tensor, text: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return self.clip(image, text)


LAYERS: dict[str, Callable[[CLIP], nn.Layer]] = {"image": Image, "text": Text, "both": Both}


def save(clip: CLIP, part: str, path: Path, inputs: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a tower, or both, with its weights and metadata beside it; batches and texts may have any length.

    Args:
        part: ``image``, ``text`` or ``both``.
        path: with the suffix ``.json``.
        inputs: ``image`` and ``text``, of which those of the part tell what it is given.
    """
    text = clip.architecture.text
    shapes: dict[str, list[int | None]] = {name: [None, *array.shape[1:]] for name, array in inputs.items()}
    if text.shortest_length < text.context_length:
        shapes["text"] = [None, None]
    names = ("image", "text") if part == "both" else (part,)
    given = [InputSpec(shapes[name], str(inputs[name].dtype), name) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle's, of parts of its own
        paddle.jit.save(LAYERS[part](_with_part(clip, part)), str(path.with_suffix("")), given)
    files.write_text(path.with_name(path.stem + METADATA), json.dumps(metadata, indent=2) + "\n")


def _with_part(clip: CLIP, part: str) -> CLIP:
    """The model without the weights of the tower that is no part of the file, which Paddle 3.0 would write."""
    if part == "both":
        return clip
    result = copy.copy(clip)
    result._sub_layers = {
        name: layer for name, layer in clip._sub_layers.items() if (name == "visual") == (part == "image")
    }
    if part == "image":  # the text tower's own parameters may be the model's
        result._parameters = {}
    return result


class Session:
    """A file that `save` has just written, ready to run in Paddle Inference on the CPU."""

    def __init__(self, path: Path) -> None:
        self._outputs = OUTPUTS[path.stem]
        config = inference.Config(str(path), str(path.with_suffix(WEIGHTS)))
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(threads())
        self._predictor = inference.create_predictor(config)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Weights:
        """All outputs by their names; of ``inputs`` those that the part takes are given to it."""
        for name, array in inputs.items():
            self._predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        self._predictor.run()
        # Paddle numbers the outputs.
        found = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        return {name: handle.copy_to_cpu() for name, handle in zip(self._outputs, found)}
