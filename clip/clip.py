"""The functions of this package under the names of OpenAI's module, for code that imports ``clip.clip``."""

from __future__ import annotations

import os
from typing import Any

from clip.api import Preprocess, available_models, fetch, load, tokenize
from clip_core.errors import ClipError
from clip_core.models import MODELS
from clip_core.pixels import OPENAI_PIXELS

__all__ = ["available_models", "load", "tokenize"]

_MODELS = {name: model.url for name, model in MODELS.items() if model.url is not None}


def __getattr__(name: str) -> Any:
    """What reads the vocabulary or imports PyTorch, when it is asked for."""
    if name in ("_Tokenizer", "_tokenizer"):
        from clip.simple_tokenizer import SimpleTokenizer

        return SimpleTokenizer if name == "_Tokenizer" else SimpleTokenizer()
    if name == "_convert_image_to_rgb":
        from backends.torch.transforms import convert_image_to_rgb

        return convert_image_to_rgb
    if name == "build_model":
        from clip.model import build_model

        return build_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _download(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """The file behind one of the addresses in ``_MODELS``, fetched into the folder ``root`` if need be, and verified.

    Raises:
        ClipError: it is none of them.
        DownloadError: it cannot be fetched, or is not what it should be.
    """
    named = next((model for model in MODELS.values() if model.url == url), None)
    if named is None:
        raise ClipError(f"There is no model at {url!r}; the addresses are those in clip.clip._MODELS.")
    return str(fetch(named, root))


def _transform(n_px: int) -> Preprocess:
    """OpenAI's preprocessing for a model of ``n_px`` x ``n_px`` pixels, which gives PyTorch's tensors."""
    return Preprocess(n_px, OPENAI_PIXELS, "torch")
