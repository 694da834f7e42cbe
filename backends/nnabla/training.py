"""One optimiser step of CLIP in NNabla. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log

import nnabla as nn
import nnabla.functions as F
import numpy as np

from backends.base import StepResult
from backends.nnabla.functions import linear
from backends.nnabla.model import CLIP, normalize
from clip_core.errors import ClipError
from clip_core.naming import parameters
from clip_core.training.recipe import Optimizer
from clip_core.training.state import DECAYED_KINDS, check_state

MAXIMUM_LOG_SCALE = log(100)  # section 2.5 of the paper
BLOCK = 1 << 16  # elements; a block of weight, gradient and moments stays in a core's cache


class Trainer:
    """AdamW over the symmetric softmax loss; follows `backends.base.Trainer`.

    The update is written out: NNabla's own AdamW puts epsilon beside the uncorrected second moment and scales the decay
    by the initial learning rate.

    Args:
        model: float32 weights; they are trained in place.
        optimizer: the recipe's section of that name.
        precision: ``fp32``.

    Raises:
        ClipError: there is no such precision.
    """

    def __init__(self, model: CLIP, optimizer: Optimizer, precision: str = "fp32") -> None:
        if precision != "fp32":
            raise ClipError(f"There is no training precision {precision!r} in NNabla; train with precision fp32.")
        self.model = model
        self.optimizer = optimizer
        self.gradient_clip = inf if optimizer.gradient_clip is None else optimizer.gradient_clip
        self.updates = 0
        variables = dict(model.named_parameters())
        self.table = [parameter for parameter in parameters(model.architecture) if parameter.trainable]
        self.trained = {parameter.name: variables[parameter.name] for parameter in self.table}
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        with nn.auto_forward():
            image_features = self.model.encode_image(pixels)
            text_features = self.model.encode_text(tokens)
            scale = F.exp(self.model.logit_scale)
            loss = symmetric_softmax_loss(image_features, text_features, scale)

        values = float(loss.d), float(scale.d)  # the backward pass frees them

        for variable in self.trained.values():
            variable.grad.zero()
        loss.backward(clear_buffer=True)
        gradients = {name: variable.grad.get_data("rw") for name, variable in self.trained.items()}
        norm = float(np.sqrt(sum(np.vdot(gradient, gradient) for gradient in gradients.values())))
        result = StepResult(*values, norm)

        self._update(gradients, min(self.gradient_clip / (norm + 1e-6), 1.0), learning_rate)
        log_scale = self.model.logit_scale.data.get_data("rw")
        np.minimum(log_scale, MAXIMUM_LOG_SCALE, out=log_scale)
        self.model.eval()
        return result

    def _update(self, gradients: Mapping[str, np.ndarray], clip: float, learning_rate: float) -> None:
        """AdamW as PyTorch defines it: decay apart from the gradient, epsilon beside the corrected second moment."""
        self.updates += 1
        beta1, beta2 = self.optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        for parameter in self.table:
            name = parameter.name
            decay = self.optimizer.weight_decay if parameter.kind in DECAYED_KINDS else 0.0
            arrays = (self.trained[name].data.get_data("rw"), gradients[name], self.first[name], self.second[name])
            flat = [array.reshape(-1) for array in arrays]
            for start in range(0, flat[0].size, BLOCK):
                weights, gradient, first, second = (array[start : start + BLOCK] for array in flat)
                gradient *= clip
                first *= beta1
                first += (1 - beta1) * gradient
                second *= beta2
                second += (1 - beta2) * gradient * gradient
                weights *= 1 - learning_rate * decay
                weights -= (
                    learning_rate / correction1 * first / (np.sqrt(second / correction2) + self.optimizer.epsilon)
                )

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
        check_state(self.model.architecture, state)
        self.model.load({name: state[f"weights/{name}"] for name in self.model.export()})
        self.updates = int(state["updates"])
        self._set_moments(state)

    def _set_moments(self, state: Mapping[str, np.ndarray]) -> None:
        def moments(kind: str) -> dict[str, np.ndarray]:
            return {
                parameter.name: np.array(state.get(f"{kind}/{parameter.name}", np.zeros(parameter.shape, np.float32)))
                for parameter in self.table
            }

        self.first, self.second = moments("first_moment"), moments("second_moment")


def symmetric_softmax_loss(image_features: nn.Variable, text_features: nn.Variable, scale: nn.Variable) -> nn.Variable:
    """The loss of figure 3 of the paper: features [n, d] twice and exp of the logit scale -> scalar."""
    logits = F.reshape(scale, (1, 1)) * linear(normalize(image_features), normalize(text_features))  # [n, n]
    labels = nn.Variable.from_numpy_array(np.arange(logits.shape[0])[:, None])
    image_loss = F.mean(F.softmax_cross_entropy(logits, labels))
    text_loss = F.mean(F.softmax_cross_entropy(F.transpose(logits, (1, 0)), labels))
    return (image_loss + text_loss) / 2
