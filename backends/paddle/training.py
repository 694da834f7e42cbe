"""One optimiser step of CLIP in Paddle. Policy (schedule, logging, checkpoints) is in clip_core/training/loop.py."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log

import numpy as np
import paddle
import paddle.nn.functional as F

from backends.base import StepResult
from backends.paddle.model import CLIP, to_array
from clip_core.errors import ClipError
from clip_core.naming import parameters
from clip_core.training.recipe import Optimizer
from clip_core.training.state import DECAYED_KINDS, check_state

MAXIMUM_LOG_SCALE = log(100)  # section 2.5 of the paper
AUTOCAST = {"fp32": None, "bf16": "bfloat16"}


class Trainer:
    """AdamW over the symmetric softmax loss; follows `backends.base.Trainer`.

    The update is written out, since Paddle's own optimiser keeps its moments under names that change from one instance
    to the next.

    Args:
        model: float32 weights; they are trained in place.
        optimizer: the recipe's section of that name.
        precision: ``fp32``, or ``bf16`` for matrix products in bfloat16 with weights, norms and loss in float32.

    Raises:
        ClipError: there is no such precision here, or the model's weights are not float32.
    """

    def __init__(self, model: CLIP, optimizer: Optimizer, precision: str = "fp32") -> None:
        if precision not in AUTOCAST:
            raise ClipError(f"There is no training precision {precision!r}; choose one of {', '.join(AUTOCAST)}.")
        if model.dtype != "float32":
            raise ClipError("The model to train holds half-precision weights; load it with precision='fp32'.")
        if precision != "fp32" and paddle.get_device() == "cpu":
            raise ClipError(f"Paddle has no {precision} kernels for the CPU; train with precision fp32, or on a GPU.")
        self.model = model
        self.autocast = AUTOCAST[precision]
        self.optimizer = optimizer
        self.gradient_clip = inf if optimizer.gradient_clip is None else optimizer.gradient_clip
        self.updates = 0
        tensors = dict(model.named_parameters())
        self.table = [parameter for parameter in parameters(model.architecture) if parameter.trainable]
        self.trained = {parameter.name: tensors[parameter.name] for parameter in self.table}
        self._set_moments({})

    def step(self, pixels: np.ndarray, tokens: np.ndarray, learning_rate: float) -> StepResult:
        """Forward, loss, backward, clip, update (`backends.base.Trainer.step`)."""
        self.model.train()
        with paddle.amp.auto_cast(enable=self.autocast is not None, dtype=self.autocast or "float16"):
            image_features = self.model.encode_image(pixels)
            text_features = self.model.encode_text(tokens)
        scale = self.model.logit_scale.exp()
        loss = symmetric_softmax_loss(image_features, text_features, scale)

        self.model.clear_gradients()
        loss.backward()
        with paddle.no_grad():
            gradients = {name: tensor.grad for name, tensor in self.trained.items()}
            norm = float(paddle.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())
            result = StepResult(float(loss), float(scale), norm)
            self._update(gradients, min(self.gradient_clip / (norm + 1e-6), 1.0), learning_rate)
            self.model.logit_scale.set_value(self.model.logit_scale.clip(max=MAXIMUM_LOG_SCALE))
        self.model.eval()
        return result

    def _update(self, gradients: Mapping[str, paddle.Tensor], clip: float, learning_rate: float) -> None:
        """AdamW as PyTorch defines it: decay apart from the gradient, epsilon beside the corrected second moment."""
        self.updates += 1
        beta1, beta2 = self.optimizer.betas
        correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        for parameter in self.table:
            name = parameter.name
            gradient = gradients[name] * clip
            first = beta1 * self.first[name] + (1 - beta1) * gradient
            second = beta2 * self.second[name] + (1 - beta2) * gradient.square()
            decay = self.optimizer.weight_decay if parameter.kind in DECAYED_KINDS else 0.0
            change = first / ((second / correction2).sqrt() + self.optimizer.epsilon)
            weights = self.trained[name] * (1 - learning_rate * decay) - (learning_rate / correction1) * change
            self.first[name], self.second[name] = first, second
            self.trained[name].set_value(weights)

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on (`backends.base.Trainer.state`)."""
        state = {f"weights/{name}": array for name, array in self.model.export().items()}
        for parameter in self.table:
            for kind, moments in (("first", self.first), ("second", self.second)):
                array = to_array(moments[parameter.name])
                canonical = array.T if parameter.kind == "linear" else array  # Paddle stores [in, out]
                state[f"{kind}_moment/{parameter.name}"] = np.array(canonical, order="C")
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
        def moments(kind: str) -> dict[str, paddle.Tensor]:
            found = {}
            for parameter in self.table:
                array = state.get(f"{kind}/{parameter.name}", np.zeros(parameter.shape, np.float32))
                array = array.T if parameter.kind == "linear" else array  # Paddle stores [in, out]
                found[parameter.name] = paddle.to_tensor(np.array(array, order="C"))
            return found

        self.first, self.second = moments("first_moment"), moments("second_moment")


def symmetric_softmax_loss(
    image_features: paddle.Tensor, text_features: paddle.Tensor, scale: paddle.Tensor
) -> paddle.Tensor:
    """The loss of figure 3 of the paper: features [n, d] twice and exp of the logit scale -> scalar, in float32."""
    image_features = F.normalize(image_features.astype("float32"), axis=-1)
    text_features = F.normalize(text_features.astype("float32"), axis=-1)
    logits = scale * paddle.matmul(image_features, text_features, transpose_y=True)  # [n, n]
    labels = paddle.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
