"""The functions of the network, each with its gradient: NumPy's BLAS on the CPU, NNabla's own on other contexts.

NNabla's native ``affine``, ``transpose`` and ``layer_normalization`` run at about a tenth of the speed of BLAS on the
CPU. On a GPU they are the fast ones, and a NumPy function would copy everything to the CPU and back. A graph that is
made for a file has NNabla's own functions, too (`for_a_file`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import TypeAlias

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import parameter
from nnabla.function import PythonFunction

from backends.nnabla.module import SWITCHES
from clip_core.backend import is_plain
from clip_core.chunks import in_chunks
from clip_core.errors import TextError
from clip_core.inputs import check_tokens
from clip_core.towers.parts import TextTower

Shape = tuple[int, ...]
Pooled: TypeAlias = "int | nn.Variable"  # the position of a token, the same in all rows or one of each [n]
Gradients = Sequence[np.ndarray | None]

_for_a_file = ContextVar("for_a_file", default=False)


@contextmanager
def for_a_file() -> Iterator[None]:
    """Let what this thread builds have NNabla's own functions alone, for NNabla's other runtimes know no others.

    Nothing but inputs and parameters goes into such a graph, and no argument of a function but the first number of a
    shape depends on the size of a batch.
    """
    token = _for_a_file.set(True)
    try:
        yield
    finally:
        _for_a_file.reset(token)


def is_for_a_file() -> bool:
    """Whether what is being built now is made for a file."""
    return _for_a_file.get()


def by_numpy() -> bool:
    """Whether NumPy computes."""
    return on_cpu() and not is_for_a_file() and not is_plain()


def linear(x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None = None) -> nn.Variable:
    """[..., i] x [o, i] -> [..., o], plus [o]."""
    if by_numpy():
        return Linear(transposed=True)(x, weight) if bias is None else Linear(transposed=True)(x, weight, bias)
    return F.affine(x, F.transpose(weight, (1, 0)), bias, base_axis=x.ndim - 1)


def project(x: nn.Variable, matrix: nn.Variable) -> nn.Variable:
    """[..., i] x [i, o] -> [..., o]."""
    return Linear(transposed=False)(x, matrix) if by_numpy() else F.affine(x, matrix, base_axis=x.ndim - 1)


def products(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """[n, d] x [m, d] -> [n, m]."""
    if not is_for_a_file():
        return linear(x, y)
    # Other runtimes know no affine function without parameters.
    return F.sum(F.batch_matmul(F.reshape(x, (1, *x.shape)), F.reshape(y, (1, *y.shape)), transpose_b=True), axis=0)


def layer_norm(x: nn.Variable, weight: nn.Variable, bias: nn.Variable, epsilon: float) -> nn.Variable:
    """Normalisation of the last axis of [..., d], then gain and offset [d]."""
    if by_numpy():
        return LayerNorm(epsilon)(x, weight, bias)
    shape = (1,) * (x.ndim - 1) + weight.shape
    if is_for_a_file():  # NNabla's C runtime has no function for it
        x = x - mean(x, x.ndim - 1, keepdims=True)
        x = x * (mean(x**2, x.ndim - 1, keepdims=True) + epsilon) ** -0.5
        return x * F.reshape(weight, shape) + F.reshape(bias, shape)
    with nn.context_scope(single_precision(nn.get_current_context())):
        return F.layer_normalization(
            x, F.reshape(bias, shape), F.reshape(weight, shape), batch_axis=list(range(x.ndim - 1)), eps=epsilon
        )


def add(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """The sum of two of one shape."""
    return Add()(x, y) if by_numpy() else x + y


def batch_norm(
    x: nn.Variable,
    weight: nn.Variable,
    bias: nn.Variable,
    mean: nn.Variable,
    variance: nn.Variable,
    momentum: float,
    epsilon: float,
    training: bool,
) -> nn.Variable:
    """Normalisation of each channel of [n, c, h, w], then gain and offset [c].

    Args:
        mean, variance: running statistics [c], used as they are, or in training moved by those of the batch.
        momentum: the share of the batch in them.
    """
    if training and by_numpy():
        return BatchNorm(mean, variance, momentum, epsilon)(x, weight, bias)
    shape = (1, *weight.shape, 1, 1)
    parameters = [F.reshape(value, shape) for value in (bias, weight)]
    if (
        training
    ):  # the running statistics are moved in place, so they must be variables rather than results of a function
        parameters += [value.reshape(shape, unlink=True) for value in (mean, variance)]
    else:
        parameters += [F.reshape(value, shape) for value in (mean, variance)]
    return F.batch_normalization(x, *parameters, decay_rate=1 - momentum, eps=epsilon, batch_stat=training)


def mean(x: nn.Variable, axis: int | tuple[int, ...], keepdims: bool = False) -> nn.Variable:
    """The mean along some axes."""
    if not is_for_a_file():
        return F.mean(x, axis=axis, keepdims=keepdims)
    axes = (axis,) if isinstance(axis, int) else axis
    # NNabla's C runtime has no mean.
    return F.sum(x, axis=axis, keepdims=keepdims) * (1 / prod(x.shape[one] for one in axes))


def quick_gelu(x: nn.Variable) -> nn.Variable:
    """x * sigmoid(1.702 x)."""
    return QuickGELU()(x) if by_numpy() else x * F.sigmoid(1.702 * x)


def gelu(x: nn.Variable) -> nn.Variable:
    """The exact GELU; NNabla's own is an approximation."""
    return 0.5 * x * (1 + F.erf(x * 2**-0.5))


def attend(q: nn.Variable, k: nn.Variable, v: nn.Variable, heads: int, mask: nn.Variable | None = None) -> nn.Variable:
    """Multi-head attention of [n, q, d] over [n, l, d]; ``mask``, broadcast to [n, heads, q, l], is 1 where seen."""
    if by_numpy():
        return Attend(heads)(q, k, v) if mask is None else Attend(heads)(q, k, v, mask)
    x = F.batch_matmul(attention_maps(q, k, heads, mask), _heads_first(v, heads))
    return F.reshape(F.transpose(x, (0, 2, 1, 3)), (k.shape[0], *q.shape[1:]))  # queries may be the same for all rows


def attention_maps(q: nn.Variable, k: nn.Variable, heads: int, mask: nn.Variable | None = None) -> nn.Variable:
    """How much each of the queries [n, q, d] looks at each of the keys [n, l, d]: [n, heads, q, l]."""
    q, k = _heads_first(q, heads), _heads_first(k, heads)
    scores = F.batch_matmul(q * q.shape[3] ** -0.5, k, transpose_b=True)  # [n, heads, q, l]
    if mask is not None:
        scores = scores + F.log(mask)  # 0 where seen, else -infinity
    return F.softmax(scores, axis=3)


def _heads_first(x: nn.Variable, heads: int) -> nn.Variable:
    """[n, l, d] -> [n, heads, l, d / heads]."""
    n, length, width = x.shape
    return F.transpose(F.reshape(x, (n, length, heads, width // heads)), (0, 2, 1, 3))


def attend_packed(x: nn.Variable, heads: int, mask: nn.Variable | None = None) -> nn.Variable:
    """`attend` of queries, keys and values that are next to each other in [n, l, 3 * d]."""
    if by_numpy():
        return AttendPacked(heads)(x) if mask is None else AttendPacked(heads)(x, mask)
    q, k, v = chunk(x, 3)
    return attend(q, k, v, heads, mask)


def embed_patches(x: nn.Variable, weight: nn.Variable) -> nn.Variable:
    """Pixels [n, 3, r, r] convolved by [d, 3, p, p] without overlap -> [n, (r / p) ** 2, d]."""
    if by_numpy():
        return EmbedPatches()(x, weight)
    x = F.convolution(x, weight, stride=weight.shape[2:])
    return F.transpose(F.reshape(x, (*x.shape[:2], -1)), (0, 2, 1))


def cut_patches(x: nn.Variable, size: int) -> nn.Variable:
    """Pixels [n, 3, r, r] -> [n, (r / size) ** 2, size * size * 3], each pixel of a patch as red, green and blue."""
    if by_numpy():
        return CutPatches(size)(x)
    n, channels, height, width = x.shape
    x = F.reshape(x, (n, channels, height // size, size, width // size, size))
    return F.reshape(F.transpose(x, (0, 2, 4, 3, 5, 1)), (n, -1, size * size * channels))


def check_when_computed(tokens: nn.Variable, tower: TextTower) -> nn.Variable:
    """The tokens themselves, checked by `usable_tokens` when they are known; those of a file are not checked."""
    return tokens if is_for_a_file() else CheckTokens(tower)(tokens)


def usable_tokens(array: np.ndarray, tower: TextTower) -> np.ndarray:
    """Tokens [n, l] of any dtype as int64: a variable's become float32 where somebody looks at them through ``d``.

    NNabla's embedding reads other memory for an id that is not in the vocabulary, and for NaN.

    Raises:
        TextError: not whole numbers, outside the vocabulary, or a text without its end-of-text token.
    """
    with np.errstate(invalid="ignore"):
        tokens = array.astype(np.int64)
    if not np.array_equal(tokens, array):  # so it is for NaN and infinity, too
        raise TextError("The tokens are not all whole numbers; make them with tokenize.")
    return check_tokens(tokens, tower)


def end_of_text(tokens: nn.Variable, tower: TextTower) -> nn.Variable:
    """Where each row of [n, l] first has its end; NNabla's own functions, in half precision, take 49406 for 49407."""
    assert tower.required_token is not None
    if is_for_a_file():
        n, length = tokens.shape
        ends = F.reshape(1 - differs(tokens, tower.required_token, tower), (n, 1, length))
        seen = F.batch_matmul(ends, F.reshape(causal_mask(length), (1, length, length)), transpose_b=True)  # [n, 1, l]
        return F.sum(1 - F.minimum_scalar(seen, 1), axis=(1, 2))  # how many tokens have seen none
    return EndOfText(tower.required_token)(tokens)


def differs(tokens: nn.Variable, token: int, tower: TextTower) -> nn.Variable:
    """1 where one of the tokens [n, l] of a tower is another one than ``token``, else 0."""
    if not is_for_a_file():
        return F.not_equal_scalar(tokens, token)
    # Looked up: NNabla's converter takes comparisons for truth values and tokens for integers, and adds up neither.
    table = F.minimum_scalar(F.abs(F.arange(0, tower.vocabulary_size) - token), 1)
    return F.reshape(F.embed(tokens, F.reshape(table, (tower.vocabulary_size, 1))), tokens.shape)


def causal_mask(length: int) -> nn.Variable:
    """[1, 1, l, l], 1 where a token sees another: itself, and those in front of it."""
    if is_for_a_file():
        return F.reshape(not_behind(F.reshape(F.arange(0, length), (length, 1)), length), (1, 1, length, length))
    places = np.arange(length)
    return nn.Variable.from_numpy_array((places <= places[:, None]).astype(np.float32)[None, None])


def mask_until(positions: nn.Variable, length: int) -> nn.Variable:
    """[n, 1, 1, l], 1 for the tokens up to ``positions`` [n]."""
    n = positions.shape[0]
    if is_for_a_file():
        return F.reshape(not_behind(F.reshape(positions, (n, 1)), length), (n, 1, 1, length))
    row = np.broadcast_to(np.arange(length), (n, 1, 1, length)).astype(np.float32)
    end = F.broadcast(reshape(positions, (n, 1, 1, 1)), (n, 1, 1, length))
    return F.less_equal(nn.Variable.from_numpy_array(row), end)


def not_behind(positions: nn.Variable, length: int) -> nn.Variable:
    """[n, l], 1 up to each of the ``positions`` [n, 1] and 0 behind it, by arithmetic."""
    row = F.reshape(F.arange(0, length), (1, length))
    return F.maximum_scalar(F.minimum_scalar(positions - row + 1, 1), 0)


def section(x: nn.Variable, start: int, stop: int, axis: int) -> nn.Variable:
    """What is from ``start`` up to ``stop`` along one axis."""
    behind = x.shape[axis + 1 :]
    # Axes in front of those that are told stay whole, and so the batch does.
    starts, stops = (start, *(0,) * len(behind)), (stop, *behind)
    return F.slice(x, start=starts, stop=stops, step=(1,) * len(starts))


def chunk(x: nn.Variable, parts: int) -> list[nn.Variable]:
    """The last axis of [n, l, parts * d] in equal parts [n, l, d]."""
    width = x.shape[2] // parts
    return [section(x, part * width, (part + 1) * width, axis=2) for part in range(parts)]


def for_each(x: nn.Variable, token: nn.Variable) -> nn.Variable:
    """[d] as a token for each row of [n, l, d] -> [n, 1, d]; [1, 1, d] for a file, whose attention repeats it."""
    token = F.reshape(token, (1, 1, *token.shape))
    return token if is_for_a_file() else F.broadcast(token, (x.shape[0], *token.shape[1:]))


def put_in_front(x: nn.Variable, token: nn.Variable) -> nn.Variable:
    """[n, l, d] with ``token`` [d] in front of each row -> [n, 1 + l, d]."""
    if is_for_a_file():
        first = F.pad(F.reshape(token, (1, 1, *token.shape)), (0, x.shape[1], 0, 0))
        return F.pad(x, (1, 0, 0, 0)) + first
    return F.concatenate(for_each(x, token), x, axis=1)


def pick(x: nn.Variable, positions: Pooled) -> nn.Variable:
    """[n, l, d] at ``positions`` -> [n, d]."""
    if isinstance(positions, int):
        return reshape(section(x, positions, positions + 1, axis=1), (x.shape[0], x.shape[2]))
    if by_numpy():
        return Pick()(x, positions)
    n, length, width = x.shape
    # One-hot rows [n, 1, l] rather than indices: half precision cannot count the rows of a batch beyond 2048.
    if is_for_a_file():
        row = F.reshape(F.arange(0, length), (1, length))
        chosen = F.reshape(F.relu(1 - F.abs(F.reshape(positions, (n, 1)) - row)), (n, 1, length))
    else:
        chosen = F.one_hot(reshape(positions, (n, 1, 1)), (length,))
    return F.reshape(F.batch_matmul(chosen, x), (n, width))


def reshape(x: nn.Variable, shape: Shape) -> nn.Variable:
    """A copy of an intermediate result in another shape.

    NNabla's in-place reshape shares memory with its input, and ``auto_forward`` frees that input while the gradient of
    a Python function further on still needs it.
    """
    return F.reshape(x, shape, inplace=False)


def take(x: nn.Variable, positions: nn.Variable) -> nn.Variable:
    """[n, l, d] at ``positions`` [n, k], all of them different in a row -> [n, k, d]."""
    if by_numpy():
        return Take()(x, positions)
    return F.batch_matmul(F.one_hot(reshape(positions, (*positions.shape, 1)), (x.shape[1],)), x)


def swap_axes(x: nn.Variable) -> nn.Variable:
    """[n, l, d] -> [n, d, l]."""
    return SwapAxes()(x) if by_numpy() else F.transpose(x, (0, 2, 1))


def on_cpu() -> bool:
    """Whether the current context computes on the CPU."""
    return all(backend.startswith("cpu") for backend in nn.get_current_context().backend)


def single_precision(context: nn.Context) -> nn.Context:
    """The same device without half precision: there a small variance to the power of -3/2 is infinite."""
    return nn.Context([name for name in context.backend if "half" not in name], context.array_class, context.device_id)


class Function(PythonFunction):
    """A function with one result, whose gradient depends on its inputs."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def min_outputs(self) -> int:
        return 1

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return True


class ArrayFunction(Function):
    """A function of NumPy arrays with its gradient; one object serves one place of one graph."""

    def __call__(self, *inputs: nn.Variable) -> nn.Variable:
        """The result; where it is wanted at once and without gradient, outside of NNabla's graph.

        NNabla takes about a millisecond to put a Python function into its graph.
        """
        if not (nn.get_auto_forward() and parameter.current_no_grad):
            return super().__call__(*inputs)
        result = nn.Variable(self.shape(*(variable.shape for variable in inputs)))
        self.compute(result.data.get_data("w"), *(variable.data.get_data("r") for variable in inputs))
        return result

    def setup_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].reset_shape(self.shape(*(variable.shape for variable in inputs)), True)

    def forward_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        self.compute(outputs[0].data.get_data("w"), *(variable.data.get_data("r") for variable in inputs))

    def backward_impl(
        self, inputs: list[nn.Variable], outputs: list[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        arrays = [variable.data.get_data("r") for variable in inputs]
        gradients = self.gradients(outputs[0].grad.get_data("r"), propagate_down, *arrays)
        for variable, gradient, wanted, add in zip(inputs, gradients, propagate_down, accum):
            if wanted:
                target = variable.grad.get_data("rw" if add else "w")
                if add:
                    target += gradient
                else:
                    target[...] = gradient

    def shape(self, *shapes: Shape) -> Shape:
        """The shape of the result: that of the first input."""
        return shapes[0]

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        """Write the result into ``result``."""
        raise AssertionError("each function defines its computation")

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        """The gradient of each input, given that of the result; None where it is not ``wanted``."""
        raise AssertionError("each function defines its gradients")


class Recomputed(Function):
    """A block that keeps its inputs alone: the backward pass computes it again, with all that its gradient needs.

    Args:
        block: adds to the gradients of its own parameters.
        others: its inputs beside the first, which get no gradient.
        result: what it has computed.
    """

    def __init__(
        self, block: Callable[..., nn.Variable], others: Sequence[nn.Variable | None], result: nn.Variable
    ) -> None:
        super().__init__()
        self.block, self.others = block, others
        self.result = result
        self.context = nn.get_current_context()

    def setup_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].reset_shape(self.result.shape, True)

    def forward_impl(self, inputs: list[nn.Variable], outputs: list[nn.Variable]) -> None:
        outputs[0].data.copy_from(self.result.data)
        del self.result

    def backward_impl(
        self, inputs: list[nn.Variable], outputs: list[nn.Variable], propagate_down: list[bool], accum: list[bool]
    ) -> None:
        x = nn.Variable(inputs[0].shape, need_grad=True)
        x.data = inputs[0].data
        x.grad.zero()
        with SWITCHES, nn.context_scope(self.context), nn.auto_forward():
            result = self.block(x, *self.others)
        result.backward(outputs[0].grad, clear_buffer=True)
        if propagate_down[0]:
            target = inputs[0].grad
            if accum[0]:
                target += x.grad
            else:
                target.copy_from(x.grad)


class Linear(ArrayFunction):
    """``x @ W`` or ``x @ W.T``, plus a bias."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed

    def shape(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:-1], shapes[1][0 if self.transposed else 1])

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, weight = arrays[:2]
        x = x.reshape(-1, x.shape[-1])
        result = result.reshape(len(x), result.shape[-1])
        np.matmul(x, weight.T if self.transposed else weight, out=result)
        if len(arrays) == 3:
            in_chunks(lambda rows: np.add(rows, arrays[2], out=rows), result)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, weight = arrays[:2]
        gradient = gradient.reshape(-1, gradient.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        dx = dweight = dbias = None
        if wanted[0]:
            dx = (gradient @ (weight if self.transposed else weight.T)).reshape(x.shape)
        if wanted[1]:
            dweight = gradient.T @ flat if self.transposed else flat.T @ gradient
        if len(arrays) == 3 and wanted[2]:
            dbias = gradient.sum(axis=0)
        return [dx, dweight, dbias][: len(arrays)]


class Add(ArrayFunction):
    """The sum of two inputs of one shape."""

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        in_chunks(lambda x, y, rows: np.add(x, y, out=rows), *(a.reshape(-1, a.shape[-1]) for a in (*arrays, result)))

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        return [gradient, gradient]


class LayerNorm(ArrayFunction):
    """Normalisation of the last axis, then gain and offset."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, weight, bias = arrays

        def compute(x: np.ndarray, result: np.ndarray) -> None:
            np.multiply(self._normalized(x)[0], weight, out=result)
            result += bias

        in_chunks(compute, x.reshape(-1, x.shape[-1]), result.reshape(-1, x.shape[-1]))

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, weight, _ = arrays
        width = len(weight)
        normalized, deviation = self._normalized(x.reshape(-1, width))
        gradient = gradient.reshape(-1, width)
        product = gradient * normalized
        dweight, dbias = product.sum(axis=0), gradient.sum(axis=0)
        dx = gradient * weight
        dx -= (gradient @ weight / width)[:, None]
        normalized *= (product @ weight / width)[:, None]
        dx -= normalized
        dx /= deviation
        return [dx.reshape(x.shape), dweight, dbias]

    def _normalized(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1] + self.epsilon)
        x /= deviation
        return x, deviation


class BatchNorm(ArrayFunction):
    """Normalisation of each channel of [n, c, h, w] over the batch, then gain and offset [c].

    NNabla's own takes the variance as a difference of two means, which loses all digits of a channel whose mean is
    large beside its spread.

    Args:
        mean, variance: running statistics [c], which each pass moves; the variance by n / (n - 1) times that of the
            batch.
        momentum: the share of the batch in them.
    """

    def __init__(self, mean: nn.Variable, variance: nn.Variable, momentum: float, epsilon: float) -> None:
        super().__init__()
        self.mean, self.variance, self.momentum, self.epsilon = mean, variance, momentum, epsilon

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, weight, bias = arrays
        mean, variance, normalized, _ = self._normalized(x)
        np.multiply(normalized, weight[:, None, None], out=result)
        result += bias[:, None, None]
        n = x.size // len(weight)
        for running, value in ((self.mean, mean), (self.variance, variance * (n / max(n - 1, 1)))):
            array = running.data.get_data("rw")
            array += self.momentum * (value - array)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, weight, _ = arrays
        _, _, normalized, deviation = self._normalized(x)
        product = gradient * normalized
        dweight, dbias = product.sum(axis=(0, 2, 3)), gradient.sum(axis=(0, 2, 3))
        n = x.size // len(weight)
        dx = gradient - (dbias / n)[:, None, None]
        normalized *= (dweight / n)[:, None, None]
        dx -= normalized
        dx *= (weight / deviation)[:, None, None]
        return [dx, dweight, dbias]

    def _normalized(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mean [c] and variance [c] of the batch, ``x`` normalised, and what it was divided by [c]."""
        mean = x.mean(axis=(0, 2, 3), dtype=np.float64).astype(x.dtype)
        x = x - mean[:, None, None]
        variance = np.einsum("nchw,nchw->c", x, x) / (x.size // len(mean))
        deviation = np.sqrt(variance + self.epsilon)
        x /= deviation[:, None, None]
        return mean, variance, x, deviation


class QuickGELU(ArrayFunction):
    """x * sigmoid(1.702 x)."""

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        def compute(x: np.ndarray, result: np.ndarray) -> None:
            np.multiply(x, self._sigmoid(x), out=result)

        width = result.shape[-1]
        in_chunks(compute, arrays[0].reshape(-1, width), result.reshape(-1, width))

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x = arrays[0]
        sigmoid = self._sigmoid(x)
        slope: np.ndarray = 1 - sigmoid
        slope *= x
        slope *= np.float32(1.702)
        slope += 1
        slope *= sigmoid
        slope *= gradient
        return [slope]

    @staticmethod
    def _sigmoid(x: np.ndarray) -> np.ndarray:
        result = x * np.float32(-1.702)
        # exp of a large number is infinity, and 1 over it is the right 0.
        with np.errstate(over="ignore"):
            np.exp(result, out=result)
        result += 1
        return np.reciprocal(result, out=result)


class Attend(ArrayFunction):
    """Multi-head attention; the probabilities are kept for the gradient."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        q, k, v, *masks = arrays
        shape = len(q), self.heads, q.shape[1], k.shape[1]
        mask = np.broadcast_to(masks[0] if masks else np.float32(1), shape)
        self.probabilities = np.empty(shape, q.dtype)
        in_chunks(self._attend, q, k, v, mask, self.probabilities, result)

    def _attend(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scores: np.ndarray, result: np.ndarray
    ) -> None:
        q, k, v, result = (self._split(x) for x in (q, k, v, result))
        np.matmul(q * np.float32(q.shape[-1] ** -0.5), k.transpose(0, 1, 3, 2), out=scores)  # [n, heads, q, l]
        np.copyto(scores, -np.inf, where=mask == 0)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        np.matmul(scores, v, out=result)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        results = [np.empty_like(x) for x in arrays[:3]]
        self._propagate(gradient, arrays[:3], results)
        return [*results, None][: len(arrays)]

    def _propagate(self, gradient: np.ndarray, inputs: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        """Write the gradients of q, k and v into ``results``."""
        q, k, v = (self._split(x) for x in inputs)
        dq, dk, dv = (self._split(x) for x in results)
        gradient = self._split(gradient)
        np.matmul(self.probabilities.transpose(0, 1, 3, 2), gradient, out=dv)
        dscores = gradient @ v.transpose(0, 1, 3, 2)
        dscores -= np.einsum("nhql,nhql->nhq", dscores, self.probabilities)[..., None]
        dscores *= self.probabilities
        dscores *= np.float32(q.shape[-1] ** -0.5)
        np.matmul(dscores, k, out=dq)
        np.matmul(dscores.transpose(0, 1, 3, 2), q, out=dk)

    def _split(self, x: np.ndarray) -> np.ndarray:
        """A view [n, heads, l, d / heads] of [n, l, d]."""
        n, length, width = x.shape
        return x.reshape(n, length, self.heads, width // self.heads).transpose(0, 2, 1, 3)


class AttendPacked(Attend):
    """Multi-head attention of queries, keys and values that are next to each other in [n, l, 3 * d]."""

    def shape(self, *shapes: Shape) -> Shape:
        n, length, width = shapes[0]
        return n, length, width // 3

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        super().compute(result, *np.split(arrays[0], 3, axis=-1), *arrays[1:])

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        result = np.empty_like(arrays[0])
        self._propagate(gradient, np.split(arrays[0], 3, axis=-1), np.split(result, 3, axis=-1))
        return [result, None][: len(arrays)]


class EmbedPatches(ArrayFunction):
    """A convolution whose stride is its size, as one matrix product."""

    def shape(self, *shapes: Shape) -> Shape:
        (n, _, height, width), (outputs, _, size, _) = shapes
        return n, (height // size) * (width // size), outputs

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, weight = arrays
        np.matmul(self._patches(x, weight), weight.reshape(len(weight), -1).T, out=result.reshape(-1, len(weight)))

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, weight = arrays
        gradient = gradient.reshape(-1, len(weight))
        dx = dweight = None
        if wanted[0]:
            n, channels, height, width = x.shape
            size = weight.shape[2]
            dx = gradient @ weight.reshape(len(weight), -1)
            dx = dx.reshape(n, height // size, width // size, channels, size, size)
            dx = dx.transpose(0, 3, 1, 4, 2, 5).reshape(x.shape)
        if wanted[1]:
            dweight = (gradient.T @ self._patches(x, weight)).reshape(weight.shape)
        return [dx, dweight]

    @staticmethod
    def _patches(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        n, channels, height, width = x.shape
        size = weight.shape[2]
        x = x.reshape(n, channels, height // size, size, width // size, size)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * size * size)  # [n * patches, 3 * p * p]


class CutPatches(ArrayFunction):
    """The pixels of each patch next to each other."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def shape(self, *shapes: Shape) -> Shape:
        ((n, channels, height, width),) = shapes
        return n, (height // self.size) * (width // self.size), self.size**2 * channels

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        cut = self._cut(arrays[0])
        result.reshape(cut.shape)[...] = cut

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        dx = np.empty_like(arrays[0])
        cut = self._cut(dx)
        cut[...] = gradient.reshape(cut.shape)
        return [dx]

    def _cut(self, x: np.ndarray) -> np.ndarray:
        """A view [n, r / size, r / size, size, size, 3] of [n, 3, r, r]."""
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height // self.size, self.size, width // self.size, self.size)
        return x.transpose(0, 2, 4, 3, 5, 1)


class Pick(ArrayFunction):
    """One token of each row."""

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0][0], shapes[0][2]

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, positions = arrays
        result[...] = x[np.arange(len(x)), positions.astype(np.intp)]

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, positions = arrays
        dx = np.zeros_like(x)
        dx[np.arange(len(x)), positions.astype(np.intp)] = gradient
        return [dx, None]


class Take(ArrayFunction):
    """Several tokens of each row, none of them twice."""

    def shape(self, *shapes: Shape) -> Shape:
        return (*shapes[1], shapes[0][2])

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        x, positions = arrays
        result[...] = np.take_along_axis(x, positions.astype(np.intp)[:, :, None], axis=1)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        x, positions = arrays
        dx = np.zeros_like(x)
        np.put_along_axis(dx, positions.astype(np.intp)[:, :, None], gradient, axis=1)
        return [dx, None]


class SwapAxes(ArrayFunction):
    """The last two axes in the other order."""

    def shape(self, *shapes: Shape) -> Shape:
        n, length, width = shapes[0]
        return n, width, length

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        result[...] = arrays[0].transpose(0, 2, 1)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        return [gradient.transpose(0, 2, 1)]


class EndOfText(ArrayFunction):
    """The first position of a token in each row."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0][:1]

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        result[...] = (arrays[0] == self.token).argmax(axis=1)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        return [None]


class CheckTokens(ArrayFunction):
    """Tokens, copied if all of them can be used."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def compute(self, result: np.ndarray, *arrays: np.ndarray) -> None:
        result.fill(0)  # something that can be looked up: NNabla computes the rest of a graph before it raises
        result[...] = usable_tokens(arrays[0], self.tower)

    def gradients(self, gradient: np.ndarray, wanted: list[bool], *arrays: np.ndarray) -> Gradients:
        return [np.zeros_like(gradient)]
