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


def test_it_is_one_of_nnablas_modules(model, tmp_path):
    """Its parameters have NNabla-CLIP's names in a scope of its own, also as a part of another module."""
    names = {"visual/conv1/W", "visual/transformer/resblocks/0/attn/in_proj_W", "ln_final/b", "logit_scale"}
    found = model.get_parameters()
    assert names <= found.keys()
    assert len(found) == len(model.model.export())
    assert not names & nn.get_parameters().keys()

    class Whole(nn.Module):
        def __init__(self) -> None:
            self.encoder = model

        def call(self, image):
            return self.encoder.encode_image(image)

    whole, image = Whole(), model.preprocess_image(str(PICTURE))
    assert {f"@encoder/{name}" for name in names} <= whole.get_parameters().keys()
    with nn.auto_forward():
        assert np.array_equal(whole(image).d, model.encode_image(image).d)


def test_its_parameters_are_saved_and_loaded(tmp_path):
    one, two = clip.CLIP("shapes"), clip.CLIP(model_path="shapes")
    one.get_parameters()["visual/proj"].d *= 1.5
    graph = two.encode_image(two.preprocess_image(str(PICTURE)))  # which refers to the variables as they are
    one.save_parameters(str(tmp_path / "one.h5"))
    two.load_parameters(str(tmp_path / "one.h5"))
    graph.forward()
    expected = one.model.embed_image(one.preprocess_image(str(PICTURE)).d)
    assert difference(graph.d, expected) <= 1e-6 * np.abs(expected).max()
    with pytest.raises(ClipError, match=r"^the set of parameters.* visual\.proj has shape \(2, 3\)"):
        two.set_parameter("visual/proj", nn.Variable((2, 3)))
