"""CLIP in NNabla, Paddle, PyTorch and NumPy, verified to produce the same numbers.

``clip.load`` gives a model and its preprocessing, and makes that model the one behind the functions of this module;
``clip.train`` trains one by a recipe, ``clip.evaluate`` scores one on a data set, and ``clip.embed`` embeds pictures
and texts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    from clip.api import (
        available_models,
        encode_image,
        encode_text,
        load,
        logits,
        preprocess,
        tokenize,
    )
    from clip.embedding import Embeddings, embed
    from clip.evaluation import evaluate
    from clip.search import Index
    from clip.training import train

__all__ = [
    "AssumptionWarning",
    "BackendMissing",
    "CheckpointError",
    "ClipError",
    "DownloadError",
    "Embeddings",
    "ImageError",
    "Index",
    "TextError",
    "__version__",
    "available_models",
    "embed",
    "encode_image",
    "encode_text",
    "evaluate",
    "load",
    "logits",
    "preprocess",
    "tokenize",
    "train",
]


_MODULES = {
    **dict.fromkeys(
        ("available_models", "encode_image", "encode_text", "load", "logits", "preprocess", "tokenize"), "clip.api"
    ),
    "CLIP": "clip.nnabla_clip",
    **dict.fromkeys(("Embeddings", "embed"), "clip.embedding"),
    "evaluate": "clip.evaluation",
    "Index": "clip.search",
    "train": "clip.training",
}
"""Where that is which is imported when it is asked for, so that importing this package is quick."""


def __getattr__(name: str) -> Any:
    """What is found out when it is asked for: the functions, NNabla-CLIP's class, modules, those
    with the names of OpenAI's among them, and ``__version__``, that of the installed package."""
    if name in ("api", "clip", "model", "simple_tokenizer"):
        return importlib.import_module(f"clip.{name}")
    if name in _MODULES:
        from clip_core import installation

        installation.check()
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("triclip")
    except metadata.PackageNotFoundError:
        raise ClipError("triclip is not installed, so its version is not known; run: pip install -e .") from None
