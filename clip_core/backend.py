"""What every backend offers: what the API, the commands and the training loop are written against."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.intermediates import Intermediates
from clip_core.naming import Weights
from clip_core.pixels import Pixels
from clip_core.text.tokenizer import Tokenizer
from clip_core.towers.parts import Tower

if TYPE_CHECKING:
    from clip_core.training.recipe import Recipe  # which takes a while to import, and inference needs none

Kind = TypeVar("Kind")
Tensor = Any  # the framework's own tensor type
Observe = Callable[[str, Tensor], None]  # told the name and the value of what a forward pass computes


def ignore(name: str, value: Tensor) -> None:
    """The observer of a forward pass that ignores what it is given."""


def below(prefix: str, observe: Observe) -> Observe:
    """An observer of a part, who tells ``observe`` the names with ``prefix`` in front."""
    return observe if observe is ignore else lambda name, value: observe(prefix + name, value)


_plain = ContextVar("plain", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Let backends compute in this thread as where other code looks at each step: by the framework's own functions, and
    without what inference alone has, such as prefixes that are computed once.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether this thread computes `plainly`."""
    return _plain.get()


def class_of(classes: Mapping[str, Kind], tower: Tower, backend: str) -> Kind:
    """What a backend has for towers of this kind.

    Raises:
        ClipError: it has nothing.
    """
    if tower.kind not in classes:
        raise ClipError(f"The {backend} backend has no {tower.title} (the kind {tower.kind}); choose another backend.")
    return classes[tower.kind]


class Backend(ABC):
    """One framework, and all that the rest of this project asks of it; `backends.get` gives it."""

    name: ClassVar[str]  # of the package that is imported
    CLIP: ClassVar[ModelClass]

    @staticmethod
    @abstractmethod
    def to_tensor(array: np.ndarray) -> Tensor:
        """A NumPy array as a tensor on the CPU."""

    @staticmethod
    @abstractmethod
    def to_array(tensor: Tensor) -> np.ndarray:
        """A computed tensor as a float32 (or integer) NumPy array."""

    def native(self, array: np.ndarray) -> Tensor:
        """What users are given in place of ``array``: a tensor, or where tensors are parts of a graph, itself."""
        return self.to_tensor(array)

    def value_of(self, output: Tensor) -> np.ndarray:
        """`to_array` of what a model has given, computed now if it is not yet."""
        return self.to_array(output)

    def preprocessing_steps(self, resolution: int, wanted: Pixels) -> list[Callable[[Any], Any]]:
        """The preprocessing of pictures as single steps, like those of torchvision's ``Compose``.

        Raises:
            AttributeError: the users of this framework know no such steps.
        """
        raise AttributeError(f"the preprocessing for {self.name} has no single steps")

    def publish(self, model: Model) -> None:  # noqa: B027  # most frameworks keep nothing
        """Make a model known to what the framework keeps for the whole process, if it keeps anything."""

    def published(self) -> Model | None:
        """The model that the framework keeps for where it is asked now, if it keeps any.

        Raises:
            ClipError: what it keeps there is no model's.
        """
        return None

    @property
    def compile(self) -> Callable[[Model], None]:
        """What compiles a model of this framework for inference, in place; imported now.

        Raises:
            ClipError: there is no compilation in this framework; or, where it is called, not of this model or here.
        """
        raise ClipError(f"There is no compilation in {self.name!r}; leave compile out, or choose the backend torch.")

    @property
    def Trainer(self) -> TrainerClass:
        """The trainer of this framework's models, imported now.

        Raises:
            ClipError: there is no training in this framework.
        """
        raise self._no_training()

    @property
    def ProcessGroup(self) -> ProcessGroupClass:
        """The processes of a training run, imported now.

        Raises:
            ClipError: as `Trainer`.
        """
        raise self._no_training()

    def launcher(self, processes: int) -> list[str]:
        """The command that starts ``processes`` processes on one machine, without the Python program that each runs.

        Raises:
            ClipError: as `Trainer`, or the launcher is not installed.
        """
        raise self._no_training()

    def exit(self, code: int) -> None:
        """End this process, one of several that have trained together and have left their group."""
        sys.exit(code)

    def _no_training(self) -> ClipError:
        return ClipError(f"There is no training in {self.name!r}; choose another backend.")


class ModelClass(Protocol):
    """The class of a backend's models."""

    def __call__(
        self,
        architecture: Architecture,
        weights: Mapping[str, np.ndarray],
        device: Any = ...,
        precision: str = ...,
        source: str = ...,
        vocabulary: str | None = ...,
    ) -> Model:
        """A model with ``weights`` under their canonical names.

        Args:
            device: the framework's own name of a device.
            precision: ``fp32``, or another that the framework computes inference in.
            source: what the weights came from, for messages.
            vocabulary: the text of a merges file; without it, the vocabulary is OpenAI's.

        Raises:
            ClipError: there is no such device or precision, or the weights do not fit the architecture.
        """


class Model(Protocol):
    """One CLIP in one framework. Tensors in and out are the framework's own; NumPy arrays are accepted everywhere."""

    architecture: Architecture
    backend: str
    source: str  # what the weights came from, for messages
    vocabulary: str | None  # the text of a merges file; None: it is OpenAI's

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with, read when it is first used.

        Raises:
            TextError: its vocabulary is not known.
            DownloadError: it is OpenAI's, and that cannot be had.
        """

    def tokenize(self, texts: str | Iterable[str], context_length: int | None = ..., truncate: bool = ...) -> Tensor:
        """Texts -> int64 tokens [n, context_length] by `tokenizer`, by default as long as the model's; NNabla, whose
        variables are part of a graph, gives an array.

        Raises:
            TextError: a text is too long and ``truncate`` is off, or is not a text.
        """

    def load(self, weights: Mapping[str, np.ndarray], source: str = ...) -> None:
        """Take over ``weights`` (canonical names, shapes and axis order): all of them, or on any fault none.

        Raises:
            CheckpointError: listing every missing, extra or misshapen name.
        """

    def export(self) -> Weights:
        """The weights under their canonical names, shapes and axis order; float32, counters int64."""

    def encode_image(self, image: Tensor) -> Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """

    def encode_text(self, text: Tensor) -> Tensor:
        """Tokens int32 or int64 [n, context] -> text features [n, d], not normalised.

        Raises:
            TextError: the tokens have another shape or type, an id is outside the vocabulary, or a text is without its
                end-of-text token.
        """

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n, 3, r, r] and tokens [m, context] -> (logits per image [n, m], logits per text [m, n])."""

    def embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """The values of `encode_image` as a float32 array [n, d], without gradient."""

    def embed_text(self, tokens: np.ndarray) -> np.ndarray:
        """The values of `encode_text` as a float32 array [n, d], without gradient."""

    def layers(self, pixels: np.ndarray, tokens: np.ndarray) -> Weights:
        """What each block computes, float32 arrays in the order of computation, named by the block's parameters.

        Image tokens are [n, l, d] and feature maps [n, c, h, w]. The last block of a transformer is computed for the
        pooled token only and gives [n, d]; text is cut after the longest text of the batch.
        """

    def forward_intermediates(
        self, pixels: np.ndarray, blocks: Iterable[int] | None = None, tokens: bool = True, attention: bool = False
    ) -> Intermediates:
        """What blocks of the image tower compute, all tokens included, without gradient and as in evaluation.

        Args:
            pixels: float [n, 3, r, r].
            blocks: their numbers, negative ones from the end; None for all.
            tokens: whether the states of patches and class token are wanted.
            attention: whether the attention maps are wanted.

        Raises:
            ClipError: there is no such block, it has no attention, or the backend shows no blocks.
            ImageError: there are no pictures, or the pixels are none.
        """


class ProcessGroup(Protocol):
    """The processes of a training run, each with a share of every batch."""

    rank: int
    size: int

    @property
    def device(self) -> str | None:
        """Where the model of this process belongs; None for the framework's current device."""

    def gather(self, x: Tensor) -> Tensor:
        """[n, d] of every process -> [size * n, d] in the order of their ranks, without gradient."""

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def gather_float(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""

    def peak_memory(self) -> int | None:
        """Bytes of the device's own memory that were in use at most; None on a CPU, or where nobody counts."""

    def close(self) -> None:
        """Leave the other processes."""


class ProcessGroupClass(Protocol):
    """The class of a backend's process groups."""

    def __call__(self) -> ProcessGroup:
        """The processes that a launcher has started with this one, or this one alone.

        Raises:
            ClipError: the processes cannot be connected.
        """


@dataclass(frozen=True)
class StepResult:
    """What one training step reports of the whole batch; the loss is that of the weights before the update.

    A loss or norm that is not finite has updated nothing: either the step was skipped, or training cannot go on.
    """

    loss: float
    logit_scale: float  # exp of the parameter, before the update
    gradient_norm: float  # over all trained parameters, before clipping; not finite when the step was skipped
    top1: float = 0.0  # share of the pictures whose own text is the nearest of the batch; a tie counts against it
    top5: float = 0.0  # share of the pictures whose own text is among the five nearest
    loss_scale: float = 1.0  # that the gradients of the towers were computed with; above 1 in fp16 alone
    skipped: bool = False  # the gradients overflowed in fp16: nothing was updated, and the loss scale was lowered


class Trainer(Protocol):
    """One optimiser step at a time over a `Model`; schedule, logging, checkpoints and resume live in the loop."""

    distribution: ClassVar[str]  # of the framework, whose version a checkpoint names

    @property
    def model(self) -> Model:
        """What is trained."""

    @property
    def processes(self) -> ProcessGroup:
        """Those of the run."""

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update.

        Args:
            pixels: float32 [n, 3, r, r], the share of this process.
            tokens: int64 [n, context].
            learning_rate: of this step.
        """

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on; every process calls it, since the weights may be spread over them.

        ``weights/NAME``, ``first_moment/NAME`` and ``second_moment/NAME`` under the canonical names, shapes and axis
        order, and the int64 scalar ``updates``; with a moving average ``average/NAME`` of the trained parameters; with
        fp16 the scalars ``loss_scale`` (float32) and ``steps_since_overflow`` (int64).
        """

    def average(self) -> Weights | None:
        """The exponential moving average of the weights, complete as `Model.export` gives them; None without one.

        Every process calls it.
        """

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave, from this framework or another: all of it, or on any fault nothing.

        Raises:
            CheckpointError: listing every fault.
        """


class TrainerClass(Protocol):
    """The class of a backend's trainers."""

    optional_keys: Collection[str]  # those of the recipe's section training that not every framework can follow

    def __call__(self, model: Any, recipe: Recipe, processes: Any = ...) -> Trainer:
        """A trainer of ``model``, which is trained in place, over the processes of the run; by default this one alone.

        Raises:
            ClipError: the recipe asks for what this model, framework or machine cannot do.
        """
