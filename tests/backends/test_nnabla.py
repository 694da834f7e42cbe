"""What only NNabla has: graphs that are built before their inputs are known, and contexts."""

from __future__ import annotations

import sys

import nnabla as nn
import numpy as np
import pytest

from backends.nnabla import CLIP, functions
from backends.nnabla.module import Module, buffer, empty
from backends.nnabla.training import Trainer
from clip_core.errors import ClipError, TextError
from clip_core.installation import requirement
from clip_core.training.recipe import Recipe
from tests import tolerances
from tests.models import (
    GELU,
    RESNET,
    VIT,
    VOCABULARY_SIZE,
    logits_of,
    reference_stages,
    sample_pixels,
    sample_tokens,
    sample_weights,
)


@pytest.mark.parametrize("architecture", [VIT, RESNET, GELU], ids=["vit", "resnet", "gelu"])
def test_a_static_graph_gives_the_same_values(architecture):
    model = CLIP(architecture, sample_weights(architecture))
    pixels, tokens = sample_pixels(architecture), sample_tokens(architecture)
    image, text = nn.Variable(pixels.shape), nn.Variable(tokens.shape)
    per_image, per_text = model(image, text)
    image.d, text.d = pixels, tokens
    nn.forward_all([per_image, per_text], clear_no_need_grad=True)
    bound = tolerances.CONTRACT["logits"].bound
    assert tolerances.difference(per_image.d, reference_stages(architecture)["logits"]) <= bound
    assert np.array_equal(per_text.d, per_image.d.T)
    assert tolerances.difference(per_image.d, logits_of(model, pixels, tokens)[0]) <= bound / 10


def test_a_static_graph_takes_new_inputs():
    model = CLIP(VIT, sample_weights(VIT))
    text = nn.Variable((4, VIT.text.context_length))
    features = model.encode_text(text)
    for seed in (0, 1):
        text.d = sample_tokens(VIT, seed=seed)
        features.forward()
        assert tolerances.difference(features.d, model.embed_text(sample_tokens(VIT, seed=seed))) < 1e-5


def test_what_needs_no_gradient_is_computed_outside_of_the_graph():
    x = nn.Variable.from_numpy_array(np.arange(6, dtype=np.float32).reshape(2, 3))
    weight = nn.Variable.from_numpy_array(np.eye(3, dtype=np.float32), need_grad=True)
    with nn.auto_forward():
        kept = functions.linear(x, weight)
        with nn.no_grad():
            alone = functions.linear(x, weight)
    assert kept.parent is not None
    assert alone.parent is None
    assert np.array_equal(alone.d, kept.d)
    assert np.array_equal(alone.d, x.d)


UNFIT = [
    pytest.param(VOCABULARY_SIZE, "Token 300 is outside the vocabulary of 300; make", id="too high"),
    pytest.param(-1, "Token -1 is outside the vocabulary of 300; make", id="negative"),
    pytest.param(np.nan, "The tokens are not all whole numbers; make", id="NaN"),
    pytest.param(1e30, "The tokens are not all whole numbers; make", id="beyond int64"),
    pytest.param(0.5, "The tokens are not all whole numbers; make", id="fraction"),
    pytest.param(0, "Text 2 (counted from 0) does not have the end-of-text token 299", id="no end"),
]


@pytest.mark.parametrize(("token", "message"), UNFIT)
def test_a_static_graph_reads_no_other_memory(token, message):
    model = CLIP(VIT, sample_weights(VIT))
    text = nn.Variable((4, VIT.text.context_length))
    features = model.encode_text(text)
    tokens = sample_tokens(VIT).astype(np.float32)
    tokens[2, tokens[2].argmax()] = token
    text.d = tokens
    with pytest.raises(SystemError) as caught:
        features.forward()
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, TextError)
    assert str(error).startswith(message)
    text.d = sample_tokens(VIT)
    features.forward()
    assert tolerances.difference(features.d, model.embed_text(sample_tokens(VIT))) < 1e-5


@pytest.mark.parametrize(("token", "message"), UNFIT)
def test_under_auto_forward_the_fault_itself_is_raised(token, message):
    model = CLIP(VIT, sample_weights(VIT))
    tokens = sample_tokens(VIT).astype(np.float32)
    tokens[2, tokens[2].argmax()] = token
    with nn.auto_forward(), pytest.raises(TextError) as caught:
        model.encode_text(nn.Variable.from_numpy_array(tokens))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("stage", ["compute", "gradients"])
def test_memory_that_runs_out_in_a_function_of_ours_is_a_memory_error(monkeypatch, stage):
    """NNabla itself raises a SystemError, and so it does in a training step."""

    def run_out(*_):
        raise MemoryError("Unable to allocate 3.5 GiB")

    recipe = Recipe.parse({"model": {"architecture": VIT.to_dict()}, "training": {"steps": 1}})
    trainer = Trainer(CLIP(VIT, sample_weights(VIT)), recipe)
    before, pixels, tokens = trainer.state(), sample_pixels(VIT, 4), sample_tokens(VIT, 4)
    with monkeypatch.context() as patch:
        patch.setattr(functions.LayerNorm, stage, run_out)
        with pytest.raises(MemoryError, match=r"^Unable to allocate 3\.5 GiB$"):
            trainer.step(pixels, tokens, 1e-3)
        if stage == "compute":
            with pytest.raises(MemoryError, match=r"^Unable to allocate 3\.5 GiB$"):
                trainer.model.embed_text(tokens)
    assert all(np.array_equal(array, before[name]) for name, array in trainer.state().items())
    assert not nn.get_auto_forward()
    assert np.isfinite(trainer.step(pixels, tokens, 1e-3).loss)


def test_embedding_leaves_auto_forward_and_contexts_alone():
    model = CLIP(VIT, sample_weights(VIT), device="cpu")
    context = str(nn.get_current_context())
    model.embed_image(sample_pixels(VIT))
    assert not nn.get_auto_forward()
    assert str(nn.get_current_context()) == context
    with nn.auto_forward():
        model.embed_text(sample_tokens(VIT))
        assert nn.get_auto_forward()


def test_embedding_builds_no_gradient():
    model = CLIP(VIT, sample_weights(VIT))
    for _, variable in model.named_parameters():
        variable.grad.zero()
    seen = []
    with model._evaluation():
        seen.append(model.encode_image(sample_pixels(VIT)))
    assert not seen[0].need_grad
    assert all(not variable.g.any() for name, variable in model.named_parameters() if variable.need_grad)


def test_devices():
    with pytest.raises(ClipError) as caught:
        CLIP(VIT, sample_weights(VIT), device="cuda:0")
    assert str(caught.value) == (
        "NNabla cannot use the device 'cuda:0' here (No module named 'nnabla_ext.cudnn'); "
        f"install its extension with: pip install {requirement('nnabla-cuda')}."
    )
    with pytest.raises(ClipError, match=r"^NNabla has no device 'tpu'; choose cpu, cuda or cuda:N\.$"):
        CLIP(VIT, sample_weights(VIT), device="tpu")


def test_it_computes_in_float32_only():
    with pytest.raises(ClipError, match=r"^There is no precision 'bf16' in NNabla; it computes in fp32\.$"):
        CLIP(VIT, sample_weights(VIT), precision="bf16")


class Part(Module):
    def __init__(self) -> None:
        self.weight = empty(2)


class Whole(Module):
    def __init__(self) -> None:
        self.scale = empty()
        self.parts = [Part(), Part()]
        self.counts = buffer(np.zeros(1, np.int64))
        self.last = Part()
        self.width = 2


def test_modules_name_their_parameters_by_their_path():
    whole = Whole()
    named = dict(whole.named_parameters())
    assert list(named) == ["scale", "counts", "parts.0.weight", "parts.1.weight", "last.weight"]
    assert [name for name, variable in named.items() if not variable.need_grad] == ["counts"]
    whole.train()
    assert all(module.training for module in whole.modules())
    assert len(list(whole.modules())) == 4
    whole.eval()
    assert not any(module.training for module in whole.modules())


def test_looking_at_an_array_searches_for_no_module(monkeypatch):
    searched = []

    class Finder:
        def find_spec(self, name, path=None, target=None):
            searched.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    variable = nn.Variable.from_numpy_array(np.ones((2, 2), np.float32))
    assert variable.d.sum() == variable.data.get_data("r").sum() == 4
    assert searched == []
