"""Checks on what goes into a model: pixels and tokens, as shapes and numbers that any framework can give."""

from __future__ import annotations

from collections.abc import Sequence

from clip_core.errors import ImageError, TextError


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


def check_token_shape(shape: Sequence[int], context_length: int) -> None:
    """Refuse tokens that are not [n, up to context_length].

    Raises:
        TextError: naming both shapes.
    """
    found = tuple(shape)
    if len(found) != 2 or not 1 <= found[1] <= context_length:
        raise TextError(f"The tokens have shape {found}, expected (n, {context_length}); make them with tokenize.")


def check_token_ids(lowest: int, highest: int, vocabulary_size: int) -> None:
    """Refuse token ids outside the vocabulary, given the lowest and highest id of a batch.

    Raises:
        TextError: naming the id and the vocabulary's size.
    """
    for token in (lowest, highest):
        if not 0 <= token < vocabulary_size:
            raise TextError(
                f"Token {token} is outside the vocabulary of {vocabulary_size}; tokenize with this model's tokenizer."
            )
