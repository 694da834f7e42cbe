"""One optimiser step of CLIP in Paddle. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/torch/training.py and backends/nnabla/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.

The update is written out, since Paddle's own optimiser keeps its moments under names that change from one instance to
the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from backends.base import StepResult
from backends.paddle.model import CLIP, to_array
from backends.paddle.ranks import Ranks
from clip_core.errors import ClipError
from clip_core.naming import parameters
from clip_core.training.recipe import Loss, Recipe
from clip_core.training.rules import check_trainable, chunks, clip_factor, log_scale_bounds, rules
from clip_core.training.state import check_state

AUTOCAST = {"fp32": None, "bf16": "bfloat16"}


class Trainer:
    """Adam or AdamW over the recipe's loss; follows `backends.base.Trainer`.

    Args:
        model: float32 weights; they are trained in place.
        recipe: its sections ``optimizer``, ``loss`` and ``training`` are followed.
        ranks: the processes of the run; by default this one alone.

    Raises:
        ClipError: the recipe asks for what this model, framework or machine cannot do.
    """

    def __init__(self, model: CLIP, recipe: Recipe, ranks: Ranks | None = None) -> None:
        if model.dtype != "float32":
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        check_trainable(model.architecture, recipe)
        self.model, self.ranks = model, ranks or Ranks()
        self.recipe = recipe
        self.autocast = AUTOCAST[recipe.training.precision]
        if self.autocast is not None and paddle.get_device() == "cpu":
            raise ClipError("Paddle has no bfloat16 kernels for the CPU; train with precision fp32, or on a GPU.")
        self.rules = rules(model.architecture, recipe)
        tensors = dict(model.named_parameters())
        self.trained = {name: tensors[name] for name in self.rules}
        # Paddle stores linear weights [in, out].
        self.transposed = {parameter.name for parameter in parameters(model.architecture) if parameter.kind == "linear"}
        self.updates = 0
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        self.model.clear_gradients()
        parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
        whole = len(parts) == 1
        with paddle.set_grad_enabled(whole):
            pairs = [self._encode(pixels[part], tokens[part]) for part in parts]
        loss, gradients = self._loss(*(paddle.concat(side).detach() for side in zip(*pairs)))
        for part, pair in zip(parts, pairs):
            for features, gradient in zip(pair if whole else self._encode(pixels[part], tokens[part]), gradients):
                if not features.stop_gradient:  # not of a frozen tower
                    features.backward(gradient[part])
        with paddle.no_grad():
            result = self._update(loss, learning_rate)
        self.model.eval()
        return result

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Float32 features [n, d] of both towers; a frozen tower keeps nothing for a gradient."""
        frozen, keep = self.recipe.optimizer.frozen, paddle.is_grad_enabled()
        with paddle.amp.auto_cast(enable=self.autocast is not None, dtype=self.autocast or "float16"):
            with paddle.set_grad_enabled(keep and "image" not in frozen):
                image = self.model.encode_image(pixels)
            with paddle.set_grad_enabled(keep and "text" not in frozen):
                text = self.model.encode_text(tokens)
        return image.astype("float32"), text.astype("float32")

    def _loss(self, image: paddle.Tensor, text: paddle.Tensor) -> tuple[paddle.Tensor, list[paddle.Tensor]]:
        """This process's share of the loss, and the gradient of the whole loss on its features [n, d] of both towers.

        The scale and the bias get their share of the gradient.
        """
        own = [image, text]
        first = self.ranks.rank * len(image)
        everyone = own if self.ranks.size == 1 else [self.ranks.gather(x) for x in own]
        for x in (*own, *everyone):
            x.stop_gradient = False
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        loss = contrastive_loss(self.recipe.loss, own, everyone, first, scale, bias)
        loss.backward()
        gradients = [gradient_of(x) for x in own]
        if everyone is not own:
            # As keys, these features also stand in the losses of the other processes.
            keys = [gradient_of(x) for x in everyone]
            self.ranks.sum(keys)
            gradients = [gradient + key[first : first + len(image)] for gradient, key in zip(gradients, keys)]
        return loss.detach(), gradients

    def _update(self, loss: paddle.Tensor, learning_rate: float) -> StepResult:
        gradients = {name: tensor.grad for name, tensor in self.trained.items()}
        self.ranks.sum([loss, *gradients.values()])
        norm = float(paddle.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())
        result = StepResult(float(loss), float(self.model.logit_scale.exp()), norm)
        optimizer = self.recipe.optimizer
        factor = clip_factor(norm, optimizer.gradient_clip)
        self.updates += 1
        beta1, beta2 = optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        for name, rule in self.rules.items():
            weights, gradient, rate = self.trained[name], gradients[name] * factor, learning_rate * rule.rate
            if optimizer.name == "adam":
                gradient = gradient + rule.decay * weights
            first = self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            second = self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient.square()
            kept = 1 - rate * rule.decay if optimizer.name == "adamw" else 1.0
            change = first / ((second / correction2).sqrt() + optimizer.epsilon)
            weights.set_value(kept * weights - (rate / correction1) * change)
        self.model.logit_scale.set_value(self.model.logit_scale.clip(*log_scale_bounds(optimizer)))
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`backends.base.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for name in self.trained:
            for kind, moments in (("first", self.first), ("second", self.second)):
                state[f"{kind}_moment/{name}"] = self._reordered(name, to_array(moments[name]))
        return state | {"updates": np.array(self.updates, np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave: all of it, or on any fault nothing.

        Raises:
            CheckpointError: listing every fault.
        """
        check_state(self.model.architecture, self.rules, state)
        self.model.load({name: state[f"weights/{name}"] for name in self.model.export()})
        self.updates = int(state["updates"])
        self._set_moments(state)

    def _set_moments(self, state: Mapping[str, np.ndarray]) -> None:
        def moments(kind: str) -> dict[str, paddle.Tensor]:
            found = {}
            for name, tensor in self.trained.items():
                array = state.get(f"{kind}/{name}")
                value = None if array is None else paddle.to_tensor(self._reordered(name, array))
                found[name] = paddle.zeros_like(tensor) if value is None else value
            return found

        self.first, self.second = moments("first_moment"), moments("second_moment")

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
) -> paddle.Tensor:
    """This process's share of the loss over all N pairs; the shares of all processes add up to it.

    Args:
        own: image and text features [n, d] of this process.
        everyone: those of all processes [N, d], in the order of their ranks.
        first: where this process's own begin among them.
        scale: the factor of the cosines.
        bias: what is added to the logits, for the sigmoid loss.

    Source: figure 3 of the CLIP paper (softmax); algorithm 1 of "Sigmoid loss for language image pre-training".
    """
    (image, text), (images, texts) = ([F.normalize(x, axis=-1) for x in pair] for pair in (own, everyone))
    labels = paddle.arange(first, first + len(image))
    by_image = scale * paddle.matmul(image, texts, transpose_y=True)  # [n, N]
    if loss.kind == "sigmoid":
        signs = 2 * F.one_hot(labels, len(texts)) - 1
        return -F.log_sigmoid(signs * (by_image + bias)).sum() / len(texts)
    by_text = scale * paddle.matmul(text, images, transpose_y=True)
    total = F.cross_entropy(by_image, labels, reduction="sum") + F.cross_entropy(by_text, labels, reduction="sum")
    return total / len(texts) / (2 if loss.reduction == "mean" else 1)
