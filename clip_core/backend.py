"""What every backend offers: the protocols that the API, the commands and the training loop are written against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clip_core.architecture import Architecture
from clip_core.naming import Weights
from clip_core.text.tokenizer import Tokenizer

Tensor = Any  # the framework's own tensor type
Observe = Callable[[str, Tensor], None]  # told the name and the value of what a forward pass computes


def ignore(name: str, value: Tensor) -> None:
    """The observer of a forward pass that nobody watches."""


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

    def encode_image(self, image: Tensor, observe: Observe = ...) -> Tensor:
        """Pixels float [n, 3, r, r] -> image features [n, d], not normalised.

        Raises:
            ImageError: the pixels have another shape or type; of an array also: values that no preprocessing gives.
        """

    def encode_text(self, text: Tensor, observe: Observe = ...) -> Tensor:
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


class ProcessGroup(Protocol):
    """The processes of a training run, each with a share of every batch."""

    rank: int
    size: int
    device: str | None  # that the model of this process belongs on; None for the framework's current one

    def gather(self, x: Tensor) -> Tensor:
        """[n, d] of every process -> [size * n, d] in the order of their ranks, without gradient."""

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def numbers(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""

    def peak_memory(self) -> int | None:
        """Bytes of the device's own memory that were in use at most; None on a CPU, or where nobody counts."""

    def close(self) -> None:
        """Leave the other processes."""


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

    model: Model
    ranks: ProcessGroup

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
