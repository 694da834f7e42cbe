"""DistilBERT in every backend against transformers', with all parameters random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture, infer
from clip_core.errors import ClipError, TextError
from clip_core.naming import Weights, parameters
from clip_core.similarity import normalize
from clip_core.towers.distilbert import DistilBERT
from tests import tolerances
from tests.models import VIT, sample_tokens, sample_weights

TEXT = DistilBERT(context_length=20, vocabulary_size=60, width=48, layers=3, heads=12, mlp_width=80, padding=7)
ARCHITECTURE = replace(VIT, text=TEXT)
FULL = replace(VIT, embed_dim=256, text=DistilBERT())


def transformers_model(architecture: Architecture, weights: Weights) -> DistilBertModel:
    """transformers' model with exactly these weights, in evaluation mode."""
    text = architecture.text
    config = DistilBertConfig(
        vocab_size=text.vocabulary_size,
        max_position_embeddings=text.context_length,
        n_layers=text.layers,
        n_heads=text.heads,
        dim=text.width,
        hidden_dim=text.mlp_width,
        pad_token_id=text.padding,
    )
    state = {
        "embeddings.word_embeddings.weight": weights["text.token_embedding.weight"],
        "embeddings.position_embeddings.weight": weights["text.positional_embedding"],
        "embeddings.LayerNorm.weight": weights["text.ln_embedding.weight"],
        "embeddings.LayerNorm.bias": weights["text.ln_embedding.bias"],
    }
    modules = {"attn.out_proj": "attention.out_lin", "ln_1": "sa_layer_norm", "ln_2": "output_layer_norm"}
    modules |= {"mlp.c_fc": "ffn.lin1", "mlp.c_proj": "ffn.lin2"}
    for layer in range(text.layers):
        for leaf in ("weight", "bias"):
            ours, theirs = f"text.resblocks.{layer}", f"transformer.layer.{layer}"
            for name, part in zip("qkv", np.split(weights[f"{ours}.attn.in_proj_{leaf}"], 3)):
                state[f"{theirs}.attention.{name}_lin.{leaf}"] = part
            for here, there in modules.items():
                state[f"{theirs}.{there}.{leaf}"] = weights[f"{ours}.{here}.{leaf}"]
    model = DistilBertModel(config).eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


@torch.no_grad()
def expected_features(architecture: Architecture, weights: Weights, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean states [n, width] and features [n, embed_dim] by transformers in float64."""
    seen = torch.from_numpy((tokens != architecture.text.padding).astype(np.int64))
    model = transformers_model(architecture, weights).double()
    states = model(torch.from_numpy(tokens), attention_mask=seen).last_hidden_state
    pooled = (states * seen[:, :, None]).sum(dim=1) / seen.sum(dim=1, keepdim=True)
    first, second = (torch.tensor(weights[f"text.head.{name}.weight"]).double() for name in ("c_fc", "c_proj"))
    return pooled.numpy(), (torch.relu(pooled @ first.T) @ second.T).numpy()


def test_the_reference_computes_what_transformers_computes():
    weights, tokens = sample_weights(ARCHITECTURE), sample_tokens(ARCHITECTURE)
    pooled, features = expected_features(ARCHITECTURE, weights, tokens)
    seen: Weights = {}
    found = Reference(ARCHITECTURE, weights, precision="fp64").encode_text(tokens, seen.__setitem__)
    assert found == pytest.approx(features, rel=1e-9, abs=1e-12)
    assert seen["text.pooled"] == pytest.approx(pooled, rel=1e-9, abs=1e-12)


def test_every_backend_computes_what_transformers_computes(backend):
    weights, tokens = sample_weights(ARCHITECTURE), sample_tokens(ARCHITECTURE)
    _, features = expected_features(ARCHITECTURE, weights, tokens)
    found = backend.CLIP(ARCHITECTURE, weights, device="cpu").embed_text(tokens)
    found, features = ({"text_embedding": normalize(one)} for one in (found, features))
    assert tolerances.beyond(found, features) == {}


def test_padding_is_not_seen(backend):
    """More of it, or none, changes nothing: the mean is over the words alone."""
    model = backend.CLIP(ARCHITECTURE, sample_weights(ARCHITECTURE), device="cpu")
    words = np.array([[3, 9, 4]])
    padded = np.full((2, 12), TEXT.padding)
    padded[0, :3], padded[1, :12] = words, 5
    assert model.embed_text(padded)[:1] == pytest.approx(model.embed_text(words), rel=1e-5, abs=1e-6)


def test_nothing_but_padding_is_refused(backend):
    model = backend.CLIP(ARCHITECTURE, sample_weights(ARCHITECTURE), device="cpu")
    tokens = np.array([[3, 9, 4], [7, 7, 7]])
    with pytest.raises(TextError, match=r"^Text 1 \(counted from 0\) is nothing but the padding token 7; make"):
        model.embed_text(tokens)


def test_numbers_of_the_published_model():
    """66,362,880 are those of distilbert-base-uncased; simple-clip's head comes on top."""
    names = [parameter for parameter in parameters(FULL) if parameter.tower == "text"]
    head = 768 * 768 + 768 * 256
    assert sum(int(np.prod(parameter.shape)) for parameter in names) == 66_362_880 + head
    shapes = {parameter.name: parameter.shape for parameter in parameters(FULL)}
    assert infer(shapes).text == DistilBERT()
    assert sum(parameter.numel() for parameter in DistilBertModel(DistilBertConfig()).parameters()) == 66_362_880


def test_padding_outside_of_the_vocabulary_is_refused():
    with pytest.raises(ClipError, match=r"text.padding is 60, which is outside the vocabulary of 60\.$"):
        replace(ARCHITECTURE, text=replace(TEXT, padding=60)).check()
