"""CLIP in NNabla, Paddle, PyTorch and NumPy, verified to produce the same numbers.

``clip.load`` gives a model and its preprocessing, and makes that model the one behind the functions of this module;
``clip.train`` trains one by a recipe, and ``clip.evaluate`` scores one on a data set.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from clip.api import (
    available_models,
    encode_image,
    encode_text,
    load,
    logits,
    preprocess,
    tokenize,
)
from clip_core.errors import (
    AssumptionWarning,
    BackendMissing,
    CheckpointError,
    ClipError,
    DownloadError,
    ImageError,
    TextError,
)

if TYPE_CHECKING:
    from clip.evaluation import evaluate
    from clip.training import train

__all__ = [
    "AssumptionWarning",
    "BackendMissing",
    "CheckpointError",
    "ClipError",
    "DownloadError",
    "ImageError",
    "TextError",
    "__version__",
    "available_models",
    "encode_image",
    "encode_text",
    "evaluate",
    "load",
    "logits",
    "preprocess",
    "tokenize",
    "train",
]


def __getattr__(name: str) -> Any:
    """What is found out when it is asked for: `train` and `evaluate`, which bring along all that reads recipes and
    data, the modules with the names of OpenAI's, NNabla-CLIP's class, and ``__version__``, that of the installed
    package."""
    if name in ("clip", "model", "simple_tokenizer"):
        return importlib.import_module(f"clip.{name}")
    if name == "CLIP":
        from clip.nnabla_clip import CLIP

        return CLIP
    if name == "train":
        from clip.training import train

        return train
    if name == "evaluate":
        from clip.evaluation import evaluate

        return evaluate
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return metadata.version("triclip")
    except metadata.PackageNotFoundError:
        raise ClipError("triclip is not installed, so its version is not known; run: pip install -e .") from None
