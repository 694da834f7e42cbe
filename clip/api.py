"""The drop-in API: load a model by name or file, in any backend, and use it through the module or as an object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import backends
import converters
from backends.base import Model, Tensor
from clip_core import files, tokenizer
from clip_core import preprocess as preprocessing
from clip_core.architecture import MODELS, OPENAI_CONTEXT_LENGTH, OPENAI_VOCABULARY_SIZE, NamedModel
from clip_core.errors import CheckpointError, ClipError, TextError

RESOURCES = Path(tokenizer.__file__).parent / "resources"
BACKEND_OF_SUFFIX = {
    ".h5": "nnabla",
    ".pdparams": "paddle",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".safetensors": "torch",
}


class Preprocess:
    """What a model wants done to a picture, bit for bit as OpenAI's transform does it.

    Called with a PIL image it gives the pixels as a float32 tensor [3, r, r] of the model's framework; NNabla, whose
    variables are part of a graph, and NumPy get an array.
    """

    def __init__(self, resolution: int, backend: str) -> None:
        self.resolution, self.backend = resolution, backend

    def __call__(self, image: Image.Image) -> Tensor:
        return _native(preprocessing.preprocess(image, self.resolution), self.backend)

    def __repr__(self) -> str:
        return f"Preprocess(resolution={self.resolution}, backend={self.backend!r})"


@dataclass(frozen=True)
class Loaded:
    """A model with all that belongs to it."""

    name: str
    model: Model
    vocabulary: str | None  # None: OpenAI's, read when it is first used

    @cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            TextError: the model's vocabulary is not OpenAI's, and its file does not carry it.
        """
        if self.vocabulary is not None:
            return tokenizer.Tokenizer(self.vocabulary)
        size = self.model.architecture.text.vocabulary_size
        if size != OPENAI_VOCABULARY_SIZE:
            raise TextError(
                f"{self.name} has a vocabulary of {size} tokens and does not carry it; "
                "convert the original file again with clip convert, which keeps the vocabulary beside the weights."
            )
        return tokenizer.openai()

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.model.architecture.image.resolution, self.model.backend)

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> np.ndarray:
        """Texts -> int64 tokens [n, context length of the model]."""
        return self.tokenizer.tokenize(texts, self.model.architecture.text.context_length, truncate)


_current: Loaded | None = None


def available_models() -> list[str]:
    """The names that `load` takes: the embedded model, and OpenAI's nine."""
    return list(MODELS)


def load(
    name: str | os.PathLike[str],
    device: Any = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    precision: str = "fp32",
) -> tuple[Model, Preprocess]:
    """Load a model and make it the one behind the functions of this module.

    Args:
        name: a name that `available_models` lists, or a weights file in any layout that ``clip convert`` reads.
        device: the framework's own name of a device; by default the first GPU it can use, else the CPU.
        jit: only ``False``; the code in TorchScript archives is never run.
        download_root: the folder for downloaded weights; by default the user's cache folder.
        backend: ``torch``, ``paddle``, ``nnabla`` or ``numpy``. By default a file's suffix decides, and for a name
            ``$CLIP_BACKEND``, else the first framework that is installed.
        precision: ``fp32``; PyTorch and Paddle also take ``bf16`` and ``fp16``.

    Returns:
        The model, and the preprocessing of its pictures.

    Raises:
        ClipError: or one of its children, a sentence that says what is wrong and what to do.
    """
    global _current
    if jit:
        raise ClipError(
            "jit=True is not possible: archived code is never run here; use torch.compile(model) for speed."
        )
    _current = open_model(name, backend=backend, device=device, download_root=download_root, precision=precision)
    if _current.model.backend == "nnabla":
        _current.model.publish()  # type: ignore[attr-defined]  # only NNabla has a global scope to publish to
    return _current.model, _current.preprocess


def open_model(
    name: str | os.PathLike[str],
    backend: str | None = None,
    device: Any = None,
    download_root: str | os.PathLike[str] | None = None,
    precision: str = "fp32",
) -> Loaded:
    """Like `load`, without touching the module-level model."""
    path, named = weights_file(name, download_root)
    framework = backends.get(backend or _backend_for(name))
    checkpoint = converters.read(path)
    if named is not None and checkpoint.architecture != named.architecture:
        raise CheckpointError(f"{path} does not hold {named.name}; remove it, and it is fetched again.")
    model = framework.CLIP(
        checkpoint.architecture, checkpoint.weights, device=device, precision=precision, source=str(path)
    )
    return Loaded(str(name), model, checkpoint.vocabulary)


def weights_file(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None, progress: Any = None
) -> tuple[Path, NamedModel | None]:
    """The file behind a name, fetched if need be, or the file itself.

    Raises:
        ClipError: it is neither a name nor a file.
        DownloadError: the official weights cannot be fetched, or are not what they should be.
    """
    named = MODELS.get(str(name))
    if named is None:
        path = Path(name)
        if not path.exists():
            raise ClipError(f"There is no file {name} and no model of that name; the models are {', '.join(MODELS)}.")
        return path, None
    if named.url is None:
        return RESOURCES / named.file, named
    folder = Path(download_root) if download_root is not None else files.cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return files.download(named.url, folder / named.file, named.sha256, progress=progress), named


def default_backend() -> str:
    """The backend for a model that is asked for by name: ``$CLIP_BACKEND``, else the first that is installed."""
    return os.environ.get("CLIP_BACKEND") or backends.available()[0]


def tokenize(texts: str | Sequence[str], context_length: int = OPENAI_CONTEXT_LENGTH, truncate: bool = False) -> Tensor:
    """Texts -> tokens [n, context_length], as the framework of the model loaded last wants them.

    The tokenizer is that of the model loaded last; before any is loaded, OpenAI's. PyTorch gets a LongTensor, Paddle an
    int64 tensor, NNabla and NumPy an int64 array.

    Raises:
        TextError: a text is too long and ``truncate`` is off, or is not a text.
    """
    if _current is None:
        return _native(tokenizer.openai().tokenize(texts, context_length, truncate), default_backend())
    return _native(_current.tokenizer.tokenize(texts, context_length, truncate), _current.model.backend)


def preprocess(image: Image.Image) -> Tensor:
    """The pixels of a picture [3, r, r] for the model loaded last (`Preprocess`)."""
    return _loaded().preprocess(image)


def encode_image(image: Tensor) -> Tensor:
    """Pixels [n, 3, r, r] -> image features [n, d] of the model loaded last, not normalised."""
    return _loaded().model.encode_image(image)


def encode_text(text: Tensor) -> Tensor:
    """Tokens [n, context] -> text features [n, d] of the model loaded last, not normalised."""
    return _loaded().model.encode_text(text)


def logits(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
    return _loaded().model(image, text)


def _loaded() -> Loaded:
    if _current is None:
        raise ClipError("No model is loaded yet; call clip.load first, for example clip.load('shapes').")
    return _current


def _backend_for(name: str | os.PathLike[str]) -> str:
    if str(name) in MODELS:
        return default_backend()
    backend = BACKEND_OF_SUFFIX.get(Path(name).suffix.lower())
    return backend if backend is not None else default_backend()


def _native(array: np.ndarray, backend: str) -> Tensor:
    if backend in ("numpy", "nnabla"):
        return array
    return backends.get(backend).to_tensor(array)
