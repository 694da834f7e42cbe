"""SigLIP in every backend against transformers and open_clip, with the same random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.numpy import CLIP as Reference
from clip_core.buffers import Tensor
from clip_core.errors import ClipError, TextError
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights
from tests import tolerances
from tests.models import logits_of, sample_pixels, sample_tokens, sample_weights, stages_of
from tests.siglip import SIGLIP, open_clip_model, transformers_model
from tests.tolerances import difference

PIXELS, TOKENS = sample_pixels(SIGLIP), sample_tokens(SIGLIP)
# Where trained models end, about; the bias of the published ones is near -16.
WEIGHTS = sample_weights(SIGLIP) | {"logit_bias": np.array(-7.7, np.float32)}


def load(model: torch.nn.Module, layout: str) -> torch.nn.Module:
    """The weights in another project's model, under its names."""
    tensors = {name: Tensor(array, array.dtype) for name, array in WEIGHTS.items()}
    stored = LAYOUTS[layout].store(tensors, SIGLIP)
    model.load_state_dict({name: torch.tensor(tensor.values()) for name, tensor in stored.items()}, strict=True)
    return model


@pytest.fixture(scope="module")
def of_transformers() -> Weights:
    with torch.no_grad():
        model = load(transformers_model(), "huggingface")
        found = model(input_ids=torch.from_numpy(TOKENS), pixel_values=torch.from_numpy(PIXELS))
    return {
        "image_embedding": found.image_embeds.numpy(),
        "text_embedding": found.text_embeds.numpy(),
        "logits": found.logits_per_image.numpy(),
    }


@pytest.fixture(scope="module")
def of_open_clip() -> Weights:
    model, image, text = load(open_clip_model(), "timm"), torch.from_numpy(PIXELS), torch.from_numpy(TOKENS)
    with torch.no_grad():
        return {
            "image_embedding": model.encode_image(image, normalize=True).numpy(),
            "text_embedding": model.encode_text(text, normalize=True).numpy(),
            "logits": model.get_logits(image, text)[0].numpy(),
        }


@pytest.mark.parametrize("project", ["of_transformers", "of_open_clip"])
def test_every_backend_computes_what_the_project_does(backend, project, request):
    ours = backend.CLIP(SIGLIP, WEIGHTS, device="cpu")
    assert tolerances.beyond(stages_of(ours, PIXELS, TOKENS), request.getfixturevalue(project)) == {}


@pytest.mark.parametrize("project", ["of_transformers", "of_open_clip"])
def test_every_parameter_is_compared(project, request):
    """Each alone, every seventh number moved by a tenth."""
    expected, judge = request.getfixturevalue(project), Reference(SIGLIP, WEIGHTS, precision="fp64")
    assert tolerances.beyond(stages_of(judge, PIXELS, TOKENS), expected) == {}
    for name, array in WEIGHTS.items():
        changed = np.array(array)
        changed.reshape(-1)[::-7] += 0.1
        judge.load(WEIGHTS | {name: changed})
        assert tolerances.beyond(stages_of(judge, PIXELS, TOKENS), expected), name


def test_half_precision():
    from backends.torch import CLIP

    expected = stages_of(Reference(SIGLIP, WEIGHTS, precision="fp64"), PIXELS, TOKENS)
    for precision, table in tolerances.HALF.items():
        found = stages_of(CLIP(SIGLIP, WEIGHTS, device="cpu", precision=precision), PIXELS, TOKENS)
        assert tolerances.beyond(found, expected, table) == {}


@pytest.mark.needs("nnabla")
def test_a_static_graph_of_nnabla():
    import nnabla as nn

    from backends.nnabla import CLIP

    model = CLIP(SIGLIP, WEIGHTS, device="cpu")
    per_image, _ = model(nn.Variable.from_numpy_array(PIXELS), nn.Variable.from_numpy_array(TOKENS))
    per_image.forward()
    expected = logits_of(Reference(SIGLIP, WEIGHTS, precision="fp64"), PIXELS, TOKENS)[0]
    assert difference(per_image.d, expected) <= tolerances.CONTRACT["logits"].bound


def test_padding_takes_part_so_rows_must_be_whole(backend):
    model = backend.CLIP(SIGLIP, WEIGHTS, device="cpu")
    with pytest.raises(TextError) as caught:
        model.embed_text(TOKENS[:, :5])
    assert str(caught.value) == "The tokens have shape (4, 5), expected (n, 7); make them with tokenize."
    padded = TOKENS.copy()
    padded[0, 3:] = 1
    assert difference(model.embed_text(padded)[0], model.embed_text(TOKENS)[0]) > 1e-3


def test_ids_outside_the_vocabulary_are_refused(backend):
    model = backend.CLIP(SIGLIP, WEIGHTS, device="cpu")
    wrong = TOKENS.copy()
    wrong[2, 3] = SIGLIP.text.vocabulary_size
    native = torch.from_numpy(wrong) if backend.name == "torch" else backend.native(wrong)
    for tokens in (wrong, native):
        with pytest.raises(TextError, match="Token 50 is outside the vocabulary of 50"):
            logits_of(model, PIXELS, tokens)


def test_an_image_tower_without_a_projection_gives_the_joint_space():
    with pytest.raises(ClipError) as caught:
        replace(SIGLIP, embed_dim=32).check()
    assert str(caught.value) == (
        "The architecture's embed_dim is 32, and the image tower ends in its width 48 without a projection; make both "
        "the same."
    )
    with pytest.raises(ClipError, match=r"The image resolution 7 is smaller than its patch \(8\)"):
        replace(SIGLIP, image=replace(SIGLIP.image, resolution=7)).check()
