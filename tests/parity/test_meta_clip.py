"""MetaCLIP 2, as transformers writes it: OpenAI's towers, whose texts end where a tokenizer of its own ends them."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from clip_core.backend import Backend
from converters import read
from tests import tolerances
from tests.models import sample_pixels, stages_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import MetaClip2Config, MetaClip2Model


def test_a_folder_of_transformers_computes_what_it_does_there(backend: Backend, tmp_path):
    """The end of a text is token 2, which the configuration of a CLIP has for the highest one of its tokens."""
    section = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    pixels = {"image_size": 28, "patch_size": 14}
    sections = {"text_config": section | tokens, "vision_config": section | pixels | {"hidden_act": "gelu"}}
    torch.manual_seed(0)
    theirs = MetaClip2Model(MetaClip2Config(projection_dim=64, **sections)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert found.architecture.text.end_of_text == 2
    assert (found.architecture.text.activation, found.architecture.image.activation) == ("quick_gelu", "gelu")
    assert found.assumed == ("image.pixels",)
    texts = np.random.default_rng(0).integers(3, 50, (4, 9))
    for row, length in zip(texts, (2, 4, 7, 9)):
        row[0], row[length - 1], row[length:] = 0, 2, 1
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
