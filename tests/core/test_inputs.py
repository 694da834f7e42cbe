"""What models accept as pixels and tokens, and the sentence that each fault gets."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import ImageError, TextError
from clip_core.inputs import check_pixels, check_tokens
from clip_core.towers.text_transformer import TextTransformer

TEXTS = np.array([[7, 1, 9, 0], [7, 2, 3, 9]])  # of a vocabulary of 10 whose end-of-text token is 9


def tower(context_length: int, vocabulary_size: int, end: int | None = None) -> TextTransformer:
    return TextTransformer(context_length, vocabulary_size, 64, 2, 1, end_of_text=end)  # type: ignore[arg-type]


def random_pixels(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_keep_their_values(dtype):
    found = check_pixels(random_pixels(dtype), 8)
    assert found.dtype == np.float32
    assert np.array_equal(found, random_pixels(dtype).astype(np.float32))


def test_float32_pixels_are_not_copied():
    array = random_pixels()
    assert check_pixels(array, 8) is array


def test_no_pixels_are_pixels():
    assert check_pixels(np.empty((0, 3, 8, 8), np.float32), 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_tokens_keep_their_values(dtype):
    found = check_tokens(TEXTS.astype(dtype), tower(4, 10))
    assert found.dtype == np.int64
    assert np.array_equal(found, TEXTS)
    assert np.array_equal(check_tokens(TEXTS.astype(dtype), tower(77, 10)), TEXTS)


def test_tokens_in_any_memory_layout():
    strided = np.repeat(np.repeat(TEXTS, 2, axis=0), 3, axis=1)[::2, ::3]
    strided.flags.writeable = False
    found = check_tokens(strided, tower(4, 10))
    assert np.array_equal(found, TEXTS)
    assert found.flags.c_contiguous


def test_no_tokens_are_tokens():
    assert check_tokens(np.empty((0, 4), np.int64), tower(4, 10)).shape == (0, 4)


def test_end_of_text_may_be_another_token():
    assert np.array_equal(check_tokens(TEXTS, tower(4, 20, end=9)), TEXTS)
    with pytest.raises(TextError, match=r"^Text 0 \(counted from 0\) does not have the end-of-text token 19;"):
        check_tokens(TEXTS, tower(4, 20))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[7, 9]], "The tokens were given as list; give an int64 array."),
        (TEXTS.astype(np.float32), "The tokens have dtype float32, expected int32 or int64; make them with tokenize."),
        (TEXTS > 3, "The tokens have dtype bool, expected int32 or int64; make them with tokenize."),
        (TEXTS[0], "The tokens have shape (4,), expected (n, 4); make them with tokenize."),
        (np.full((1, 5), 9), "The tokens have shape (1, 5), expected (n, 4); make them with tokenize."),
        (np.empty((1, 0), np.int64), "The tokens have shape (1, 0), expected (n, 4); make them with tokenize."),
        (
            np.array([[7, 10]]),
            "Token 10 is outside the vocabulary of 10; make the tokens with this model's own tokenize.",
        ),
        (
            np.array([[-1, 9]], np.int32),
            "Token -1 is outside the vocabulary of 10; make the tokens with this model's own tokenize.",
        ),
        (
            np.array([[7, 9], [7, 8]]),
            "Text 1 (counted from 0) does not have the end-of-text token 9; make the tokens with this model's own "
            "tokenize, and keep that one when cutting a text short.",
        ),
    ],
)
def test_each_fault_of_tokens_has_its_sentence(tokens, message):
    with pytest.raises(TextError) as caught:
        check_tokens(tokens, tower(4, 10))
    assert str(caught.value) == message


def test_overflow_to_infinity_is_not_silent():
    huge = random_pixels(np.float64)
    huge[1, 2, 3, 4] = 1e300
    with pytest.raises(ImageError, match=r"^The pixels of picture 1 \(counted from 0\) are not all finite float32"):
        check_pixels(huge, 8)
