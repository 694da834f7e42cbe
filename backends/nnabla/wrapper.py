"""NNabla-CLIP's class: one object with a model, its tokenizer and its preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import nnabla as nn
import nnabla.functions as F
import numpy as np
from PIL import Image

from backends.nnabla.functions import products
from backends.nnabla.layers import normalize
from backends.nnabla.model import CLIP
from backends.nnabla.tensors import to_array
from clip_core.image import open_image
from clip_core.layouts import LAYOUTS


class CLIPWrapper:
    """A model with what it needs to classify pictures.

    Args:
        model: loaded weights.
        pixels: a PIL image -> float32 pixels [3, r, r] for the model.
    """

    def __init__(self, model: CLIP, pixels: Callable[[Image.Image], np.ndarray]) -> None:
        self.model, self.pixels = model, pixels

    def encode_image(self, image: nn.Variable | np.ndarray) -> nn.Variable:
        """Pixels [n, 3, r, r] -> image features [n, d], not normalised."""
        return self.model.encode_image(image)

    def encode_text(self, text: nn.Variable | np.ndarray) -> nn.Variable:
        """Tokens [n, context] -> text features [n, d], not normalised."""
        return self.model.encode_text(text)

    def logits(
        self, image: nn.Variable | np.ndarray, text: nn.Variable | np.ndarray
    ) -> tuple[nn.Variable, nn.Variable]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
        return self.model(image, text)

    def probabilities(self, image_features: nn.Variable, text_features: nn.Variable) -> nn.Variable:
        """Features [n, d] and [m, d] -> how likely each text is for a picture [n, m]: the softmax of scaled cosines."""
        scale = F.reshape(F.exp(self.model.logit_scale), (1, 1))
        return F.softmax(scale * products(normalize(image_features), normalize(text_features)), axis=-1)

    def __call__(self, image: nn.Variable | np.ndarray, text: nn.Variable | np.ndarray) -> nn.Variable:
        """Pixels [n, 3, r, r] and tokens [m, context] -> `probabilities` [n, m]."""
        return self.probabilities(self.encode_image(image), self.encode_text(text))

    def preprocess_image(self, image: str | Path | BinaryIO) -> nn.Variable:
        """A file of a picture, or its bytes in memory -> pixels [1, 3, r, r].

        Raises:
            ImageError: it cannot be read.
        """
        return nn.Variable.from_numpy_array(self.pixels(open_image(image))[None])

    def preprocess_texts(self, texts: Sequence[str]) -> nn.Variable:
        """Texts -> tokens [n, context].

        Raises:
            TextError: a text is too long, or is not a text.
        """
        return nn.Variable.from_numpy_array(self.model.tokenize(texts))

    def run(self, image: str | Path | BinaryIO, texts: Sequence[str]) -> np.ndarray:
        """How likely each of the texts is for one picture: float32 [n], which add up to 1.

        Raises:
            ClipError: the picture or a text cannot be used.
        """
        with nn.auto_forward():
            return self(self.preprocess_image(image), self.preprocess_texts(texts)).d[0]


class CLIPModule(CLIPWrapper, nn.Module):
    """A `CLIPWrapper` as one of NNabla's modules, whose own scope has the parameters under NNabla-CLIP's names.

    NNabla changes the scope of all threads while a method runs that a module's class defines. That of the methods above
    is another one.
    """

    def __init__(self, model: CLIP, pixels: Callable[[Image.Image], np.ndarray]) -> None:
        CLIPWrapper.__init__(self, model, pixels)
        for name, variable in model.spelled_parameters().items():  # into the module's scope
            nn.parameter.set_parameter(name, variable)

    def set_parameters(self, params: Mapping[str, nn.Variable], raise_if_missing: bool = False) -> None:
        """Take over the values of some parameters by their names in NNabla: all of them, or on any fault none.

        Raises:
            CheckpointError: listing every name that the model does not have, and every wrong shape.
        """
        weights = LAYOUTS["nnabla"].to_canonical({name: to_array(variable) for name, variable in params.items()})
        self.model.load(self.model.export() | weights, "the set of parameters")

    def set_parameter(self, key: str, param: nn.Variable, raise_if_missing: bool = False) -> None:
        """`set_parameters` of one."""
        self.set_parameters({key: param})
