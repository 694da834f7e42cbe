"""NNabla-CLIP's class, for code that calls ``clip.CLIP(model_path)``."""

from __future__ import annotations

import os

from backends.nnabla.wrapper import CLIPModule
from clip.api import open_model


class CLIP(CLIPModule):
    """A model in NNabla with its tokenizer and its preprocessing.

    Args:
        model_path: a weights file, or a name that `clip.available_models` lists.

    Raises:
        ClipError: it cannot be loaded.
    """

    def __init__(self, model_path: str | os.PathLike[str] = "data/ViT-L-14.h5") -> None:
        loaded = open_model(model_path, backend="nnabla")
        super().__init__(loaded.model, loaded.preprocess.pixels)  # type: ignore[arg-type]  # NNabla's, as asked for
