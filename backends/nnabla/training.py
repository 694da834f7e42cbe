"""One optimiser step of CLIP in NNabla. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/torch/training.py and backends/paddle/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.

NNabla's own AdamW puts epsilon beside the uncorrected second moment and scales the decay by the initial learning rate.
On the CPU the update is written out; on a GPU, NNabla's solvers are given what makes them compute the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import isfinite, sqrt
from typing import ClassVar

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from nnabla.ext_utils import get_extension_context
from nnabla.solver import SolverState

from backends.nnabla.functions import linear, on_cpu
from backends.nnabla.layers import Block, PatchDropout, normalize
from backends.nnabla.model import CLIP
from backends.nnabla.module import SWITCHES, plain_errors
from backends.nnabla.process_group import ProcessGroup
from backends.nnabla.tensors import to_array, to_tensor
from clip_core.backend import StepResult
from clip_core.errors import ClipError
from clip_core.naming import Weights
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

BLOCK = 1 << 15  # elements; a block of weights, gradient and moments stays in a core's cache


class Trainer:
    """Adam or AdamW over the recipe's loss; follows `clip_core.backend.Trainer`.

    Args:
        model: float32 weights; they are trained in place.
        recipe: its sections ``optimizer``, ``loss`` and ``training`` are followed.
        processes: those of the run; by default this one alone.

    Raises:
        ClipError: the recipe asks for what this model, framework or machine cannot do.
    """

    distribution: ClassVar[str] = "nnabla"
    optional_keys: ClassVar[Collection[str]] = ()

    def __init__(self, model: CLIP, recipe: Recipe, processes: ProcessGroup | None = None) -> None:
        self.scaling = LossScaling() if recipe.training.precision == "fp16" else None
        self.context = model.context or nn.get_current_context()  # of all but the towers in fp16
        self.tower_context = tower_context(self.context, recipe.training.precision)
        check_trainable(model.architecture, recipe, self.optional_keys)
        self.model, self.processes = model, processes or ProcessGroup()
        self.recipe = recipe
        model.recompute_blocks(recipe.training.gradient_checkpointing)
        self.groups = parameter_groups(model.architecture, recipe)
        variables = dict(model.named_parameters())
        self.trained = {name: variables[name] for name in self.groups}
        image = [module for module in model.visual.modules() if isinstance(module, Block)]
        text = [module for module in model.modules() if isinstance(module, Block) and module not in image]
        patches = [module for module in model.visual.modules() if isinstance(module, PatchDropout)]
        self.noisy: dict[str, Sequence[Noisy]] = {"image": image, "text": text, "patches": patches}
        self._begin({})

    @np.errstate(over="ignore", invalid="ignore")  # the norm of the gradients tells
    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`clip_core.backend.Trainer.step`)."""
        with self._on_device():
            self.model.train()
            for variable in self.trained.values():
                variable.grad.zero()
            parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
            whole = len(parts) == 1
            with nullcontext() if whole else nn.no_grad():
                pairs = [self._encode(pixels, tokens, part) for part in parts]
            sums, gradients = self._loss(*(np.concatenate([to_array(x) for x in side]) for side in zip(*pairs)))
            for part, pair in zip(parts, pairs):
                pair = pair if whole else self._encode(pixels, tokens, part)
                for tower, features, gradient in zip(TOWERS, pair, gradients):
                    if tower not in self.recipe.optimizer.frozen:
                        features.backward(self.loss_scale * gradient[part], clear_buffer=True)
            result = self._update(sums, len(pixels) * self.processes.size, learning_rate)
            self.model.eval()
            clear_noise(self.noisy)
            return result

    @property
    def loss_scale(self) -> float:
        """What the gradients of the towers are multiplied by in the backward pass."""
        return 1.0 if self.scaling is None else self.scaling.scale

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The towers in their context, and everything else in float32; no other thread sees the model meanwhile."""
        with SWITCHES, plain_errors(), nn.context_scope(self.context):
            before, self.model.context = self.model.context, self.tower_context
            try:
                yield
            finally:
                self.model.context = before

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray, part: slice) -> tuple[nn.Variable, nn.Variable]:
        """Features [n, d] of both towers for a part of the batch; a frozen one keeps nothing for gradients."""
        set_noise(self.noisy, self.recipe, self.updates, self.processes.rank * len(pixels) + part.start)
        frozen = self.recipe.optimizer.frozen
        with nn.auto_forward():
            with nn.no_grad() if "image" in frozen else nullcontext():
                image = self.model.encode_image(pixels[part])
            with nn.no_grad() if "text" in frozen else nullcontext():
                text = self.model.encode_text(tokens[part])
        return image, text

    def _loss(self, image: np.ndarray, text: np.ndarray) -> tuple[nn.NdArray, list[np.ndarray]]:
        """This process's share of what is summed over all, and the gradient of the whole loss on its features [n, d].

        Summed are the loss and the pictures whose own text is the nearest, and is among the five nearest. The scale and
        the bias get their share of the gradient.
        """
        own = [nn.Variable.from_numpy_array(x, need_grad=True) for x in (image, text)]
        first = self.processes.rank * len(image)
        everyone = own
        if self.processes.size > 1:
            gathered = [self.processes.gather(x.data) for x in own]
            everyone = [nn.Variable.from_numpy_array(x.data, need_grad=True) for x in gathered]
        for x in {*own, *everyone}:
            x.grad.zero()
        with nn.auto_forward():
            scale, bias = F.exp(self.model.logit_scale), self.model.logit_bias
            loss, logits = contrastive_loss(self.recipe.loss, own, everyone, first, scale, bias)
        # The backward pass frees both.
        sums = nn.NdArray.from_numpy_array(np.array([loss.d, *own_text_among_nearest(logits.d, first)], np.float32))
        loss.backward(clear_buffer=True)
        gradients = [x.g for x in own]
        if everyone is not own:
            # As keys, these features also stand in the losses of the other processes.
            self.processes.sum([x.grad for x in everyone])
            gradients = [gradient + x.g[first : first + len(image)] for gradient, x in zip(gradients, everyone)]
        return sums, gradients

    def _update(self, sums: nn.NdArray, pairs: int, learning_rate: float) -> StepResult:
        """Sum over all processes, then clip and update; a loss or gradients that are not finite update nothing."""
        gradients = {name: variable.grad for name, variable in self.trained.items()}
        self.processes.sum([sums, *gradients.values()])
        loss_scale = self.loss_scale
        if self.scaling is not None:
            for name in gradients.keys() - set(SCALARS):
                gradients[name] /= loss_scale
        norm = sqrt(sum(squared_norm(gradient) for gradient in gradients.values()))
        loss, top1, top5 = sums.data.tolist()
        # A loss that is not finite overflowed in the forward pass, which no loss scale changes.
        skipped = self.scaling is not None and isfinite(loss) and self.scaling.adapt(overflowed=not isfinite(norm))
        logit_scale = float(np.exp(self.model.logit_scale.d))
        result = StepResult(loss, logit_scale, norm, top1 / pairs, top5 / pairs, loss_scale, skipped)
        if not (isfinite(loss) and isfinite(norm)):
            return result
        self.updates += 1
        update = self._update_on_cpu if on_cpu() else self._update_on_gpu
        update(clip_factor(norm, self.recipe.optimizer.gradient_clip), learning_rate)
        return result

    def _update_on_cpu(self, factor: float, learning_rate: float) -> None:
        """Adam or AdamW as PyTorch defines them, of the gradients times ``factor``."""
        optimizer = self.recipe.optimizer
        beta1, beta2 = optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        newest = 1 - (optimizer.ema_decay or 0.0)  # the share of these weights in their average
        for name, group in self.groups.items():
            rate = learning_rate * group.rate
            variable = self.trained[name]
            tensors = [variable.data, variable.grad, self.first[name].data, self.second[name].data]
            if self.averages:
                tensors.append(self.averages[name].data)
            flat = [tensor.get_data("rw").reshape(-1) for tensor in tensors]
            for start in range(0, flat[0].size, BLOCK):
                weights, gradient, first, second, *averages = (array[start : start + BLOCK] for array in flat)
                gradient *= factor
                if optimizer.name == "adam":
                    gradient += group.decay * weights
                else:
                    weights *= 1 - rate * group.decay
                first *= beta1
                first += (1 - beta1) * gradient
                second *= beta2
                second += (1 - beta2) * gradient * gradient
                weights -= rate / correction1 * first / (np.sqrt(second / correction2) + optimizer.epsilon)
                if name == "logit_scale":
                    np.clip(weights, *log_scale_bounds(optimizer), out=weights)
                for average in averages:
                    average += newest * (weights - average)

    def _update_on_gpu(self, factor: float, learning_rate: float) -> None:
        """The same by NNabla's solvers, a kernel for each parameter; weights and moments stay on the device.

        A solver lives for one step, with its epsilon corrected, and with a rate that is its initial one.
        """
        optimizer = self.recipe.optimizer
        epsilon = optimizer.epsilon * sqrt(1 - optimizer.betas[1] ** self.updates)
        for group in set(self.groups.values()):
            names = [name for name, own in self.groups.items() if own == group]
            rate = learning_rate * group.rate
            if optimizer.name == "adam":
                solver = S.Adam(rate, *optimizer.betas, epsilon)
            else:
                solver = S.AdamW(rate, *optimizer.betas, epsilon, wd=rate * group.decay)
            solver.set_parameters({name: self.trained[name] for name in names})
            solver.set_states({name: self._solver_state(name) for name in names})
            solver.scale_grad(factor)
            if optimizer.name == "adam":
                solver.weight_decay(group.decay)
            solver.update()
        log_scale = self.model.logit_scale.data.get_data("rw")
        np.clip(log_scale, *log_scale_bounds(optimizer), out=log_scale)
        newest = 1 - (optimizer.ema_decay or 0.0)
        for name, average in self.averages.items():
            average.data += newest * (self.trained[name].data - average.data)

    def _solver_state(self, name: str) -> SolverState:
        """The moments, which a solver moves in place, and the number of updates before this one."""
        state = SolverState()
        state.pstate = {"mean": self.first[name], "var": self.second[name]}
        state.t = self.updates - 1
        return state

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`clip_core.backend.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        kinds = {"first_moment": self.first, "second_moment": self.second, "average": self.averages}
        for kind, tensors in kinds.items():
            for name, tensor in tensors.items():
                state[f"{kind}/{name}"] = to_array(tensor)
        scaling = {} if self.scaling is None else self.scaling.state()
        return state | scaling | {"updates": np.array(self.updates, np.int64)}

    def average(self) -> Weights | None:
        """The moving average of the weights, complete (`clip_core.backend.Trainer.average`)."""
        averages = {name: to_array(tensor) for name, tensor in self.averages.items()}
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

        def tensor(name: str, otherwise: np.ndarray) -> nn.Variable:
            return to_tensor(state.get(name, otherwise))

        trained = {name: variable.d for name, variable in self.trained.items()}.items()
        self.first = {name: tensor(f"first_moment/{name}", np.zeros_like(weights)) for name, weights in trained}
        self.second = {name: tensor(f"second_moment/{name}", np.zeros_like(weights)) for name, weights in trained}
        averaged = [] if self.recipe.optimizer.ema_decay is None else trained
        self.averages = {name: tensor(f"average/{name}", weights) for name, weights in averaged}


def tower_context(context: nn.Context, precision: str) -> nn.Context:
    """The context of the towers: ``context`` itself for fp32, and its GPU in NNabla's half precision for fp16.

    Raises:
        ClipError: there is no such precision there.
    """
    with nn.context_scope(context):
        allowed = ("fp32",) if on_cpu() else ("fp32", "fp16")
    if precision not in allowed:
        raise ClipError(f"NNabla trains with precision {' or '.join(allowed)}, not {precision}; change the recipe.")
    if precision == "fp32":
        return context
    return get_extension_context("cudnn", device_id=context.device_id, type_config="half")


def squared_norm(x: nn.NdArray) -> float:
    """The sum of the squares of all elements."""
    if on_cpu():
        flat = x.get_data("r").reshape(-1)
        return float(np.vdot(flat, flat))
    return float(F.sum(x * x).data)


def contrastive_loss(
    loss: Loss,
    own: Sequence[nn.Variable],
    everyone: Sequence[nn.Variable],
    first: int,
    scale: nn.Variable,
    bias: nn.Variable | None,
) -> tuple[nn.Variable, nn.Variable]:
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
    count, scale = texts.shape[0], F.reshape(scale, (1, 1))
    labels = np.arange(first, first + image.shape[0])[:, None]  # [n, 1]
    by_image = scale * linear(image, texts)  # [n, N]
    if loss.kind == "sigmoid":
        signs = nn.Variable.from_numpy_array(np.where(labels == np.arange(count), 1.0, -1.0).astype(np.float32))
        return F.sum(F.log_sigmoid(signs * (by_image + F.reshape(bias, (1, 1))))) * (-1 / count), by_image
    by_text = scale * linear(text, images)
    targets = nn.Variable.from_numpy_array(labels)
    total = F.sum(F.softmax_cross_entropy(by_image, targets)) + F.sum(F.softmax_cross_entropy(by_text, targets))
    return total * (1 / count / (2 if loss.reduction == "mean" else 1)), by_image


def own_text_among_nearest(logits: np.ndarray, first: int) -> list[np.ndarray]:
    """How many pictures have their own text as the nearest, and among the five nearest; a tie counts against it.

    Args:
        logits: [n, N] of this process's pictures; the own text of the first is at ``first``, and so on.
    """
    farther = (logits < logits.diagonal(first)[:, None]).sum(axis=1)
    return [(farther >= logits.shape[1] - k).sum() for k in (1, 5)]
