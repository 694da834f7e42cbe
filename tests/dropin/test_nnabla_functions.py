"""What code for NNabla-CLIP does with the functions of the module: scopes, training loops, guidance of a generator."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import backends
import clip
import converters
from clip_core import tolerances
from clip_core.errors import ClipError, ImageError
from converters import ModelFile
from tests.models import VIT, sample_pixels, sample_tokens, sample_weights
from tests.tolerances import difference

pytestmark = pytest.mark.needs("nnabla")

PIXELS, TOKENS = sample_pixels(VIT, 3), sample_tokens(VIT, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two models of the same shapes."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        converters.write(ModelFile(sample_weights(VIT, seed), VIT), folder / f"{name}.h5")
    return folder


@pytest.fixture(autouse=True)
def empty_scope():
    nn.clear_parameters()
    yield
    nn.clear_parameters()


def expected(seed: int) -> np.ndarray:
    return backends.get("numpy").CLIP(VIT, sample_weights(VIT, seed))(PIXELS, TOKENS)[0]


def logits() -> np.ndarray:
    with nn.auto_forward():
        return clip.logits(PIXELS, TOKENS)[0].d.copy()


def test_the_scope_chooses_the_model(files):
    for name in ("one", "two"):
        with nn.parameter_scope(name):
            clip.load(files / f"{name}.h5")
    assert np.ptp(expected(0) - expected(1)) > 1
    for name, seed in (("one", 0), ("two", 1), ("one", 0)):
        with nn.parameter_scope(name):
            assert difference(logits(), expected(seed)) <= tolerances.logit_bound(100)
    assert difference(logits(), expected(1)) <= tolerances.logit_bound(100)  # outside of both, the last one


def test_values_that_nnabla_loads_are_the_models(files):
    clip.load(files / "one.h5")
    nn.load_parameters(str(files / "two.h5"))
    assert difference(logits(), expected(1)) <= tolerances.logit_bound(100)


def test_parameters_that_are_no_models_are_refused(files):
    clip.load(files / "one.h5")
    nn.clear_parameters()
    nn.load_parameters(str(files / "two.h5"))
    with pytest.raises(
        ClipError, match=r"^The parameters in NNabla's scope are not those of a model that clip\.load has"
    ):
        logits()
    clip.load(files / "one.h5")
    nn.parameter.set_parameter("visual/proj", nn.Variable(nn.get_parameters()["visual/proj"].shape))
    with pytest.raises(
        ClipError, match=r"^The parameter visual/proj in NNabla's scope is not the model's own any more; set"
    ):
        clip.encode_image(PIXELS)


def test_a_training_loop_over_a_static_graph(files):
    """The features come from the module, the loss and the temperature from NNabla's scope."""
    clip.load(files / "one.h5")
    image, text = nn.Variable(PIXELS.shape), nn.Variable(TOKENS.shape)
    features = [clip.encode_image(image), clip.encode_text(text)]
    for each in features:
        each.persistent = True
    image_features, text_features = (each / F.norm(each, axis=1, keepdims=True) for each in features)
    scale = F.mean(F.exp(nn.parameter.get_parameter_or_create("logit_scale", ())))
    per_image = F.reshape(scale, (1, 1)) * F.affine(image_features, F.transpose(text_features, (1, 0)))
    per_image.persistent = True
    truth = nn.Variable.from_numpy_array(np.arange(3)[:, None])
    losses = [F.mean(F.softmax_cross_entropy(each, truth)) for each in (per_image, F.transpose(per_image, (1, 0)))]
    loss = (losses[0] + losses[1]) / 2
    plain, decayed = S.AdamW(1e-3, 0.9, 0.98, 1e-6, 0.0), S.AdamW(1e-3, 0.9, 0.98, 1e-6, 1e-4)
    parameters = nn.get_parameters()
    few = {name for name, each in parameters.items() if each.ndim < 2 or "/ln" in name or "/b" in name}
    plain.set_parameters({name: parameters[name] for name in few})
    decayed.set_parameters({name: each for name, each in parameters.items() if name not in few})
    image.d, text.d = PIXELS, TOKENS
    seen = []
    for _ in range(4):
        loss.forward(clear_no_need_grad=True)
        if not seen:
            assert difference(per_image.d, expected(0)) <= tolerances.logit_bound(100)
        seen.append(float(loss.d))
        for solver in (plain, decayed):
            solver.zero_grad()
        loss.backward(clear_buffer=True)
        for solver in (plain, decayed):
            solver.update()
    assert seen[3] < seen[0]
    assert abs(float(parameters["logit_scale"].d) - sample_weights(VIT)["logit_scale"]) > 1e-3


def test_guidance_of_a_generator(files):
    """The gradient of 1 - logits / 100 goes through the model, in a scope of its own, into what made the pixels."""
    latent = nn.parameter.get_parameter_or_create("latent", initializer=PIXELS[:1].copy(), need_grad=True)
    solver = S.Adam(alpha=1e-2)
    solver.set_parameters({"latent": latent})
    with nn.parameter_scope("clip"):
        clip.load(files / "one.h5")
    losses = []
    with nn.auto_forward():
        for _ in range(6):
            with nn.parameter_scope("clip"):
                per_image, _ = clip.logits(F.tanh(latent) * 2, TOKENS[:1])
            loss = 1 - per_image / 100
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
            losses.append(loss.d.item())
    assert losses[-1] < losses[0] - 0.01


def test_pictures_without_a_batch_are_refused(files):
    clip.load(files / "one.h5")
    with pytest.raises(ImageError, match=r"^The pixels have shape \(3, 64, 64\), expected \(n, 3, 64, 64\)"):
        clip.encode_image(nn.Variable.from_numpy_array(PIXELS[0]))
