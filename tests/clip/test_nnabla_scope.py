"""The model behind the module, as NNabla's own tools see it: parameters, solvers, files and scopes."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import clip
import converters
from clip_core.layouts import LAYOUTS
from clip_core.naming import parameters
from clip_core.text.bpe import BytePairTokenizer
from converters import ModelFile
from tests.clip.small import ARCHITECTURE
from tests.models import RESNET, sample_weights

NAMES = [LAYOUTS["nnabla"].spell(parameter.name) for parameter in parameters(ARCHITECTURE)]


@pytest.fixture
def tokens(checkpoint) -> np.ndarray:
    return BytePairTokenizer(checkpoint.vocabulary).tokenize(["a red circle", "a green star", "two"])


def test_parameters_carry_the_published_names(files, checkpoint):
    clip.load(files[".h5"])
    found = nn.get_parameters()
    assert sorted(found) == sorted(NAMES)
    for name in ("visual/conv1/W", "visual/transformer/resblocks/0/attn/in_proj_W", "ln_final/b", "logit_scale"):
        assert name in found
    assert all(variable.need_grad for variable in found.values())
    np.testing.assert_array_equal(found["visual/conv1/W"].d, checkpoint.weights["visual.conv1.weight"])
    assert found["text_projection"].shape == (128, 32)


def test_statistics_are_without_gradient(tmp_path):
    converters.write(ModelFile(sample_weights(RESNET), RESNET), tmp_path / "resnet.h5")
    clip.load(tmp_path / "resnet.h5")
    trained, everything = nn.get_parameters(), nn.get_parameters(grad_only=False)
    assert {"visual/bn1/mean", "visual/bn1/var", "visual/bn1/num_batches_tracked"} <= everything.keys() - trained.keys()
    assert len(everything) == len(parameters(RESNET))
    assert len(trained) == sum(parameter.trainable for parameter in parameters(RESNET))


@pytest.mark.parametrize("auto_forward", [False, True])
def test_solver_step_changes_what_the_model_says(auto_forward, files, pixels, tokens):
    model, _ = clip.load(files[".h5"])
    before = model.embed_image(pixels), model.embed_text(tokens)
    solver = S.Adam(alpha=1e-4)
    solver.set_parameters(nn.get_parameters())
    labels = nn.Variable.from_numpy_array(np.arange(3)[:, None])
    losses = []
    with nn.auto_forward(auto_forward):
        for _ in range(3):
            per_image, per_text = clip.logits(pixels, tokens)
            loss = F.mean(F.softmax_cross_entropy(per_image, labels) + F.softmax_cross_entropy(per_text, labels))
            if not auto_forward:
                loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
            losses.append(float(loss.d))
    assert losses[2] < losses[0]
    for old, new in zip(before, (model.embed_image(pixels), model.embed_text(tokens))):
        assert np.abs(old - new).max() > 1e-3
    np.testing.assert_array_equal(model.export()["visual.proj"], nn.get_parameters()["visual/proj"].d)


def test_saved_parameters_load_equal(files, tmp_path, pixels):
    model, _ = clip.load(files[".h5"])
    nn.get_parameters()["visual/proj"].d *= 1.5
    nn.save_parameters(str(tmp_path / "saved.h5"))
    again, _ = clip.load(tmp_path / "saved.h5", like=files[".h5"])
    assert again is not model
    for name, array in model.export().items():
        np.testing.assert_array_equal(again.export()[name], array, err_msg=name)
    np.testing.assert_array_equal(again.embed_image(pixels), model.embed_image(pixels))


def test_nnabla_itself_reads_a_converted_file(files, checkpoint):
    nn.load_parameters(str(files[".h5"]))
    found = nn.get_parameters(grad_only=False)
    assert sorted(found) == sorted(NAMES)
    np.testing.assert_array_equal(found["visual/proj"].d, checkpoint.weights["visual.proj"])


def test_second_model_takes_over_the_scope_and_leaves_the_first_alone(files, other, pixels):
    first, _ = clip.load(files[".h5"])
    expected = first.embed_image(pixels)
    second, _ = clip.load(other, backend="nnabla")
    assert sorted(nn.get_parameters()) == sorted(NAMES)
    np.testing.assert_array_equal(nn.get_parameters()["visual/proj"].d, second.export()["visual.proj"])
    nn.get_parameters()["visual/proj"].d *= 2
    np.testing.assert_array_equal(first.embed_image(pixels), expected)
    assert np.abs(second.embed_image(pixels) - expected).max() > 0.01


def test_names_of_a_larger_model_do_not_stay(files, tmp_path):
    converters.write(ModelFile(sample_weights(RESNET), RESNET), tmp_path / "resnet.h5")
    clip.load(tmp_path / "resnet.h5")
    clip.load(files[".h5"])
    assert sorted(nn.get_parameters(grad_only=False)) == sorted(NAMES)


def test_other_parameters_in_the_scope_stay(files):
    nn.parameter.get_parameter_or_create("head/W", (3, 2))
    clip.load(files[".h5"])
    assert sorted(nn.get_parameters()) == sorted([*NAMES, "head/W"])


def test_inside_a_parameter_scope(files, judge, pixels, tokens):
    with nn.parameter_scope("clip"):
        clip.load(files[".h5"])
        assert sorted(nn.get_parameters()) == sorted(NAMES)
        with nn.auto_forward():
            per_image, _ = clip.logits(pixels, tokens)
    assert sorted(nn.get_parameters()) == sorted(f"clip/{name}" for name in NAMES)
    assert np.abs(per_image.d - judge(pixels, tokens)[0]).max() <= 2e-3


def test_several_pictures_against_several_texts(files, judge, pixels, tokens):
    clip.load(files[".h5"])
    expected = judge(pixels, tokens[:2])[0]
    with nn.auto_forward():
        image, text = nn.Variable.from_numpy_array(pixels), nn.Variable.from_numpy_array(tokens[:2])
        per_image, per_text = clip.logits(image, text)
        probabilities = F.softmax(per_image, axis=-1).d
    assert (per_image.shape, per_text.shape) == ((3, 2), (2, 3))
    assert np.abs(per_image.d - expected).max() <= 2e-3
    np.testing.assert_array_equal(per_text.d, per_image.d.T)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
