"""BERT and DistilBERT of Hugging Face as the text tower of a CLIP: their names, and their configuration.

A BERT computes what a DistilBERT computes once the embedding of token type 0, which every token of a caption has, is
added to its positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from clip_core.errors import CheckpointError
from clip_core.layouts.configuration import number
from clip_core.layouts.parts import join_attention, starts
from clip_core.naming import Weights
from clip_core.towers import TEXT_TOWERS
from clip_core.towers.parts import Shapes, TextTower

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embedding.weight",
    "embeddings.position_embeddings.weight": "positional_embedding",
    "embeddings.LayerNorm.weight": "ln_embedding.weight",
    "embeddings.LayerNorm.bias": "ln_embedding.bias",
}
_TYPES = "embeddings.token_type_embeddings.weight"
_BLOCK = re.compile(r"(?:transformer|encoder)\.layer\.([0-9]+)\.(.+)\.(weight|bias)")
_OWN_BLOCK = re.compile(r"resblocks\.([0-9]+)\.(.+)\.(weight|bias)")
_DISTILBERT = {
    **{f"attention.{part}_lin": f"attn.{part}_proj" for part in "qkv"},
    "attention.out_lin": "attn.out_proj",
    "sa_layer_norm": "ln_1",
    "ffn.lin1": "mlp.c_fc",
    "ffn.lin2": "mlp.c_proj",
    "output_layer_norm": "ln_2",
}
_BERT = {
    **{f"attention.self.{name}": f"attn.{name[0]}_proj" for name in ("query", "key", "value")},
    "attention.output.dense": "attn.out_proj",
    "attention.output.LayerNorm": "ln_1",
    "intermediate.dense": "mlp.c_fc",
    "output.dense": "mlp.c_proj",
    "output.LayerNorm": "ln_2",
}
_MODULES = _DISTILBERT | _BERT
_SPELLED = {ours: theirs for names in (_EMBEDDINGS, _DISTILBERT) for theirs, ours in names.items()}
# What a model is trained with and without effect on the states of its tokens.
_LEFT_OUT = re.compile(r"(pooler|cls|classifier|pre_classifier|qa_outputs|vocab_[a-z_]+)\..*|embeddings\.position_ids")
_ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


_OLD_LEAVES = {"gamma": "weight", "beta": "bias"}  # of normalisations, in the first files of BERT
_TYPES_OF_MODEL = ("bert", "distilbert", "electra")  # whose positions start at 0; RoBERTa's start behind its padding


def canonical(name: str) -> str:
    """The tower's name for a parameter of a BERT or DistilBERT; an unknown name stays as it is.

    Queries, keys and values are apart, as `clip_core.layouts.parts.join_attention` takes them.
    """
    stem, _, leaf = name.rpartition(".")
    if leaf in _OLD_LEAVES and stem.endswith("LayerNorm"):
        name = f"{stem}.{_OLD_LEAVES[leaf]}"
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _MODULES:
        return f"resblocks.{match[1]}.{_MODULES[match[2]]}.{match[3]}"
    return _EMBEDDINGS.get(name, name)


def spell(name: str) -> str:
    """DistilBERT's name for one that `canonical` gives."""
    match = _OWN_BLOCK.fullmatch(name)
    if match and match[2] in _SPELLED:
        return f"transformer.layer.{match[1]}.{_SPELLED[match[2]]}.{match[3]}"
    return _SPELLED.get(name, name)


def text_tower(
    tensors: Mapping[str, np.ndarray], configuration: Mapping[str, Any] | None = None
) -> tuple[TextTower, Weights]:
    """The tower and its weights, by their names in it and without the head, which such a file does not have.

    Args:
        tensors: of a ``pytorch_model.bin`` or ``model.safetensors``.
        configuration: the ``config.json`` beside it; without one, there are 12 heads, the exact GELU, an epsilon of
            1e-12 and padding 0, as in all of BERT's own models.

    Raises:
        CheckpointError: they are not those of a BERT, or the configuration says what cannot be computed here.
    """
    prefix = next((prefix for prefix in ("distilbert.", "bert.") if starts(tensors, prefix)), "")
    weights: Weights = {}
    for full, array in tensors.items():
        name = full.removeprefix(prefix)
        if (own := canonical(name)) != name:
            weights[own] = array
        elif name != _TYPES and not _LEFT_OUT.fullmatch(name):
            raise CheckpointError(f"It holds {full}, which is no parameter of a BERT or DistilBERT.")
    weights = join_attention(weights)
    if apart := [name for name in weights if re.search(r"attn\.[qkv]_proj\.", name)]:
        raise CheckpointError(f"Its {apart[0]} has no two others of the same shape and type, as q, k and v have.")
    types = tensors.get(prefix + _TYPES)
    if types is not None:
        positions = weights.get("positional_embedding", np.zeros(0))
        if positions.ndim != 2 or types.ndim != 2 or len(types) == 0 or types.shape[1] != positions.shape[1]:
            raise CheckpointError(f"Its token types have shape {types.shape}, its positions {positions.shape}.")
        if len(types) == 1 and configuration is None:
            raise CheckpointError(
                "It has one token type, as RoBERTa has, whose positions are counted in another way; put the "
                "config.json of its model beside it."
            )
        weights["positional_embedding"] = positions + types[0]
    shapes = Shapes({name: array.shape for name, array in weights.items()}, "")
    tower: Any = TEXT_TOWERS["distilbert"].infer(shapes)
    if configuration is not None:
        tower = replace(tower, **_said(configuration))
    return tower, weights


def _said(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says that shapes do not tell."""
    kind = configuration.get("model_type", "bert")
    if kind not in _TYPES_OF_MODEL:
        raise CheckpointError(
            f"Its config.json is of a model of the type {kind!r:.80}; known here are {', '.join(_TYPES_OF_MODEL)}."
        )
    for key in ("is_decoder", "add_cross_attention"):
        if configuration.get(key, False) is not False:
            raise CheckpointError(f"Its config.json sets {key} to {configuration[key]!r:.80}, expected false.")
    activation = configuration.get("hidden_act", configuration.get("activation", "gelu"))
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"Its config.json sets the activation to {activation!r:.80}, which cannot be computed here."
        )
    if (positions := configuration.get("position_embedding_type", "absolute")) != "absolute":
        raise CheckpointError(f"Its config.json sets position_embedding_type to {positions!r:.80}, expected absolute.")
    heads = "num_attention_heads" if "num_attention_heads" in configuration else "n_heads"
    return {
        "heads": number(configuration, heads, 12),
        "activation": _ACTIVATIONS[activation],
        "epsilon": configuration.get("layer_norm_eps", 1e-12),  # DistilBERT has no key for it
        "padding": configuration.get("pad_token_id", 0),
    }
