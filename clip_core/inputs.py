"""Checks on what goes into a model: pixels and tokens, as shapes and numbers that any framework can give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_core.errors import ImageError, TextError
from clip_core.towers.parts import TextTower

# Normalised pixels lie between -1.8 and 2.2; the margin is for other means and deviations and for synthetic inputs.
MAX_PIXEL = 16.0

# What users call the frameworks whose tensors they may mix up, by the package of the tensor's type.
FRAMEWORKS = {"torch": "PyTorch", "paddle": "Paddle", "nnabla": "NNabla"}


def check_pixel_shape(shape: Sequence[int], resolution: int) -> None:
    """Refuse pixels that are not [n, 3, resolution, resolution].

    Raises:
        ImageError: naming both shapes.
    """
    found = tuple(shape)
    if len(found) == 4 and found[1:] == (3, resolution, resolution):
        return
    hint = ""
    if found == (3, resolution, resolution):
        hint = "; add a batch axis in front"
    elif found[-1:] == (3,):
        hint = "; the colour channels come first"
    raise ImageError(f"The pixels have shape {found}, expected (n, 3, {resolution}, {resolution}){hint}.")


def check_token_shape(shape: Sequence[int], tower: TextTower) -> None:
    """Refuse tokens that are not [n, up to context_length], or that are too few for the tower.

    Raises:
        TextError: naming both shapes.
    """
    found = tuple(shape)
    if len(found) != 2 or not tower.shortest_length <= found[1] <= tower.context_length:
        raise TextError(
            f"The tokens have shape {found}, expected (n, {tower.context_length}); make them with tokenize."
        )


def check_pixels(array: Any, resolution: int) -> np.ndarray:
    """An array of pixels as every backend takes it: float32 [n, 3, resolution, resolution], contiguous; n may be 0.

    Args:
        array: float16, float32 or float64 in any memory layout; copied only if it has to be converted.

    Raises:
        ImageError: not such an array, not finite, or with values that no preprocessing gives.
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(_not_an_array("pixels", array, "a float32 array", "the preprocessing"))
    if array.dtype.name not in ("float16", "float32", "float64"):  # in either byte order
        hint = "pass the pictures through preprocess" if array.dtype == np.uint8 else "convert them to float32"
        raise ImageError(f"The pixels have dtype {array.dtype}, expected float32, float16 or float64; {hint}.")
    check_pixel_shape(array.shape, resolution)
    with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite and is refused next
        pixels = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(pixels).all(axis=(1, 2, 3))
    if not finite.all():
        raise ImageError(
            f"The pixels of picture {np.argmin(finite)} (counted from 0) are not all finite float32 numbers; "
            "find out where the NaN or infinity comes from."
        )
    largest = np.abs(pixels).max(initial=0)
    if largest > MAX_PIXEL:
        raise ImageError(
            f"The pixels reach {largest:g}, expected normalised ones from -2 to 2.5; if they run from 0 to 255, pass "
            "the pictures through preprocess."
        )
    return pixels


def check_tokens(tokens: Any, tower: TextTower) -> np.ndarray:
    """An array of tokens as every backend takes it: int64 [n, up to context_length], contiguous; n may be 0.

    Args:
        tokens: int32 or int64 in any memory layout; copied only if it has to be converted.
        tower: what the tokens are for.

    Raises:
        TextError: not such an array, a token outside the vocabulary, a text without its end-of-text token, or a text of
            padding alone.
    """
    if not isinstance(tokens, np.ndarray):
        raise TextError(_not_an_array("tokens", tokens, "an int64 array", "the tokenize"))
    if tokens.dtype.name not in ("int32", "int64"):
        raise TextError(f"The tokens have dtype {tokens.dtype}, expected int32 or int64; make them with tokenize.")
    check_token_shape(tokens.shape, tower)
    for token in (int(tokens.min()), int(tokens.max())) if len(tokens) else ():
        if not 0 <= token < tower.vocabulary_size:
            raise TextError(
                f"Token {token} is outside the vocabulary of {tower.vocabulary_size}; make the tokens with this "
                "model's own tokenize."
            )
    end = tower.required_token
    ended = (tokens == end).any(axis=1) if end is not None else np.ones(len(tokens), bool)
    if not ended.all():
        raise TextError(
            f"Text {np.argmin(ended)} (counted from 0) does not have the end-of-text token {end}; make the tokens with "
            "this model's own tokenize, and keep that one when cutting a text short."
        )
    padding = tower.padding_token
    filled = (tokens != padding).any(axis=1) if padding is not None else np.ones(len(tokens), bool)
    if not filled.all():
        raise TextError(
            f"Text {np.argmin(filled)} (counted from 0) is nothing but the padding token {padding}; make the tokens "
            "with this model's own tokenize."
        )
    return np.ascontiguousarray(tokens, dtype=np.int64)


def _not_an_array(what: str, found: object, expected: str, maker: str) -> str:
    """The sentence for what is neither an array nor a tensor of the model's own framework."""
    framework = FRAMEWORKS.get(type(found).__module__.partition(".")[0])
    if framework is None:
        return f"The {what} were given as {type(found).__name__}; give {expected}."
    return (
        f"The {what} are a tensor of {framework}, which the model's framework cannot use; make them with {maker} that "
        f"belongs to this model, or give {expected}."
    )
