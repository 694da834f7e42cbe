"""CLIP in NNabla, Paddle, PyTorch and NumPy, with the same numbers in each.

``clip.load`` gives a model and its preprocessing, and makes that model the one behind the functions of this module.
"""

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

__version__ = "0.1.0"

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
