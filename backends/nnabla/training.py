"""One optimiser step of CLIP in NNabla. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/torch/training.py and backends/paddle/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.

The update is written out: NNabla's own AdamW puts epsilon beside the uncorrected second moment and scales the decay by
the initial learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.base import StepResult
from backends.nnabla.functions import linear
from backends.nnabla.model import CLIP, normalize
from backends.nnabla.ranks import Ranks
from clip_core.errors import ClipError
from clip_core.training.recipe import Loss, Recipe
from clip_core.training.rules import check_trainable, chunks, clip_factor, log_scale_bounds, rules
from clip_core.training.state import check_state

BLOCK = 1 << 16  # elements; a block of weights, gradient and moments stays in a core's cache


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
        if recipe.training.precision != "fp32":
            raise ClipError(f"NNabla trains with precision fp32, not {recipe.training.precision}; change the recipe.")
        check_trainable(model.architecture, recipe)
        self.model, self.ranks = model, ranks or Ranks()
        self.recipe = recipe
        self.rules = rules(model.architecture, recipe)
        variables = dict(model.named_parameters())
        self.trained = {name: variables[name] for name in self.rules}
        self.updates = 0
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        for variable in self.trained.values():
            variable.grad.zero()
        parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
        whole = len(parts) == 1
        with nullcontext() if whole else nn.no_grad():
            pairs = [self._encode(pixels[part], tokens[part]) for part in parts]
        loss, gradients = self._loss(*(np.concatenate([x.d for x in side]) for side in zip(*pairs)))
        towers = ("image", "text")
        for part, pair in zip(parts, pairs):
            pair = pair if whole else self._encode(pixels[part], tokens[part])
            for tower, features, gradient in zip(towers, pair, gradients):
                if tower not in self.recipe.optimizer.frozen:
                    features.backward(gradient[part], clear_buffer=True)
        result = self._update(loss, learning_rate)
        self.model.eval()
        return result

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[nn.Variable, nn.Variable]:
        """Features [n, d] of both towers; a frozen tower keeps nothing for a gradient."""
        frozen = self.recipe.optimizer.frozen
        with nn.auto_forward():
            with nn.no_grad() if "image" in frozen else nullcontext():
                image = self.model.encode_image(pixels)
            with nn.no_grad() if "text" in frozen else nullcontext():
                text = self.model.encode_text(tokens)
        return image, text

    def _loss(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """This process's share of the loss, and the gradient of the whole loss on its features [n, d] of both towers.

        The scale and the bias get their share of the gradient.
        """
        own = [nn.Variable.from_numpy_array(x, need_grad=True) for x in (image, text)]
        first = self.ranks.rank * len(image)
        everyone = own
        if self.ranks.size > 1:
            everyone = [nn.Variable.from_numpy_array(self.ranks.gather(x), need_grad=True) for x in (image, text)]
        for x in {*own, *everyone}:
            x.grad.zero()
        with nn.auto_forward():
            scale, bias = F.exp(self.model.logit_scale), self.model.logit_bias
            loss = contrastive_loss(self.recipe.loss, own, everyone, first, scale, bias)
        share = np.array(loss.d)  # the backward pass frees it
        loss.backward(clear_buffer=True)
        gradients = [x.g for x in own]
        if everyone is not own:
            # As keys, these features also stand in the losses of the other processes.
            keys = [x.g for x in everyone]
            self.ranks.sum(keys)
            gradients = [gradient + key[first : first + len(image)] for gradient, key in zip(gradients, keys)]
        return share, gradients

    def _update(self, loss: np.ndarray, learning_rate: float) -> StepResult:
        gradients = {name: variable.grad.get_data("rw") for name, variable in self.trained.items()}
        self.ranks.sum([loss, *gradients.values()])
        norm = float(np.sqrt(sum(np.vdot(gradient, gradient) for gradient in gradients.values())))
        log_scale = self.model.logit_scale.data.get_data("rw")
        result = StepResult(float(loss), float(np.exp(log_scale)), norm)
        optimizer = self.recipe.optimizer
        factor = clip_factor(norm, optimizer.gradient_clip)
        self.updates += 1
        beta1, beta2 = optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        for name, rule in self.rules.items():
            rate = learning_rate * rule.rate
            arrays = (self.trained[name].data.get_data("rw"), gradients[name], self.first[name], self.second[name])
            flat = [array.reshape(-1) for array in arrays]
            for start in range(0, flat[0].size, BLOCK):
                weights, gradient, first, second = (array[start : start + BLOCK] for array in flat)
                gradient *= factor
                if optimizer.name == "adam":
                    gradient += rule.decay * weights
                else:
                    weights *= 1 - rate * rule.decay
                first *= beta1
                first += (1 - beta1) * gradient
                second *= beta2
                second += (1 - beta2) * gradient * gradient
                weights -= rate / correction1 * first / (np.sqrt(second / correction2) + optimizer.epsilon)
        np.clip(log_scale, *log_scale_bounds(optimizer), out=log_scale)
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`backends.base.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for name in self.trained:
            state[f"first_moment/{name}"] = self.first[name].copy()
            state[f"second_moment/{name}"] = self.second[name].copy()
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
        def moments(kind: str) -> dict[str, np.ndarray]:
            return {
                name: np.array(state.get(f"{kind}/{name}", np.zeros(variable.shape, np.float32)))
                for name, variable in self.trained.items()
            }

        self.first, self.second = moments("first_moment"), moments("second_moment")


def contrastive_loss(
    loss: Loss,
    own: Sequence[nn.Variable],
    everyone: Sequence[nn.Variable],
    first: int,
    scale: nn.Variable,
    bias: nn.Variable | None,
) -> nn.Variable:
    """This process's share of the loss over all N pairs; the shares of all processes add up to it.

    Args:
        own: image and text features [n, d] of this process.
        everyone: those of all processes [N, d], in the order of their ranks.
        first: where this process's own begin among them.
        scale: the factor of the cosines.
        bias: what is added to the logits, for the sigmoid loss.

    Source: figure 3 of the CLIP paper (softmax); algorithm 1 of "Sigmoid loss for language image pre-training".
    """
    (image, text), (images, texts) = ([normalize(x) for x in pair] for pair in (own, everyone))
    count, scale = texts.shape[0], F.reshape(scale, (1, 1))
    labels = np.arange(first, first + image.shape[0])[:, None]  # [n, 1]
    by_image = scale * linear(image, texts)  # [n, N]
    if loss.kind == "sigmoid":
        signs = nn.Variable.from_numpy_array(np.where(labels == np.arange(count), 1.0, -1.0).astype(np.float32))
        return F.sum(F.log_sigmoid(signs * (by_image + F.reshape(bias, (1, 1))))) * (-1 / count)
    by_text = scale * linear(text, images)
    targets = nn.Variable.from_numpy_array(labels)
    total = F.sum(F.softmax_cross_entropy(by_image, targets)) + F.sum(F.softmax_cross_entropy(by_text, targets))
    return total * (1 / count / (2 if loss.reduction == "mean" else 1))
