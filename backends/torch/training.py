"""One optimiser step of CLIP in PyTorch. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py.

Its twins are backends/paddle/training.py and backends/nnabla/training.py. A step has the same parts in each: encode the
batch, gather the features of all processes, compute the loss and its gradient on the features, push that gradient back
through the towers chunk by chunk, update. The gradient is that of the whole batch, however the batch is cut into chunks
or spread over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from backends.base import StepResult
from backends.torch.model import CLIP, to_array
from backends.torch.ranks import Ranks
from clip_core.errors import ClipError
from clip_core.training.recipe import Loss, Recipe
from clip_core.training.rules import check_trainable, chunks, clip_factor, log_scale_bounds, rules
from clip_core.training.state import check_state

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}
ADAM = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


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
        if model.dtype != torch.float32:
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        check_trainable(model.architecture, recipe)
        self.model, self.ranks = model, ranks or Ranks()
        self.recipe = recipe
        self.autocast = AUTOCAST[recipe.training.precision]
        self.rules = rules(model.architecture, recipe)
        self.trained = {name: model.get_parameter(name) for name in self.rules}
        self.updates = 0
        self.adam = ADAM[recipe.optimizer.name](
            [
                {
                    "params": [self.trained[name] for name, other in self.rules.items() if other == rule],
                    "weight_decay": rule.decay,
                    "rate": rule.rate,
                }
                for rule in dict.fromkeys(self.rules.values())
            ],
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.epsilon,
        )
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        parts = chunks(len(pixels), self.recipe.training.micro_batch_size)
        whole = len(parts) == 1
        with nullcontext() if whole else torch.no_grad():
            pairs = [self._encode(pixels[part], tokens[part]) for part in parts]
        loss, gradients = self._loss(*(torch.cat(side).detach() for side in zip(*pairs)))
        for part, pair in zip(parts, pairs):
            for features, gradient in zip(pair if whole else self._encode(pixels[part], tokens[part]), gradients):
                if features.requires_grad:  # not of a frozen tower
                    features.backward(gradient[part])
        result = self._update(loss, learning_rate)
        self.model.eval()
        return result

    def _encode(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 features [n, d] of both towers; a frozen tower keeps nothing for a gradient."""
        frozen, keep = self.recipe.optimizer.frozen, torch.is_grad_enabled()
        with torch.autocast(self.model.device.type, self.autocast, enabled=self.autocast is not None):
            with torch.set_grad_enabled(keep and "image" not in frozen):
                image = self.model.encode_image(pixels)
            with torch.set_grad_enabled(keep and "text" not in frozen):
                text = self.model.encode_text(tokens)
        return image.float(), text.float()

    def _loss(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """This process's share of the loss, and the gradient of the whole loss on its features [n, d] of both towers.

        The scale and the bias get their share of the gradient.
        """
        own = [image.requires_grad_(), text.requires_grad_()]
        first = self.ranks.rank * len(image)
        everyone = own if self.ranks.size == 1 else [self.ranks.gather(x.detach()).requires_grad_() for x in own]
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

    @torch.no_grad()
    def _update(self, loss: torch.Tensor, learning_rate: float) -> StepResult:
        gradients = [tensor.grad for tensor in self.trained.values()]
        self.ranks.sum([loss, *gradients])
        norm = float(torch.nn.utils.get_total_norm(gradients))
        result = StepResult(loss.item(), self.model.logit_scale.exp().item(), norm)
        torch._foreach_mul_(gradients, clip_factor(norm, self.recipe.optimizer.gradient_clip))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.adam.step()
        self.model.logit_scale.clamp_(*log_scale_bounds(self.recipe.optimizer))
        self.updates += 1
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`backends.base.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for name, tensor in self.trained.items():
            moments = self.adam.state[tensor]
            state[f"first_moment/{name}"] = to_array(moments["exp_avg"]).copy()
            state[f"second_moment/{name}"] = to_array(moments["exp_avg_sq"]).copy()
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
        for name, tensor in self.trained.items():

            def moment(kind: str, name: str = name, tensor: torch.Tensor = tensor) -> torch.Tensor:
                array = state.get(f"{kind}/{name}")
                return torch.zeros_like(tensor) if array is None else torch.tensor(array, device=tensor.device)

            self.adam.state[tensor] = {
                "step": torch.tensor(float(self.updates)),
                "exp_avg": moment("first_moment"),
                "exp_avg_sq": moment("second_moment"),
            }


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
) -> torch.Tensor:
    """This process's share of the loss over all N pairs; the shares of all processes add up to it.

    Args:
        own: image and text features [n, d] of this process.
        everyone: those of all processes [N, d], in the order of their ranks.
        first: where this process's own begin among them.
        scale: the factor of the cosines.
        bias: what is added to the logits, for the sigmoid loss.

    Source: figure 3 of the CLIP paper (softmax); algorithm 1 of "Sigmoid loss for language image pre-training".
    """
    (image, text), (images, texts) = ([F.normalize(x, dim=-1) for x in pair] for pair in (own, everyone))
    labels = torch.arange(first, first + len(image), device=image.device)
    by_image = scale * image @ texts.t()  # [n, N]
    if loss.kind == "sigmoid":
        signs = 2 * F.one_hot(labels, len(texts)) - 1
        return -F.logsigmoid(signs * (by_image + bias)).sum() / len(texts)
    by_text = scale * text @ images.t()
    total = F.cross_entropy(by_image, labels, reduction="sum") + F.cross_entropy(by_text, labels, reduction="sum")
    return total / len(texts) / (2 if loss.reduction == "mean" else 1)
