"""NNabla-CLIP's class `clip.CLIP`: a picture and some texts in, probabilities out."""

from __future__ import annotations

import io
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

import clip
from clip.api import RESOURCES
from clip_core import tolerances
from clip_core.errors import ClipError, ImageError
from clip_core.similarity import probabilities
from tests.tolerances import difference

PICTURE = RESOURCES / "pictures" / "a-large-solid-red-circle.png"
TEXTS = ["a red circle", "a blue circle", "a red star"]


@pytest.fixture(scope="module")
def model():
    return clip.CLIP("shapes")


def test_one_picture_and_some_texts(model):
    found = model.run(str(PICTURE), TEXTS)
    assert found.shape == (3,)
    assert found.argmax() == 0
    assert found.sum() == pytest.approx(1)
    assert np.array_equal(model.run(io.BytesIO(Path(PICTURE).read_bytes()), TEXTS), found)


def test_parts_of_a_run(model):
    loaded, _ = clip.load("shapes", backend="numpy")
    with nn.auto_forward():
        image, text = model.preprocess_image(str(PICTURE)), model.preprocess_texts(TEXTS)
        per_image, per_text = model.logits(image, text)
        features = model.encode_image(image), model.encode_text(text)
        found = model.probabilities(*features)
        again = model(image, text)
    expected, _ = loaded(image.d, text.d.astype(np.int64))
    assert (image.shape, text.shape, per_text.shape) == ((1, 3, 64, 64), (3, 77), (3, 1))
    assert difference(per_image.d, expected) < tolerances.logit_bound(100)
    assert difference(found.d, probabilities(expected)) < tolerances.logit_bound(100)
    assert np.array_equal(again.d, found.d)
    assert difference(features[0].d, loaded.embed_image(image.d)) < 1e-4


def test_a_static_graph(model):
    image, text = model.preprocess_image(str(PICTURE)), model.preprocess_texts(TEXTS)
    graph = model(image, text)
    graph.forward()
    assert difference(graph.d[0], model.run(str(PICTURE), TEXTS)) < 1e-5


def test_what_is_not_there(model, tmp_path):
    with pytest.raises(ClipError, match=r"^There is no file .*ViT-L-14.h5"):
        clip.CLIP(str(tmp_path / "ViT-L-14.h5"))
    with pytest.raises(ImageError):
        model.run(str(tmp_path / "nothing.png"), TEXTS)
