"""The gradients of the symmetric contrastive loss in every framework, from the same gradient of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.naming import INITIAL_LOGIT_SCALE, Weights, parameters
from clip_core.similarity import contrastive_loss
from tests import tolerances
from tests.models import logits_of, sample_pixels, sample_tokens, sample_weights
from tests.requested import load_backend

PAIRS = 4


def gradients_of(model: Any, pixels: np.ndarray, tokens: np.ndarray, static: bool = False) -> Weights:
    """The gradient of every trained parameter under its canonical name, shape and axis order.

    ``static``, for NNabla: through a graph that is built before its inputs are known and frees memory on the way.
    """
    _, gradient = contrastive_loss(logits_of(model, pixels, tokens)[0])
    gradient = gradient.astype(np.float32)
    if model.backend == "torch":
        return _torch(model, pixels, tokens, gradient)
    if model.backend == "paddle":
        return _paddle(model, pixels, tokens, gradient)
    return _nnabla(model, pixels, tokens, gradient, static)


def _torch(model: Any, pixels: np.ndarray, tokens: np.ndarray, gradient: np.ndarray) -> Weights:
    import torch

    model(pixels, tokens)[0].backward(torch.from_numpy(gradient))
    return {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}


def _paddle(model: Any, pixels: np.ndarray, tokens: np.ndarray, gradient: np.ndarray) -> Weights:
    import paddle

    model(pixels, tokens)[0].backward(paddle.to_tensor(gradient))
    kinds = {parameter.name: parameter.kind for parameter in parameters(model.architecture)}
    gradients = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    return {name: array.T if kinds[name] == "linear" else array for name, array in gradients.items()}


def _nnabla(model: Any, pixels: np.ndarray, tokens: np.ndarray, gradient: np.ndarray, static: bool) -> Weights:
    import nnabla as nn

    trained = {name: variable for name, variable in model.named_parameters() if variable.need_grad}
    for variable in trained.values():
        variable.grad.zero()
    if static:
        image, text = nn.Variable(pixels.shape), nn.Variable(tokens.shape)
        logits = model(image, text)[0]
        image.d, text.d = pixels, tokens
        logits.forward(clear_no_need_grad=True)
        logits.backward(gradient, clear_buffer=True)
    else:
        with nn.auto_forward():
            logits = model(pixels, tokens)[0]
        logits.backward(gradient)
    return {name: variable.g.copy() for name, variable in trained.items()}


def weights_of(architecture: Architecture) -> Weights:
    """The sample weights with the logit scale of a model before training, where every pair still has a gradient."""
    return sample_weights(architecture) | {"logit_scale": np.array(INITIAL_LOGIT_SCALE, np.float32)}


def framework_gradients(name: str, architecture: Architecture, static: bool = False) -> Weights:
    model = load_backend(name).CLIP(architecture, weights_of(architecture), device="cpu")
    return gradients_of(model, sample_pixels(architecture, PAIRS), sample_tokens(architecture, PAIRS), static)


def beyond(found: Weights, expected: Weights) -> dict[str, float]:
    """The parameters whose gradients differ by more than the bound, and by how much."""
    assert found.keys() == expected.keys()
    least = tolerances.SMALLEST_GRADIENT * max(np.abs(gradient).max() for gradient in expected.values())
    differences = {
        name: tolerances.difference(found[name], gradient) / max(np.abs(gradient).max(), least)
        for name, gradient in expected.items()
    }
    return {name: value for name, value in differences.items() if not value <= tolerances.CONTRACT["gradient"].bound}


def loss_of(architecture: Architecture, weights: Weights) -> float:
    """The loss of the NumPy reference in float64, which takes parameters beyond float32's precision."""
    model = Reference(architecture, weights, precision="fp64")
    return contrastive_loss(model(sample_pixels(architecture, PAIRS), sample_tokens(architecture, PAIRS))[0])[0]
