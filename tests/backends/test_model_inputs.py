"""What a model accepts, the sentence for what it does not, and that its two savings are exact."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest

from clip_core.errors import ImageError, TextError
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import learn
from tests import tolerances
from tests.models import (
    END_OF_TEXT,
    RESNET,
    VIT,
    VOCABULARY_SIZE,
    logits_of,
    sample_pixels,
    sample_tokens,
    sample_weights,
)
from tests.requested import FRAMEWORKS, load_backend

BOTH = [pytest.param(VIT, id="vit"), pytest.param(RESNET, id="resnet")]
ROUNDING = 1e-5  # of features up to 4; another batch makes BLAS sum in another order


@pytest.fixture(scope="module")
def vit(backend):
    return backend.CLIP(VIT, sample_weights(VIT), device="cpu")


def under_auto_forward(model) -> AbstractContextManager[None]:
    """What makes NNabla compute at once, as the others do."""
    if model.backend != "nnabla":
        return nullcontext()
    import nnabla

    return nnabla.auto_forward()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_both_kinds_of_tokens(backend, vit, dtype):
    tokens = sample_tokens(VIT)
    assert np.array_equal(vit.embed_text(tokens.astype(dtype)), vit.embed_text(tokens))
    tensor = backend.to_tensor(tokens.astype(dtype))
    assert np.array_equal(backend.to_array(tensor), tokens)


def test_arrays_in_any_memory_layout(vit):
    pixels, tokens = sample_pixels(VIT), sample_tokens(VIT)
    reversed_pixels, reversed_tokens = pixels[::-1], tokens[:, ::-1].copy()[:, ::-1]
    fixed = np.asfortranarray(pixels)
    fixed.flags.writeable = False
    assert tolerances.difference(vit.embed_image(reversed_pixels)[::-1], vit.embed_image(pixels)) < ROUNDING
    assert np.array_equal(vit.embed_image(fixed), vit.embed_image(pixels))
    assert np.array_equal(vit.embed_text(reversed_tokens), vit.embed_text(tokens))


def test_embeddings_are_float32_arrays(vit):
    for features in (vit.embed_image(sample_pixels(VIT)), vit.embed_text(sample_tokens(VIT))):
        assert isinstance(features, np.ndarray)
        assert features.dtype == np.float32
    assert vit.embed_image(sample_pixels(VIT).astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("architecture", BOTH)
def test_nothing_in_nothing_out(backend, architecture):
    model = backend.CLIP(architecture, sample_weights(architecture), device="cpu")
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    for features in (model.embed_image(pixels[:0]), model.embed_text(tokens[:0])):
        assert (features.shape, features.dtype) == ((0, architecture.embed_dim), np.float32)
    for images, texts in ((pixels[:0], tokens), (pixels, tokens[:0]), (pixels[:0], tokens[:0])):
        per_image, per_text = logits_of(model, images, texts)
        assert per_image.shape == (len(images), len(texts))
        assert per_text.shape == (len(texts), len(images))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (sample_pixels(VIT)[0], "have shape (3, 64, 64), expected (n, 3, 64, 64); add a batch axis in front."),
        (np.zeros((1, 3, 32, 32), np.float32), "have shape (1, 3, 32, 32), expected (n, 3, 64, 64)."),
        (np.zeros((1, 64, 64, 3), np.float32), "have shape (1, 64, 64, 3), expected (n, 3, 64, 64); the colour"),
        (np.zeros((1, 3, 64, 64), np.uint8), "have dtype uint8, expected float32"),
        (np.full((1, 3, 64, 64), 255.0), "reach 255, expected normalised ones"),
        (np.full((1, 3, 64, 64), np.nan), "of picture 0 (counted from 0) are not all finite"),
        ([[1.0]], "were given as list; give a float32 array."),
    ],
    ids=["no batch", "resolution", "channels last", "bytes", "not normalised", "NaN", "list"],
)
def test_unfit_pixels(vit, pixels, message):
    with pytest.raises(ImageError) as caught:
        vit.embed_image(pixels)
    assert str(caught.value).startswith(f"The pixels {message}")


UNFIT_TOKENS = [
    pytest.param([[0, VOCABULARY_SIZE]], "Token 300 is outside the vocabulary of 300; make", id="too high"),
    pytest.param([[-1, END_OF_TEXT]], "Token -1 is outside the vocabulary of 300; make", id="negative"),
    pytest.param([[1] * 16 + [END_OF_TEXT]], "The tokens have shape (1, 17), expected (n, 16); make", id="too long"),
    pytest.param([END_OF_TEXT], "The tokens have shape (1,), expected (n, 16); make", id="no batch"),
    pytest.param([[]], "The tokens have shape (1, 0), expected (n, 16); make", id="no tokens"),
]


@pytest.mark.parametrize(("tokens", "message"), UNFIT_TOKENS)
def test_unfit_tokens(vit, tokens, message):
    with pytest.raises(TextError) as caught:
        vit.embed_text(np.array(tokens, np.int64))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, bool])
def test_tokens_of_another_type(vit, dtype):
    with pytest.raises(TextError) as caught:
        vit.embed_text(sample_tokens(VIT).astype(dtype))
    assert str(caught.value) == (
        f"The tokens have dtype {np.dtype(dtype)}, expected int32 or int64; make them with tokenize."
    )


def test_text_without_its_end(vit):
    with pytest.raises(TextError, match=r"^Text 1 \(counted from 0\) does not have the end-of-text token 299"):
        vit.embed_text(np.array([[5, END_OF_TEXT], [5, 6]]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [*UNFIT_TOKENS, pytest.param([[5, END_OF_TEXT], [5, 6]], "Text 1 (counted from 0) does not have", id="no end")],
)
def test_unfit_tokens_as_tensors(framework, tokens, message):
    """Tokens of another vocabulary have no token of this number, or larger ones."""
    model = framework.CLIP(VIT, sample_weights(VIT), device="cpu")
    tensor = framework.to_tensor(np.array(tokens, np.int64))
    with under_auto_forward(model), pytest.raises(TextError) as caught:
        model.encode_text(tensor)
    assert str(caught.value).startswith(message)


def test_tensors_of_another_framework(backend):
    """Each model says what it was given, and takes the same numbers as an array."""
    model = backend.CLIP(VIT, sample_weights(VIT), device="cpu")
    others = [load_backend(name) for name in FRAMEWORKS if name != model.backend]
    for other in others:
        name = {"torch": "PyTorch", "paddle": "Paddle", "nnabla": "NNabla"}[other.CLIP.backend]
        with pytest.raises(TextError) as caught:
            model.encode_text(other.to_tensor(sample_tokens(VIT)))
        assert str(caught.value) == (
            f"The tokens are a tensor of {name}, which the model's framework cannot use; make them with the tokenize "
            "that belongs to this model, or give an int64 array."
        )
        with pytest.raises(ImageError) as caught:
            model.encode_image(other.to_tensor(sample_pixels(VIT)))
        assert str(caught.value) == (
            f"The pixels are a tensor of {name}, which the model's framework cannot use; make them with the "
            "preprocessing that belongs to this model, or give a float32 array."
        )


def test_each_model_has_its_own_tokenizer(backend):
    """Models of two vocabularies side by side; a text is in each of them what its own merges make of it."""
    texts = ["a red circle", "blue"]
    for merges in (learn(["a red circle"], 4), learn(["blue blue blue"], 6)):
        expected = BytePairTokenizer(merges)
        text = replace(VIT.text, context_length=20, vocabulary_size=expected.vocabulary_size, end_of_text=expected.end)
        architecture = replace(VIT, text=text)
        model = backend.CLIP(architecture, sample_weights(architecture), device="cpu", vocabulary=merges)
        tokens = model.tokenize(texts)
        assert isinstance(tokens, type(backend.to_tensor(expected.tokenize(texts))) | np.ndarray)
        assert np.array_equal(np.asarray(tokens), expected.tokenize(texts, 20))
        assert np.array_equal(
            np.asarray(model.tokenize("a red red circle", 7, truncate=True)),
            expected.tokenize("a red red circle", 7, True),
        )
        model.embed_text(np.asarray(tokens))
    with pytest.raises(TextError, match="has a vocabulary of 300 tokens and does not carry it"):
        backend.CLIP(VIT, sample_weights(VIT), device="cpu").tokenize(texts)


def test_unfit_tensors(framework):
    """The framework's own tensors are checked by what costs no transfer: shape and type."""
    model = framework.CLIP(VIT, sample_weights(VIT), device="cpu")
    if model.backend != "nnabla":  # whose variables have no type of their own
        with pytest.raises(TextError, match=r"^The tokens have dtype .*float32, expected int32 or int64; make"):
            model.encode_text(framework.to_tensor(np.array([[1.0]], np.float32)))
        with pytest.raises(ImageError, match=r"^The pixels have dtype .*uint8, expected float32; pass"):
            model.encode_image(framework.to_tensor(np.zeros((1, 3, 64, 64), np.uint8)))
    with pytest.raises(ImageError, match=r"^The pixels have shape \(1, 3, 8, 8\), expected \(n, 3, 64, 64\)"):
        model.encode_image(framework.to_tensor(np.zeros((1, 3, 8, 8), np.float32)))


def test_what_follows_the_end_of_text_does_not_matter(vit):
    """Zeros, other tokens, or the end-of-text token again, as some tokenizers pad."""
    tokens = sample_tokens(VIT)
    ends = tokens.argmax(axis=1)
    behind = np.arange(tokens.shape[1]) > ends[:, None]
    for padding in (17, END_OF_TEXT):
        padded = np.where(behind, padding, tokens)
        assert not np.array_equal(padded, tokens)
        assert np.array_equal(vit.embed_text(padded), vit.embed_text(tokens))
    changed = tokens.copy()
    changed[:, 0] += 1
    assert tolerances.difference(vit.embed_text(changed), vit.embed_text(tokens)) > 0.01


def test_the_batch_does_not_matter(vit):
    """Alone, a text is computed to its own end; beside a longest one, in the full length."""
    tokens, pixels = sample_tokens(VIT), sample_pixels(VIT)
    together = vit.embed_text(tokens)
    for row, features in zip(tokens, together):
        assert tolerances.difference(vit.embed_text(row[None])[0], features) < ROUNDING
        end = int(row.argmax())
        assert tolerances.difference(vit.embed_text(row[None, : end + 1])[0], features) < ROUNDING
    together = vit.embed_image(pixels)
    for image, features in zip(pixels, together):
        assert tolerances.difference(vit.embed_image(image[None])[0], features) < ROUNDING


def test_text_is_computed_to_its_longest_end_only(vit):
    tokens = sample_tokens(VIT)[:2]
    longest = int(tokens.argmax(axis=1).max()) + 1
    assert longest < VIT.text.context_length
    layers = vit.layers(sample_pixels(VIT), tokens)
    assert layers["transformer.resblocks.0"].shape == (2, longest, VIT.text.width)


def test_the_last_block_is_computed_for_the_pooled_token_only(vit):
    layers = vit.layers(sample_pixels(VIT), sample_tokens(VIT))
    assert layers["visual.transformer.resblocks.1"].shape == (3, VIT.image.width)
    assert layers["transformer.resblocks.2"].shape == (4, VIT.text.width)


@pytest.mark.parametrize("tower", ["visual.proj", "text_projection"])
def test_a_feature_of_length_0_has_no_cosine(backend, tower):
    weights = sample_weights(VIT)
    weights[tower] = np.zeros_like(weights[tower])
    model = backend.CLIP(VIT, weights, device="cpu")
    for logits in logits_of(model, sample_pixels(VIT), sample_tokens(VIT)):
        assert np.isnan(logits).all()
