"""Scores: zero-shot classification, CLIPScore, retrieval and filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clip
from clip_core.errors import TextError
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper


def test_logits_and_probabilities():
    per_image, per_text = model()(PIXELS, TOKENS)
    expected = paper()(PIXELS, TOKENS)
    assert close(per_image, expected, 1e-3)
    assert torch.equal(per_text, per_image.T)
    assert close(per_image.softmax(dim=-1).sum(dim=-1), torch.ones(3), 1e-6)


def test_weights_of_a_zero_shot_classifier():
    """The mean over templates of normalised features, normalised again."""
    clip_model, judge = model(), paper()
    by_class = []
    for m in (clip_model, judge):
        features = F.normalize(m.encode_text(TOKENS), dim=-1)
        weights = F.normalize(features.mean(dim=0), dim=-1)
        by_class.append(m.logit_scale.exp() if m is clip_model else m.weights["logit_scale"].exp())
        by_class.append(weights)
    assert torch.equal(by_class[0], by_class[2])
    assert close(by_class[1], by_class[3], 1e-5)


def test_clip_score():
    clip_model, judge = model(), paper()

    def score(m) -> np.ndarray:
        with torch.no_grad():
            image, text = m.encode_image(PIXELS).float(), m.encode_text(TOKENS).float()
        image, text = (x.cpu().numpy() / np.linalg.norm(x.cpu().numpy(), axis=1, keepdims=True) for x in (image, text))
        return 2.5 * np.clip((image * text).sum(axis=1), 0, None)

    assert np.abs(score(clip_model) - score(judge)).max() < 1e-4
    half = score(model(precision="fp16"))
    assert np.abs(half - score(judge)).max() < 0.02
    assert not np.array_equal(half, score(judge))


def test_batches_and_single_examples():
    clip_model, expected = model(), paper().encode_image(PIXELS)
    assert close(torch.cat([clip_model.encode_image(pixels[None]) for pixels in PIXELS]), expected)
    assert close(clip_model.visual(PIXELS), expected)
    assert close(clip_model.visual(PIXELS.type(clip_model.dtype)), expected)


def test_real_pictures_and_texts():
    """The embedded model tells the picture's own label, through the functions and steps of OpenAI's readme."""
    from PIL import Image

    from clip.api import RESOURCES

    clip_model, preprocess = clip.load("shapes", device="cpu", backend="torch")
    image = preprocess(Image.open(RESOURCES / "pictures" / "a-large-solid-red-circle.png")).unsqueeze(0)
    text = clip.tokenize(["a red circle", "a blue circle", "a red star"]).to("cpu")
    with torch.no_grad():
        per_image, _ = clip_model(image, text)
        features = clip_model.encode_image(image)
        features /= features.norm(dim=-1, keepdim=True)
    assert per_image.softmax(dim=-1).cpu().numpy().argmax() == 0
    assert per_image.shape == (1, 3)


def test_texts_without_their_end_are_refused():
    with pytest.raises(TextError, match="does not have the end-of-text token"):
        model().encode_text(torch.zeros(1, 16, dtype=torch.long))
