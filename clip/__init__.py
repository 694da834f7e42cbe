"""CLIP in NNabla, Paddle, PyTorch and NumPy, verified to produce the same numbers.

``clip.load`` gives a model and its preprocessing, and makes that model the one behind the functions of this module.
"""

from importlib import metadata

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
    "load",
    "logits",
    "preprocess",
    "tokenize",
]


def __getattr__(name: str) -> str:
    """The version of the installed package, read when ``__version__`` is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return metadata.version("triclip")
    except metadata.PackageNotFoundError:
        raise ClipError("triclip is not installed, so its version is not known; run: pip install -e .") from None
