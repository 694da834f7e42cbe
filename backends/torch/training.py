"""One optimiser step of CLIP in PyTorch. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/paddle/training.py and backends/nnabla/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from math import hypot, isfinite
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import get_total_norm

from backends.torch.compilation import compile_blocks
from backends.torch.layers import Block, PatchDropout, normalize
from backends.torch.model import CLIP
from backends.torch.process_group import ProcessGroup
from backends.torch.sharding import is_sharded, part_of, shard, whole_of
from backends.torch.tensors import to_array
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

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAM = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Trainer:
    """Adam or AdamW over the recipe's loss; follows `clip_core.backend.Trainer`.

    Args:
        model: float32 weights; they are trained in place.
        recipe: its sections ``optimizer``, ``loss`` and ``training`` are followed.
        processes: those of the run; by default this one alone.

    Raises:
        ClipError: the recipe asks for what this model, framework or machine cannot do.
    """

    distribution: ClassVar[str] = "torch"
    optional_keys: ClassVar[Collection[str]] = ("compile", "fully_sharded")

    def __init__(self, model: CLIP, recipe: Recipe, processes: ProcessGroup | None = None) -> None:
        if model.dtype != torch.float32:
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        check_trainable(model.architecture, recipe, self.optional_keys)
        self.model, self.processes = model, processes or ProcessGroup()
        self.recipe = recipe
        model.recompute_blocks(recipe.training.gradient_checkpointing)
        if recipe.training.compile:
            compile_blocks(model)
        if recipe.training.fully_sharded and self.processes.size > 1:
            blocks = [module for module in model.modules() if isinstance(module, Block)]
            shard([*blocks, *model.children()], model.device, self.processes.size)
        self.autocast = AUTOCAST[recipe.training.precision]
        self.scaling = LossScaling() if recipe.training.precision == "fp16" else None
        self.groups = parameter_groups(model.architecture, recipe)
        self.parameters = {name: model.get_parameter(name) for name in self.groups}
        self.trained = {name: part_of(parameter) for name, parameter in self.parameters.items()}
        self.adam = ADAM[recipe.optimizer.name](
            [
                {
                    "params": [self.trained[name] for name, other in self.groups.items() if other == group],
                    "weight_decay": group.decay,
                    "rate": group.rate,
                }
                for group in dict.fromkeys(self.groups.values())
            ],
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.epsilon,
            fused=model.device.type in ("cpu", "cuda"),  # in every release that is supported
        )
        image = [module for module in model.visual.modules() if isinstance(module, Block)]
        text = [module for module in model.modules() if isinstance(module, Block) and module not in image]
        patches = [part for part in vars(model.visual).values() if isinstance(part, PatchDropout)]
        self.noisy: dict[str, Sequence[Noisy]] = {"image": image, "text": text, "patches": patches}
        self._begin({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`clip_core.backend.Trainer.step`)."""
        self.model.train()
        self.model.zero_grad()
        self.adam.zero_grad()  # of sharded weights it holds the gradients, too
        parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
        whole = len(parts) == 1
        with nullcontext() if whole else torch.no_grad():
            pairs = [self._encode(pixels, tokens, part) for part in parts]
        sums, gradients = self._loss(*(torch.cat(side).detach() for side in zip(*pairs)))
        for part, pair in zip(parts, pairs):
            pair = pair if whole else self._encode(pixels, tokens, part)
            for tower, features, gradient in zip(TOWERS, pair, gradients):
                if tower not in self.recipe.optimizer.frozen:
                    features.backward(self.loss_scale * gradient[part])
        result = self._update(sums, len(pixels) * self.processes.size, learning_rate)
        self.model.eval()
        clear_noise(self.noisy)
        return result

    @property
    def loss_scale(self) -> float:
        """What the gradients of the towers are multiplied by in the backward pass."""
        return 1.0 if self.scaling is None else self.scaling.scale

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 features [n, d] of both towers for a part of the batch; a frozen one keeps nothing for gradients."""
        set_noise(self.noisy, self.recipe, self.updates, self.processes.rank * len(pixels) + part.start)
        frozen, keep = self.recipe.optimizer.frozen, torch.is_grad_enabled()
        with torch.autocast(self.model.device.type, self.autocast, enabled=self.autocast is not None):
            with torch.set_grad_enabled(keep and "image" not in frozen):
                image = self.model.encode_image(pixels[part])
            with torch.set_grad_enabled(keep and "text" not in frozen):
                text = self.model.encode_text(tokens[part])
        return image.float(), text.float()

    def _loss(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """This process's share of what is summed over all, and the gradient of the whole loss on its features [n, d].

        Summed are the loss and the pictures whose own text is the nearest, and is among the five nearest. The scale and
        the bias get their share of the gradient.
        """
        own = [image.requires_grad_(), text.requires_grad_()]
        first = self.processes.rank * len(image)
        everyone = (
            own if self.processes.size == 1 else [self.processes.gather(x.detach()).requires_grad_() for x in own]
        )
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        loss, logits = contrastive_loss(self.recipe.loss, own, everyone, first, scale, bias)
        loss.backward()
        gradients = [gradient_of(x) for x in own]
        if everyone is not own:
            # As keys, these features also stand in the losses of the other processes.
            keys = [gradient_of(x) for x in everyone]
            self.processes.sum(keys)
            gradients = [gradient + key[first : first + len(image)] for gradient, key in zip(gradients, keys)]
        return torch.stack([loss.detach(), *own_text_among_nearest(logits.detach(), first)]), gradients

    @torch.no_grad()
    def _update(self, sums: torch.Tensor, pairs: int, learning_rate: float) -> StepResult:
        """Sum over all processes, then clip and update; a loss or gradients that are not finite update nothing."""
        for name, tensor in self.trained.items():
            tensor.grad = part_of(self.parameters[name].grad)
        gradients = {name: tensor.grad for name, tensor in self.trained.items()}
        loss_scale = self.loss_scale
        if self.scaling is not None:
            torch._foreach_div_([gradient for name, gradient in gradients.items() if name not in SCALARS], loss_scale)
        own = [gradient for name, gradient in gradients.items() if is_sharded(self.parameters[name])]
        common = [gradient for name, gradient in gradients.items() if not is_sharded(self.parameters[name])]
        square = get_total_norm(own).to(sums) ** 2  # these are sums already, of rows that no other process has
        self.processes.sum([sums, square, *common])
        norm = hypot(square.sqrt(), get_total_norm(common))
        loss, top1, top5 = sums.tolist()
        # A loss that is not finite overflowed in the forward pass, which no loss scale changes.
        skipped = self.scaling is not None and isfinite(loss) and self.scaling.adapt(overflowed=not isfinite(norm))
        logit_scale = self.model.logit_scale.exp().item()
        result = StepResult(loss, logit_scale, norm, top1 / pairs, top5 / pairs, loss_scale, skipped)
        if not (isfinite(loss) and isfinite(norm)):
            return result
        optimizer = self.recipe.optimizer
        factor = clip_factor(norm, optimizer.gradient_clip)
        if factor != 1:
            torch._foreach_mul_(list(gradients.values()), factor)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.adam.step()
        self.model.logit_scale.clamp_(*log_scale_bounds(optimizer))
        if optimizer.ema_decay is not None:
            torch._foreach_lerp_(list(self.averages.values()), list(self.trained.values()), 1 - optimizer.ema_decay)
        self.updates += 1
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`clip_core.backend.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for name, tensor in self.trained.items():
            moments = self.adam.state[tensor]
            state[f"first_moment/{name}"] = self._whole(name, moments["exp_avg"])
            state[f"second_moment/{name}"] = self._whole(name, moments["exp_avg_sq"])
        for name, tensor in self.averages.items():
            state[f"average/{name}"] = self._whole(name, tensor)
        scaling = {} if self.scaling is None else self.scaling.state()
        return state | scaling | {"updates": np.array(self.updates, np.int64)}

    def average(self) -> Weights | None:
        """The moving average of the weights, complete (`clip_core.backend.Trainer.average`)."""
        averages = {name: self._whole(name, tensor) for name, tensor in self.averages.items()}
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

        def tensor(kind: str, name: str, otherwise: torch.Tensor) -> torch.Tensor:
            array = state.get(f"{kind}/{name}")
            return otherwise if array is None else otherwise.copy_(part_of(self.parameters[name], torch.tensor(array)))

        for name, weights in self.trained.items():
            self.adam.state[weights] = {
                "step": torch.tensor(float(self.updates), device=weights.device),
                "exp_avg": tensor("first_moment", name, torch.zeros_like(weights)),
                "exp_avg_sq": tensor("second_moment", name, torch.zeros_like(weights)),
            }
        averaged = {} if self.recipe.optimizer.ema_decay is None else self.trained
        self.averages = {name: tensor("average", name, weights.detach().clone()) for name, weights in averaged.items()}

    def _whole(self, name: str, part: torch.Tensor) -> np.ndarray:
        """A copy of what belongs to the parameter ``name``, put together from all processes."""
        return to_array(whole_of(self.parameters[name], part)).copy()


def gradient_of(x: torch.Tensor) -> torch.Tensor:
    """The gradient that arrived at ``x``: none arrives at what the loss does not look at."""
    return torch.zeros_like(x) if x.grad is None else x.grad


def contrastive_loss(
    loss: Loss,
    own: Sequence[torch.Tensor],
    everyone: Sequence[torch.Tensor],
    first: int,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
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
    labels = torch.arange(first, first + len(image), device=image.device)
    by_image = scale * image @ texts.t()  # [n, N]
    if loss.kind == "sigmoid":
        signs = 2 * F.one_hot(labels, len(texts)) - 1
        return -F.logsigmoid(signs * (by_image + bias)).sum() / len(texts), by_image
    by_text = scale * text @ images.t()
    total = F.cross_entropy(by_image, labels, reduction="sum") + F.cross_entropy(by_text, labels, reduction="sum")
    return total / len(texts) / (2 if loss.reduction == "mean" else 1), by_image


def own_text_among_nearest(logits: torch.Tensor, first: int) -> list[torch.Tensor]:
    """How many pictures have their own text as the nearest, and among the five nearest; a tie counts against it.

    Args:
        logits: [n, N] of this process's pictures; the own text of the first is at ``first``, and so on.
    """
    farther = (logits < logits.diagonal(first)[:, None]).sum(dim=1)
    return [(farther >= logits.shape[1] - k).sum().to(logits.dtype) for k in (1, 5)]
