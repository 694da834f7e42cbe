"""``CLIPWrapper`` as PASSL's users write it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import converters
from backends.numpy import CLIP as Reference
from backends.paddle import CLIPWrapper
from clip_core import tolerances
from clip_core.architecture import Architecture
from clip_core.buffers import Tensor
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.similarity import contrastive_loss
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile
from tests.models import RESNET, sample_pixels, sample_tokens, sample_weights

SETTINGS = {
    "name": "CLIP",
    "embed_dim": 32,
    "image_resolution": 48,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 16,
    "context_length": 12,
    "vocab_size": 60,
    "transformer_width": 64,
    "transformer_heads": 2,
    "transformer_layers": 3,
    "qkv_bias": True,
}
SHAPE = Architecture(
    32,
    VisionTransformer(resolution=48, patch=16, width=128, layers=2, heads=2),
    TextTransformer(context_length=12, vocabulary_size=60, width=64, layers=3, heads=2),
)
WEIGHTS = sample_weights(SHAPE, seed=3)


@pytest.fixture
def wrapper() -> CLIPWrapper:
    return CLIPWrapper(architecture=SETTINGS, head={"name": "CLIPHead"})


def spelled(layout: str, prefix: bool) -> dict[str, np.ndarray]:
    """The weights as a layout stores them, with or without the ``model.`` that a wrapper puts before each name."""
    tensors = {name: Tensor(array, array.dtype) for name, array in WEIGHTS.items()}
    found = {name: tensor.values() for name, tensor in LAYOUTS[layout].store(tensors, SHAPE).items()}
    return {
        ("model." if prefix else "") + name.removeprefix("model."): np.array(array) for name, array in found.items()
    }


def assert_holds(wrapper: CLIPWrapper, weights: dict[str, np.ndarray]) -> None:
    for name, array in wrapper.model.export().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


# Building -------------------------------------------------------------------------------------------------------------


def test_dictionary_becomes_the_architecture(wrapper):
    assert wrapper.model.architecture == SHAPE
    for document in ("CLIPHead", "ClipHead", "ClipCNHead"):
        assert CLIPWrapper(architectual=SETTINGS, head={"name": document}).model.architecture == SHAPE
    assert CLIPWrapper(SETTINGS).model.architecture == SHAPE


def test_settings_of_later_versions():
    later = SETTINGS | {"pre_norm": True, "proj": True, "patch_bias": False}
    assert CLIPWrapper(later).model.architecture == SHAPE


def test_layers_as_a_tuple_make_a_resnet():
    settings = SETTINGS | {"vision_layers": [1, 2, 1, 1], "vision_width": 8, "image_resolution": 64}
    model = CLIPWrapper(settings).model
    assert model.architecture.image == ModifiedResNet(resolution=64, width=8, blocks=(1, 2, 1, 1), heads=4)
    assert model.encode_image(np.zeros((2, 3, 64, 64), np.float32)).shape == [2, 32]


def test_seed_decides_the_initial_weights():
    first, same, different = (CLIPWrapper(SETTINGS, seed=seed).model.export() for seed in (5, 5, 6))
    assert all((first[name] == same[name]).all() for name in first)
    assert np.abs(first["visual.proj"] - different["visual.proj"]).max() > 0.01


@pytest.mark.parametrize("key", sorted(SETTINGS.keys() - {"name", "qkv_bias"}))
def test_missing_key(key):
    settings = {name: value for name, value in SETTINGS.items() if name != key}
    with pytest.raises(ClipError, match=f"^The architecture lacks {key}"):
        CLIPWrapper(architecture=settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_heads": 12, "dropout": 0.1}, "The architecture has unknown keys: dropout, vision_heads"),
        ({"name": "SLIP"}, "has name = 'SLIP'; a CLIP has name = 'CLIP'"),
        ({"qkv_bias": False}, "has qkv_bias = False; a CLIP has qkv_bias = True"),
        ({"patch_bias": True}, "has patch_bias = True; a CLIP has patch_bias = False"),
        ({"vision_width": "768"}, "vision_width is '768'"),
        ({"vision_width": None}, "vision_width is None"),
        ({"embed_dim": 0}, "embed_dim is 0; it must be a whole number above 0"),
        ({"transformer_heads": 3}, "text tower's width 64 cannot be divided into 3 heads"),
        ({"image_resolution": 50}, "image resolution 50 is not a multiple of its patch"),
        ({"vision_layers": (1, 2, 3)}, "image.blocks|resolution 48 is not a multiple of 32"),
    ],
)
def test_dictionary_that_is_no_clip(change, message):
    with pytest.raises(ClipError, match=message):
        CLIPWrapper(architecture=SETTINGS | change)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"name": "SwAVHead"}, "There is no head 'SwAVHead'; choose one of CLIPHead, ClipHead, ClipCNHead"),
        ({}, "There is no head None"),
        ({"name": "CLIPHead", "temperature": 1}, "The head has unknown keys: temperature"),
    ],
)
def test_head_that_is_none(head, message):
    with pytest.raises(ClipError, match=message):
        CLIPWrapper(architecture=SETTINGS, head=head)


@pytest.mark.parametrize("arguments", [{}, {"architecture": SETTINGS, "architectual": SETTINGS}])
def test_one_dictionary_is_needed(arguments):
    with pytest.raises(ClipError, match="CLIPWrapper needs one dictionary"):
        CLIPWrapper(**arguments)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("layout", ["passl", "paddle", "openai"])
def test_set_state_dict_takes_every_spelling(layout, prefix, nested, wrapper):
    state = spelled(layout, prefix)
    state |= {name: paddle.to_tensor(array) for name, array in list(state.items())[::2]}  # tensors and arrays
    assert wrapper.set_state_dict({"state_dict": state, "epoch": 3} if nested else state) == ([], [])
    assert_holds(wrapper, WEIGHTS)


@pytest.mark.parametrize("method", ["set_state_dict", "set_dict", "load_dict"])
def test_own_state_dict_round_trip(method, wrapper):
    source = CLIPWrapper(SETTINGS, seed=9)
    getattr(wrapper, method)(source.state_dict(), use_structured_name=True)
    assert_holds(wrapper, source.model.export())


@pytest.mark.parametrize("layout", ["passl", "paddle"])
def test_what_paddle_loads_of_a_converted_file(layout, wrapper, tmp_path):
    converters.write(ModelFile(WEIGHTS, SHAPE), tmp_path / "weights.pdparams", layout=layout)
    loaded = paddle.load(str(tmp_path / "weights.pdparams"))
    assert ("state_dict" in loaded) == (layout == "passl")  # PASSL's code looks for the weights there
    wrapper.set_state_dict(loaded)
    assert_holds(wrapper, WEIGHTS)


def test_what_paddle_saved_of_the_wrapper(wrapper, tmp_path):
    wrapper.set_state_dict(spelled("passl", prefix=True))
    paddle.save({"state_dict": wrapper.state_dict(), "epoch": 1}, str(tmp_path / "saved.pdparams"))
    again = CLIPWrapper(SETTINGS, seed=1)
    again.set_state_dict(paddle.load(str(tmp_path / "saved.pdparams"))["state_dict"])
    assert_holds(again, WEIGHTS)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda state: without(without(state, "model.visual.proj"), "model.ln_final.bias"),
            ["ln_final.bias is missing", "visual.proj is missing"],
        ),
        (lambda state: state | {"model.visual.head": np.zeros(3, np.float32)}, ["visual.head is not a parameter"]),
        (
            lambda state: state | {"model.text_projection": np.zeros((32, 64), np.float32)},
            ["text_projection has shape (32, 64), expected (64, 32)"],
        ),
        (
            lambda state: state | {"model.ln_final.weight": np.full(64, np.nan, np.float32)},
            ["ln_final.weight holds NaN"],
        ),
        (lambda state: state | {"model.epoch": 3}, ["model.epoch in the state_dict is a int, expected a tensor"]),
        (lambda state: state | {"optimizer": {}}, ["optimizer in the state_dict is a dict, expected a tensor"]),
        (lambda state: {"state_dict": {}}, ["visual.proj is missing"]),
        (lambda state: state | {"visual.proj": state["model.visual.proj"]}, ["visual.proj", "remove it"]),
    ],
)
def test_faulty_state_dict_changes_nothing(change, messages, wrapper):
    before = wrapper.model.export()
    with pytest.raises(CheckpointError) as caught:
        wrapper.set_state_dict(change(spelled("passl", prefix=True)))
    for message in messages:
        assert message in str(caught.value)
    assert_holds(wrapper, before)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_losses_are_the_oracles(wrapper):
    wrapper.set_state_dict(WEIGHTS)
    pixels, tokens = sample_pixels(SHAPE, n=4), sample_tokens(SHAPE, n=4)
    found = wrapper(paddle.to_tensor(pixels), paddle.to_tensor(tokens), mode="train")
    logits, _ = Reference(SHAPE, WEIGHTS, precision="fp64")(pixels, tokens)
    expected, _ = contrastive_loss(logits, reduction="sum")
    assert list(found) == ["loss", "img_loss", "text_loss"]
    bound = 2 * tolerances.logit_bound(100)
    assert float(found["loss"]) == pytest.approx(expected, abs=bound)

    def cross_entropy(rows: np.ndarray) -> float:
        shifted = rows - rows.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - np.diag(shifted)))

    assert float(found["img_loss"]) == pytest.approx(cross_entropy(logits), abs=bound)
    assert float(found["text_loss"]) == pytest.approx(cross_entropy(logits.T), abs=bound)
    assert abs(float(found["img_loss"]) - float(found["text_loss"])) > 2 * bound  # they are not the same by chance


def test_losses_have_no_upper_end_and_are_nan_for_nan(wrapper):
    logits = paddle.to_tensor([[0.0, 150.0], [100.0, 0.0]])
    found = wrapper.head(logits, logits.t())
    assert {name: float(loss) for name, loss in found.items()} == {"loss": 250, "img_loss": 125, "text_loss": 125}
    logits[0, 0] = float("nan")
    assert np.isnan(float(wrapper.head(logits, logits.t())["img_loss"]))


def test_training_step_lowers_the_loss(wrapper):
    pixels, tokens = sample_pixels(SHAPE, n=4), sample_tokens(SHAPE, n=4)
    solver = paddle.optimizer.AdamW(1e-3, parameters=wrapper.parameters())
    losses = []
    for _ in range(5):
        loss = wrapper(pixels, tokens)["loss"]
        loss.backward()
        solver.step()
        solver.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    assert all(parameter.grad is None or parameter.shape == parameter.grad.shape for parameter in wrapper.parameters())


def test_loss_needs_pairs(wrapper):
    with pytest.raises(ClipError, match="3 images came with 4 texts"):
        wrapper(sample_pixels(SHAPE, n=3), sample_tokens(SHAPE, n=4))


def test_modes(wrapper):
    pixels, tokens = paddle.to_tensor(sample_pixels(SHAPE)), paddle.to_tensor(sample_tokens(SHAPE, n=2))
    logits = wrapper(pixels, tokens, mode="test")
    image_logits, text_logits = wrapper.model(pixels, tokens)
    assert np.array_equal(logits["image_logits"].numpy(), image_logits.numpy())
    assert np.array_equal(logits["text_logits"].numpy(), text_logits.numpy())
    features = wrapper(pixels, mode="extract").numpy()
    assert np.array_equal(features, wrapper.model.encode_image(pixels).numpy())
    with pytest.raises(ClipError, match=r"^CLIPWrapper has no mode 'valid', only train, test and extract\.$"):
        wrapper(pixels, tokens, mode="valid")
    with pytest.raises(ClipError, match=r"^The mode train of CLIPWrapper needs a text beside the image; extract"):
        wrapper(pixels)


def test_features_of_the_model_inside(wrapper):
    wrapper.set_state_dict(WEIGHTS)
    judge = Reference(SHAPE, WEIGHTS, precision="fp64")
    pixels, tokens = sample_pixels(SHAPE), sample_tokens(SHAPE)
    with paddle.no_grad():
        image = wrapper.model.encode_image(paddle.to_tensor(pixels)).numpy()
        text = wrapper.model.encode_text(paddle.to_tensor(tokens)).numpy()
    np.testing.assert_allclose(image, judge.embed_image(pixels), atol=1e-5)
    np.testing.assert_allclose(text, judge.embed_text(tokens), atol=1e-5)


def test_resnet_takes_its_weights_too():
    image, text = RESNET.image, RESNET.text
    settings = {
        "embed_dim": RESNET.embed_dim,
        "image_resolution": image.resolution,
        "vision_layers": image.blocks,
        "vision_width": image.width,
        "vision_patch_size": 32,
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "transformer_width": text.width,
        "transformer_heads": text.heads,
        "transformer_layers": text.layers,
    }
    wrapper = CLIPWrapper(settings)
    assert wrapper.model.architecture == RESNET
    weights = sample_weights(RESNET)
    wrapper.set_state_dict(weights)
    assert_holds(wrapper, weights)
