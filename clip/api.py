"""The drop-in API: load a model by name or file, in any backend, and use it through the module or as an object."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import backends
import clip_core
import converters
from clip_core import preprocess as preprocessing
from clip_core.backend import Model, Tensor
from clip_core.download import cache_folder, download
from clip_core.errors import AssumptionWarning, CheckpointError, ClipError
from clip_core.handover import HandedOver
from clip_core.models import ARCHITECTURES, MODELS, OPENAI_CONTEXT_LENGTH, NamedArchitecture, NamedModel, name_of
from clip_core.naming import count
from clip_core.pixels import Pixels
from clip_core.text.bpe import openai
from converters.folders import INDEX_SUFFIX
from converters.knowledge import STATE, known_alike

RESOURCES = Path(clip_core.__file__).parent / "resources"


class Preprocess:
    """The preprocessing of a model; that of OpenAI's models equals OpenAI's transform bit for bit.

    Called with a PIL image it gives the pixels as a float32 tensor [3, r, r] of the model's framework; NNabla, whose
    variables are part of a graph, and NumPy get an array.
    """

    def __init__(self, resolution: int, wanted: Pixels, backend: str) -> None:
        self.resolution, self.wanted, self.backend = resolution, wanted, backend

    def __call__(self, image: Image.Image) -> Tensor:
        if "transforms" not in vars(self):
            return backends.get(self.backend).native(self.pixels(image))
        for step in self.transforms:  # which other code has seen, and may have changed
            image = step(image)
        return image

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels as a float32 array [3, r, r].

        Raises:
            ImageError: as `clip_core.preprocess.preprocess`.
        """
        return preprocessing.preprocess(image, self.resolution, self.wanted)

    @cached_property
    def transforms(self) -> list[Callable[[Any], Any]]:
        """The same as single steps, like those of torchvision's ``Compose``; PyTorch's pictures alone have them.

        A list that is changed, or replaced by another one, changes what a call gives.

        Raises:
            AttributeError: the model is of another framework.
        """
        return backends.get(self.backend).preprocessing_steps(self.resolution, self.wanted)

    def __repr__(self) -> str:
        return f"Preprocess(resolution={self.resolution}, backend={self.backend!r})"


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that belongs to it."""

    name: str
    model: Model
    logit_scale: float  # what cosines are multiplied by
    logit_bias: float | None = None  # what is added then, if the model was trained to judge each pair by itself
    assumed: tuple[str, ...] = ()  # what its file does not say and nobody stated, so that it was taken to be OpenAI's
    assumed_fields: tuple[str, ...] = ()  # of the architecture, which `assumed` puts into words

    @property
    def preprocess(self) -> Preprocess:
        return preprocess_of(self.model)


def preprocess_of(model: Model) -> Preprocess:
    """The preprocessing of a model's pictures."""
    tower = model.architecture.image
    return Preprocess(tower.resolution, tower.pixels, model.backend)


_current: LoadedModel | None = None


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
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    resolution: int | None = None,
    compile: bool = False,
) -> tuple[Model, Preprocess]:
    """Load a model and make it the one behind the functions of this module.

    Args:
        name: a name that `available_models` lists, or a weights file in any layout that ``clip convert`` reads, or a
            folder with one.
        device: the framework's own name of a device. By default PyTorch and Paddle use the first GPU they can, else the
            CPU, and NNabla its current context.
        jit: gives the same model with a warning, since the code in TorchScript archives is never run.
        download_root: the folder for downloaded weights; by default the user's cache folder.
        backend: ``torch``, ``paddle``, ``nnabla`` or ``numpy``. By default a file's suffix decides, and for a name
            ``$CLIP_BACKEND``, else the first framework that is installed.
        precision: ``fp32``; PyTorch and Paddle also take ``bf16`` and ``fp16``.
        like: the file of the model that ``name`` was fine-tuned from, or a name that ``clip models`` lists: a file that
            a framework's own function saved holds neither the vocabulary nor all of the architecture.
        activation: ``quick_gelu``, ``gelu`` or ``gelu_tanh``, where neither the file nor a configuration beside it says
            which one the model needs.
        heads: of the image tower and of the text tower, likewise.
        resolution: pixels along one side of a picture, in place of the model's own; its positions are interpolated.
        compile: compile the model for inference by ``torch.compile``, in PyTorch alone. That takes a while, of which
            the logger ``backends.torch.compilation`` tells, and later processes find the code in a cache.

    Returns:
        The model, and the preprocessing of its pictures.

    Raises:
        ClipError: or one of its children, a sentence that says what is wrong and what to do.

    Warns:
        AssumptionWarning: nothing says which activation the model needs, so that it was taken to be like OpenAI's.
        UserWarning: ``jit`` is on.
    """
    global _current
    if jit:
        warnings.warn(
            "jit=True gives the plain model: archived code is never run here; compile=True is for speed, in PyTorch.",
            stacklevel=2,
        )
    _current = open_model(
        name,
        backend=backend,
        device=device,
        download_root=download_root,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads,
        resolution=resolution,
        compile=compile,
    )
    backends.get(_current.model.backend).publish(_current.model)
    return _current.model, _current.preprocess


def open_model(
    name: str | os.PathLike[str],
    backend: str | None = None,
    device: Any = None,
    download_root: str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    resolution: int | None = None,
    compile: bool = False,
) -> LoadedModel:
    """Like `load`, without touching the module-level model."""
    framework = backends.get(backend or _backend_for(name))  # before a long download, not after it
    compile_model = framework.compile if compile else None
    path, named = weights_file(name, download_root)
    original = None if like is None else original_of(like, download_root)
    file = converters.read(path, like=original, activation=activation, heads=heads, as_stored=True)
    if named is not None and file.architecture != named.architecture:
        found = name_of(file.architecture) or "another model"
        remedy = "remove it, and it is fetched again" if named.url else "install triclip again"
        raise CheckpointError(f"{path} holds {found}, expected {named.name}; {remedy}.")
    if resolution is not None:
        file = file.at_resolution(resolution)
    logit_scale = float(np.exp(file.weights["logit_scale"], dtype=np.float64))
    logit_bias = float(file.weights["logit_bias"]) if file.architecture.logit_bias else None
    model = framework.CLIP(
        file.architecture,
        HandedOver(file.weights),
        device=device,
        precision=precision,
        source=str(path),
        vocabulary=file.vocabulary,
    )
    if compile_model is not None:
        compile_model(model)
    warn_of_assumptions(path, file)
    if file.left_out:
        taken = f"below {file.prefix!r}" if file.prefix else "of one model"
        warnings.warn(
            f"Of {path} the tensors {taken} were taken, and {len(file.left_out)} others left out, such as "
            f"{file.left_out[0]}; clip inspect says more.",
            stacklevel=1,
        )
    return LoadedModel(str(name), model, logit_scale, logit_bias, file.assumptions(), file.assumed)


def warn_of_assumptions(source: str | os.PathLike[str], file: converters.ModelFile) -> None:
    """Warn if the activation of a model is assumed. A user who states it has seen the other assumptions."""
    if any(name.endswith(".activation") for name in file.assumed):
        remedy = known_alike(file.architecture) or STATE
        warnings.warn(
            f"{source} does not say all that its model needs; assumed, as is usual for its towers: "
            f"{', '.join(file.assumptions())}. Where that is wrong, so are the features: {remedy}, or put "
            "open_clip_config.json or config.json of the model beside the file.",
            AssumptionWarning,
            stacklevel=1,
        )


def original_of(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None
) -> Path | NamedArchitecture:
    """What ``like`` stands for: an architecture of that name, which has no weights, or else a file.

    Raises:
        ClipError: as `weights_file`.
    """
    named = None if os.path.exists(name) else ARCHITECTURES.get(str(name))
    return named or weights_file(name, download_root)[0]


def weights_file(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Path, NamedModel | None]:
    """The file behind a name, fetched if need be, or the weights file that a path stands for (`converters.find`).

    Args:
        download_root: as for `load`.
        progress: called with the bytes present and the bytes in all, if known, while a file is fetched.

    Raises:
        ClipError: it is neither a name nor a file, or a folder without a weights file or with several.
        DownloadError: the official weights cannot be fetched, or are not what they should be.
    """
    named = MODELS.get(str(name))
    if named is None:
        if not os.path.exists(name):
            refuse_architecture(str(name))
            raise ClipError(f"There is no file {name} and no model of that name; the models are {', '.join(MODELS)}.")
        return converters.find(name), None
    return fetch(named, download_root, progress), named


def refuse_architecture(name: str) -> None:
    """Refuse the name of an architecture that has no weights.

    Raises:
        ClipError: it is one.
    """
    if name in ARCHITECTURES:
        alike = next((f", or load OpenAI's {model}" for model in MODELS if _plain(model) == _plain(name)), "")
        raise ClipError(
            f"{name} is an architecture of {ARCHITECTURES[name].family.name} without weights at a fixed address; give "
            f"a file of such a model{alike}."
        )


def _plain(name: str) -> str:
    return name.replace("/", "-").lower()


def fetch(
    named: NamedModel,
    root: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file of a model, fetched if need be.

    Args:
        root: the folder for downloaded weights; by default the user's cache folder.
        progress: as for `weights_file`.

    Raises:
        DownloadError: it cannot be fetched, or is not what it should be.
    """
    if named.url is None:
        return RESOURCES / named.file
    folder = Path(root) if root is not None else cache_folder() / "models"
    most = 4 * count(named.architecture) + (16 << 20)  # bytes; the files are half of that, and have code beside it
    return download(named.url, folder / named.file, named.sha256, limit=most, progress=progress)


def tokenize(texts: str | Sequence[str], context_length: int | None = None, truncate: bool = False) -> Tensor:
    """Texts -> tokens [n, context_length] of the model loaded last, by default as many as it takes, as its framework
    wants them.

    Other models do not understand them, and refuse them: with several models, use each one's own ``model.tokenize``.
    Before any is loaded, the tokenizer is OpenAI's, and the default 77 tokens. PyTorch gets a LongTensor, Paddle an
    int64 tensor, NNabla and NumPy an int64 array.

    Raises:
        TextError: a text is too long and ``truncate`` is off, or is not a text.
    """
    if _current is None:
        length = OPENAI_CONTEXT_LENGTH if context_length is None else context_length
        return backends.get(backends.default()).native(openai().tokenize(texts, length, truncate))
    return _model().tokenize(texts, context_length, truncate)


def preprocess(image: Image.Image) -> Tensor:
    """The pixels of a picture [3, r, r] for the model loaded last (`Preprocess`)."""
    return preprocess_of(_model())(image)


def encode_image(image: Tensor) -> Tensor:
    """Pixels [n, 3, r, r] -> image features [n, d] of the model loaded last, not normalised."""
    return _model().encode_image(image)


def encode_text(text: Tensor) -> Tensor:
    """Tokens [n, context] -> text features [n, d] of the model loaded last, not normalised."""
    return _model().encode_text(text)


def logits(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [n, 3, r, r] and tokens [m, context] -> logits per image [n, m] and per text [m, n]."""
    return _model()(image, text)


def _model() -> Model:
    """The model behind the functions of this module: the one in NNabla's current parameter scope, or else the last.

    Raises:
        ClipError: no model is loaded, or the parameters in that scope are no model's.
    """
    if _current is None:
        raise ClipError("No model is loaded yet; call clip.load first, for example clip.load('shapes').")
    return backends.get(_current.model.backend).published() or _current.model


def _backend_for(name: str | os.PathLike[str]) -> str:
    if str(name) in MODELS:
        return backends.default()
    path = converters.find(name)
    suffix = Path(path.name.removesuffix(INDEX_SUFFIX)).suffix.lower()
    return backends.OF_SUFFIX.get(suffix) or backends.default()
