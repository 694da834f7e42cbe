"""One optimiser step of CLIP in PyTorch. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log

import numpy as np
import torch
import torch.nn.functional as F

from backends.base import StepResult
from backends.torch.model import CLIP, to_array
from clip_core.errors import ClipError
from clip_core.naming import parameters
from clip_core.training.recipe import Optimizer
from clip_core.training.state import DECAYED_KINDS, check_state

MAXIMUM_LOG_SCALE = log(100)  # section 2.5 of the paper
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


class Trainer:
    """AdamW over the symmetric softmax loss; follows `backends.base.Trainer`.

    Args:
        model: float32 weights; they are trained in place.
        optimizer: the recipe's section of that name.
        precision: ``fp32``, or ``bf16`` for matrix products in bfloat16 with weights, norms and loss in float32.

    Raises:
        ClipError: there is no such precision, or the model's weights are not float32.
    """

    def __init__(self, model: CLIP, optimizer: Optimizer, precision: str = "fp32") -> None:
        if precision not in AUTOCAST:
            raise ClipError(f"There is no training precision {precision!r}; choose one of {', '.join(AUTOCAST)}.")
        if model.dtype != torch.float32:
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        self.model = model
        self.autocast = AUTOCAST[precision]
        self.gradient_clip = inf if optimizer.gradient_clip is None else optimizer.gradient_clip
        self.updates = 0
        table = [parameter for parameter in parameters(model.architecture) if parameter.trainable]
        self.trained = {parameter.name: model.get_parameter(parameter.name) for parameter in table}
        decayed = {parameter.name: parameter.kind in DECAYED_KINDS for parameter in table}
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [tensor for name, tensor in self.trained.items() if decayed[name] is decay],
                    "weight_decay": optimizer.weight_decay if decay else 0.0,
                }
                for decay in (True, False)
            ],
            betas=optimizer.betas,
            eps=optimizer.epsilon,
            foreach=True,
        )
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        with torch.autocast(self.model.device.type, self.autocast, enabled=self.autocast is not None):
            image_features = self.model.encode_image(pixels)
            text_features = self.model.encode_text(tokens)
        scale = self.model.logit_scale.exp()
        loss = symmetric_softmax_loss(image_features, text_features, scale)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.gradient_clip)
        result = StepResult(loss.item(), scale.item(), gradient_norm.item())

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAXIMUM_LOG_SCALE)
        self.updates += 1
        self.model.eval()
        return result

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`backends.base.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for name, tensor in self.trained.items():
            moments = self.optimizer.state[tensor]
            state[f"first_moment/{name}"] = to_array(moments["exp_avg"]).copy()
            state[f"second_moment/{name}"] = to_array(moments["exp_avg_sq"]).copy()
        return state | {"updates": np.array(self.updates, np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave: all of it, or on any fault nothing.

        Raises:
            CheckpointError: listing every fault.
        """
        check_state(self.model.architecture, state)
        self.model.load({name: state[f"weights/{name}"] for name in self.model.export()})
        self.updates = int(state["updates"])
        self._set_moments(state)

    def _set_moments(self, state: Mapping[str, np.ndarray]) -> None:
        for name, tensor in self.trained.items():

            def moment(kind: str, name: str = name, tensor: torch.Tensor = tensor) -> torch.Tensor:
                array = state.get(f"{kind}/{name}")
                return torch.zeros_like(tensor) if array is None else torch.tensor(array, device=tensor.device)

            self.optimizer.state[tensor] = {
                "step": torch.tensor(float(self.updates)),
                "exp_avg": moment("first_moment"),
                "exp_avg_sq": moment("second_moment"),
            }


def symmetric_softmax_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The loss of figure 3 of the paper: features [n, d] twice and exp of the logit scale -> scalar, in float32."""
    image_features = F.normalize(image_features.float(), dim=-1)
    text_features = F.normalize(text_features.float(), dim=-1)
    logits = scale * image_features @ text_features.t()  # [n, n]
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
