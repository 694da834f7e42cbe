"""One optimiser step of CLIP in Paddle. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/torch/training.py and backends/nnabla/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.

The update is written out, since Paddle's own optimiser keeps its moments under names that change from one instance to
the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import ClassVar

import numpy as np
import paddle
import paddle.nn.functional as F

from backends.paddle.layers import Block, PatchDropout, normalize
from backends.paddle.model import CLIP
from backends.paddle.process_group import ProcessGroup
from backends.paddle.tensors import to_array
from clip_core.backend import StepResult
from clip_core.errors import ClipError
from clip_core.naming import Weights, parameters
from clip_core.training.parameter_groups import parameter_groups
from clip_core.training.recipe import Loss, Recipe
from clip_core.training.scaling import LossScaling
from clip_core.training.state import check_state
from clip_core.training.step import (
    SCALARS,
    TOWERS,
    Noisy,
    chunks,
    clear_noise,
    clip_factor,
    log_scale_bounds,
    set_noise,
)
from clip_core.training.trainable import check_trainable

AUTOCAST = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


class Trainer:
    """Adam or AdamW over the recipe's loss; follows `clip_core.backend.Trainer`.

    Args:
        model: float32 weights; they are trained in place.
        recipe: its sections ``optimizer``, ``loss`` and ``training`` are followed.
        processes: those of the run; by default this one alone.

    Raises:
        ClipError: the recipe asks for what this model, framework or machine cannot do.
    """

    distribution: ClassVar[str] = "paddlepaddle"
    optional_keys: ClassVar[Collection[str]] = ()

    def __init__(self, model: CLIP, recipe: Recipe, processes: ProcessGroup | None = None) -> None:
        if model.dtype != "float32":
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        check_trainable(model.architecture, recipe, self.optional_keys)
        self.model, self.processes = model, processes or ProcessGroup()
        self.recipe = recipe
        model.recompute_blocks(recipe.training.gradient_checkpointing)
        self.autocast = AUTOCAST[recipe.training.precision]
        if self.autocast is not None and paddle.get_device() == "cpu":
            raise ClipError(
                f"Paddle has no {self.autocast} kernels for the CPU; train with precision fp32, or on a GPU."
            )
        self.scaling = LossScaling() if recipe.training.precision == "fp16" else None
        self.groups = parameter_groups(model.architecture, recipe)
        tensors = dict(model.named_parameters())
        self.trained = {name: tensors[name] for name in self.groups}
        # Paddle stores linear weights [in, out].
        self.transposed = {parameter.name for parameter in parameters(model.architecture) if parameter.kind == "linear"}
        image = [module for module in model.visual.sublayers() if isinstance(module, Block)]
        text = [module for module in model.sublayers() if isinstance(module, Block) and module not in image]
        patches = [module for module in model.visual.sublayers() if isinstance(module, PatchDropout)]
        self.noisy: dict[str, Sequence[Noisy]] = {"image": image, "text": text, "patches": patches}
        self._begin({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`clip_core.backend.Trainer.step`)."""
        self.model.train()
        self.model.clear_gradients()
        parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
        whole = len(parts) == 1
        with paddle.set_grad_enabled(whole):
            pairs = [self._encode(pixels, tokens, part) for part in parts]
        sums, gradients = self._loss(*(paddle.concat(side).detach() for side in zip(*pairs)))
        for part, pair in zip(parts, pairs):
            pair = pair if whole else self._encode(pixels, tokens, part)
            for tower, features, gradient in zip(TOWERS, pair, gradients):
                if tower not in self.recipe.optimizer.frozen:
                    features.backward(self.loss_scale * gradient[part])
        with paddle.no_grad():
            result = self._update(sums, len(pixels) * self.processes.size, learning_rate)
        self.model.eval()
        clear_noise(self.noisy)
        return result

    @property
    def loss_scale(self) -> float:
        """What the gradients of the towers are multiplied by in the backward pass."""
        return 1.0 if self.scaling is None else self.scaling.scale

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray, part: slice) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Float32 features [n, d] of both towers for a part of the batch; a frozen one keeps nothing for gradients."""
        set_noise(self.noisy, self.recipe, self.updates, self.processes.rank * len(pixels) + part.start)
        frozen, keep = self.recipe.optimizer.frozen, paddle.is_grad_enabled()
        with paddle.amp.auto_cast(enable=self.autocast is not None, dtype=self.autocast or "float16"):
            with paddle.set_grad_enabled(keep and "image" not in frozen):
                image = self.model.encode_image(pixels[part])
            with paddle.set_grad_enabled(keep and "text" not in frozen):
                text = self.model.encode_text(tokens[part])
        return image.astype("float32"), text.astype("float32")

    def _loss(self, image: paddle.Tensor, text: paddle.Tensor) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
        """This process's share of what is summed over all, and the gradient of the whole loss on its features [n, d].

        Summed are the loss and the pictures whose own text is the nearest, and is among the five nearest. The scale and
        the bias get their share of the gradient.
        """
        own = [image, text]
        first = self.processes.rank * len(image)
        everyone = own if self.processes.size == 1 else [self.processes.gather(x) for x in own]
        for x in (*own, *everyone):
            x.stop_gradient = False
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        loss, logits = contrastive_loss(self.recipe.loss, own, everyone, first, scale, bias)
        loss.backward()
        gradients = [gradient_of(x) for x in own]
        if everyone is not own:
            # As keys, these features also stand in the losses of the other processes.
            keys = [gradient_of(x) for x in everyone]
            self.processes.sum(keys)
            gradients = [gradient + key[first : first + len(image)] for gradient, key in zip(gradients, keys)]
        return paddle.stack([loss.detach(), *own_text_among_nearest(logits.detach(), first)]), gradients

    def _update(self, sums: paddle.Tensor, pairs: int, learning_rate: float) -> StepResult:
        """Sum over all processes, then clip and update; a loss or gradients that are not finite update nothing."""
        gradients = {name: tensor.grad for name, tensor in self.trained.items()}
        self.processes.sum([sums, *gradients.values()])
        loss_scale = self.loss_scale
        if self.scaling is not None:
            gradients |= {name: gradients[name] / loss_scale for name in gradients if name not in SCALARS}
        norm = float(paddle.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())
        loss, top1, top5 = sums.tolist()
        # A loss that is not finite overflowed in the forward pass, which no loss scale changes.
        skipped = self.scaling is not None and isfinite(loss) and self.scaling.adapt(overflowed=not isfinite(norm))
        logit_scale = float(self.model.logit_scale.exp())
        result = StepResult(loss, logit_scale, norm, top1 / pairs, top5 / pairs, loss_scale, skipped)
        if not (isfinite(loss) and isfinite(norm)):
            return result
        optimizer = self.recipe.optimizer
        factor = clip_factor(norm, optimizer.gradient_clip)
        self.updates += 1
        beta1, beta2 = optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        epsilon = paddle.full([], optimizer.epsilon)
        for name, group in self.groups.items():
            # In place, since every fresh tensor of this size costs as much as the arithmetic.
            weights, gradient, rate = self.trained[name], gradients[name].scale_(factor), learning_rate * group.rate
            if optimizer.name == "adam":
                gradient.add_(group.decay * weights)
            else:
                weights.scale_(1 - rate * group.decay)
            first = self.first[name].scale_(beta1).add_((1 - beta1) * gradient)
            second = self.second[name].scale_(beta2).add_(gradient.square_().scale_(1 - beta2))
            change = first / (second / correction2).sqrt_().add_(epsilon)
            weights.subtract_(change.scale_(rate / correction1))
        self.model.logit_scale.set_value(self.model.logit_scale.clip(*log_scale_bounds(optimizer)))
        if optimizer.ema_decay is not None:
            for name, average in self.averages.items():
                average.add_((self.trained[name] - average).scale_(1 - optimizer.ema_decay))
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`clip_core.backend.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        kinds = {"first_moment": self.first, "second_moment": self.second, "average": self.averages}
        for kind, tensors in kinds.items():
            for name, tensor in tensors.items():
                state[f"{kind}/{name}"] = self._reordered(name, to_array(tensor))
        scaling = {} if self.scaling is None else self.scaling.state()
        return state | scaling | {"updates": np.array(self.updates, np.int64)}

    def average(self) -> Weights | None:
        """The moving average of the weights, complete (`clip_core.backend.Trainer.average`)."""
        averages = {name: self._reordered(name, to_array(tensor)) for name, tensor in self.averages.items()}
        return self.model.export() | averages if averages else None

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave: all of it, or on any fault nothing.

        Raises:
            CheckpointError: listing every fault.
        """
        check_state(self.model.architecture, self.groups, state, bool(self.averages), self.scaling is not None)
        self.model.load({name: state[f"weights/{name}"] for name in self.model.export()})
        self._begin(state)

    def _begin(self, state: Mapping[str, np.ndarray]) -> None:
        """Set all but the weights to ``state``, or without one to where a run begins."""
        self.updates = int(state.get("updates", 0))
        if self.scaling is not None and state:
            self.scaling = LossScaling.from_state(state)

        def tensor(kind: str, name: str, otherwise: paddle.Tensor) -> paddle.Tensor:
            array = state.get(f"{kind}/{name}")
            return otherwise if array is None else paddle.to_tensor(self._reordered(name, array))

        trained = self.trained.items()
        self.first = {name: tensor("first_moment", name, paddle.zeros_like(weights)) for name, weights in trained}
        self.second = {name: tensor("second_moment", name, paddle.zeros_like(weights)) for name, weights in trained}
        averaged = [] if self.recipe.optimizer.ema_decay is None else trained
        self.averages = {name: tensor("average", name, weights.detach().clone()) for name, weights in averaged}

    def _reordered(self, name: str, array: np.ndarray) -> np.ndarray:
        """A copy in the other axis order: canonical from Paddle's, or Paddle's from canonical."""
        return np.array(array.T if name in self.transposed else array, order="C")


def gradient_of(x: paddle.Tensor) -> paddle.Tensor:
    """The gradient that arrived at ``x``: none arrives at what the loss does not look at."""
    return paddle.zeros_like(x) if x.grad is None else x.grad


def contrastive_loss(
    loss: Loss,
    own: Sequence[paddle.Tensor],
    everyone: Sequence[paddle.Tensor],
    first: int,
    scale: paddle.Tensor,
    bias: paddle.Tensor | None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """This process's share of the loss over all N pairs, and the logits [n, N] of its pictures, without bias.

    The shares of all processes add up to the loss.

    Args:
        own: image and text features [n, d] of this process.
        everyone: those of all processes [N, d], in the order of their ranks.
        first: where this process's own begin among them.
        scale: the factor of the cosines.
        bias: what is added to the logits, for the sigmoid loss.

    Source: figure 3 of the CLIP paper (softmax); algorithm 1 of "Sigmoid loss for language image pre-training".
    """
    (image, text), (images, texts) = ([normalize(x) for x in pair] for pair in (own, everyone))
    labels = paddle.arange(first, first + len(image))
    by_image = scale * paddle.matmul(image, texts, transpose_y=True)  # [n, N]
    if loss.kind == "sigmoid":
        signs = 2 * F.one_hot(labels, len(texts)) - 1
        return -F.log_sigmoid(signs * (by_image + bias)).sum() / len(texts), by_image
    by_text = scale * paddle.matmul(text, images, transpose_y=True)
    # Paddle's own cross entropy is never above 64 on a CPU, and finite even for NaN.
    total = sum((x.logsumexp(axis=1) - x.diagonal(first)).sum() for x in (by_image, by_text))
    return total / len(texts) / (2 if loss.reduction == "mean" else 1), by_image


def own_text_among_nearest(logits: paddle.Tensor, first: int) -> list[paddle.Tensor]:
    """How many pictures have their own text as the nearest, and among the five nearest; a tie counts against it.

    Args:
        logits: [n, N] of this process's pictures; the own text of the first is at ``first``, and so on.
    """
    farther = (logits < logits.diagonal(first).unsqueeze(1)).sum(axis=1)
    return [(farther >= logits.shape[1] - k).sum().astype(logits.dtype) for k in (1, 5)]
