"""MetaCLIP 2, as transformers writes it: OpenAI's towers, whose texts end where a tokenizer of its own ends them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core.backend import Backend
from converters import read, write
from tests import tolerances
from tests.models import sample_pixels, stages_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import MetaClip2Config, MetaClip2Model


@pytest.fixture(scope="module")
def theirs() -> MetaClip2Model:
    """A small model whose parameters are all random; the end of a text is token 2."""
    section = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    pixels = {"image_size": 28, "patch_size": 14}
    sections = {"text_config": section | tokens, "vision_config": section | pixels | {"hidden_act": "gelu"}}
    torch.manual_seed(0)
    theirs = MetaClip2Model(MetaClip2Config(projection_dim=64, **sections)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return theirs


def save(model: MetaClip2Model, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


def sample_texts() -> np.ndarray:
    """Int64 [4, 9], of different lengths."""
    texts = np.random.default_rng(0).integers(3, 50, (4, 9))
    for row, length in zip(texts, (2, 4, 7, 9)):
        row[0], row[length - 1], row[length:] = 0, 2, 1
    return texts


def test_a_folder_of_transformers_computes_what_it_does_there(backend: Backend, theirs, tmp_path):
    """The configuration of a CLIP has token 2 for the highest one of its tokens; this one has it for itself."""
    save(theirs, tmp_path)
    found = read(tmp_path)
    assert found.architecture.text.end_of_text == 2
    assert (found.architecture.text.activation, found.architecture.image.activation) == ("quick_gelu", "gelu")
    assert found.assumed == ("image.pixels",)
    texts = sample_texts()
    images = sample_pixels(found.architecture)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(texts), pixel_values=torch.from_numpy(images))
    model = backend.CLIP(found.architecture, found.weights, device="cpu")
    assert (
        tolerances.beyond(
            stages_of(model, images, texts),
            {
                "image_embedding": expected.image_embeds.numpy(),
                "text_embedding": expected.text_embeds.numpy(),
                "logits": expected.logits_per_image.numpy(),
            },
        )
        == {}
    )


def test_a_folder_written_here_computes_the_same_in_transformers(theirs, tmp_path):
    save(theirs, tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write(found, tmp_path / "ours", layout="huggingface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = MetaClip2Model.from_pretrained(tmp_path / "ours")
    texts = torch.from_numpy(sample_texts())
    with torch.no_grad():
        expected, features = (model.get_text_features(input_ids=texts) for model in (theirs, again))
    assert torch.equal(*(getattr(one, "pooler_output", one) for one in (expected, features)))
