"""The tokenizer.json of tokenizers that come as something else: BERT's vocab.txt, learnt byte pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_core.errors import TextError
from clip_core.text.bpe import BYTE_SYMBOLS
from clip_core.text.json_tokenizer import dumped, parsed, token_ids

BYTE_LEVEL_SPECIALS = ("[NON]", "[EOS]", "[SOS]")
"""Padding, end and start, which are the first tokens of a byte-level vocabulary that is learnt here."""

# What a tokenizer_config.json and BERT's normalizer call the same.
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# What classes of transformers do to a text before the tokenizer.json's own steps; doing it twice changes nothing.
_LOWERCASE: dict[str, Any] = {"type": "Lowercase"}
_BEFORE: dict[str, list[dict[str, Any]]] = {
    "Siglip2Tokenizer": [_LOWERCASE],
    "SiglipTokenizer": [
        _LOWERCASE,
        {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},  # ASCII's punctuation
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
}
CLEANINGS: dict[str, list[dict[str, Any]]] = {
    "canonicalize": [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        *_BEFORE["SiglipTokenizer"],
    ],
}
"""What open_clip does to a text before the tokenizer gets it, by the name that its configurations have for it."""


def wordpiece(vocabulary: str, settings: Mapping[str, Any]) -> str:
    """The tokenizer.json for a vocab.txt, which has a token on each line, in the order of their ids.

    Args:
        settings: of a tokenizer_config.json, where there is one. By default texts are lower-cased and lose
            their accents.

    Raises:
        TextError: a token occurs twice, BERT's special tokens are not there, or nothing says whether to lower-case.
    """
    tokens = vocabulary.replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise TextError(f"the vocab.txt has {twice!r:.80} on two lines; download it again.")
    for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if special not in ids:
            raise TextError(f"the vocab.txt has no line {special}, which BERT's vocabularies have; download it again.")
    cased = next((token for token in tokens if token != token.lower() and not token.startswith("[")), None)
    if cased is not None and "do_lower_case" not in settings:
        raise TextError(
            f"the vocab.txt has the token {cased!r:.80} in upper case, so texts may have to keep theirs; put the "
            "tokenizer_config.json of its model beside it, which says so."
        )
    body = _body(
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
        special=[token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids],
        around=("[CLS]", "[SEP]", "[PAD]"),
    )
    return completed(body, settings)


def byte_level(merges: Sequence[tuple[str, str]]) -> str:
    """The tokenizer.json for byte pairs that `bpe_training.learn_byte_level` has learnt."""
    tokens = [*BYTE_LEVEL_SPECIALS, *BYTE_SYMBOLS, *map("".join, merges)]
    padding, end, start = BYTE_LEVEL_SPECIALS
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    body = _body(
        normalizer=None,
        pre_tokenizer=byte_level,
        decoder=byte_level,
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [" ".join(merge) for merge in merges],
        },
        special=BYTE_LEVEL_SPECIALS,
        around=(start, end, padding),
    )
    return dumped(body)


def completed(body: dict[str, Any], settings: Mapping[str, Any]) -> str:
    """The text of a tokenizer.json with what only the tokenizer_config.json beside it says.

    That is which token fills texts up, whether BERT's lower-case, and what SigLIP's do to a text before.

    Args:
        settings: of a tokenizer_config.json, and under ``model_type`` that of a config.json; either may be missing.

    Raises:
        TextError: both contradict each other.
        KeyError, TypeError, AttributeError: something is missing, or of a wrong type.
    """
    ids = token_ids(body)
    if settings.get("padding_side", "right") != "right":
        raise TextError("its tokenizer_config.json fills texts up in front, and here that is done behind.")
    padding = settings.get("pad_token")
    padding = padding["content"] if isinstance(padding, dict) else padding
    if padding is None and body.get("padding") is None and body["model"]["type"] == "WordPiece":
        padding = "[PAD]"  # which BERT's classes take
    if padding is not None:
        if padding not in ids:
            raise TextError(f"its tokenizer_config.json fills texts up with {padding!r:.80}, which it has not.")
        body["padding"] = _padded(padding, ids)
    normalizer = body.get("normalizer")
    if normalizer is not None and normalizer["type"] == "BertNormalizer":
        for theirs, ours in _BERT_SETTINGS.items():
            normalizer[ours] = settings.get(theirs, normalizer[ours])
    name = settings.get("tokenizer_class", "").removesuffix("Fast")
    if settings.get("model_type") in ("siglip", "siglip2"):  # whose folders may name the class of another model
        name = "SiglipTokenizer" if body["model"]["type"] == "Unigram" else "Siglip2Tokenizer"
    steps = _BEFORE.get(name)
    if steps is not None:
        body["normalizer"] = _preceded(normalizer, steps)
    return dumped(body)


def cleaned(definition: str, cleaning: str) -> str:
    """The text of a tokenizer.json with one of `CLEANINGS` in front of its own steps.

    Raises:
        TextError: it is no JSON object.
    """
    body = parsed(definition)
    return dumped(body | {"normalizer": _preceded(body.get("normalizer"), CLEANINGS[cleaning])})


def _preceded(normalizer: dict[str, Any] | None, steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [*steps, *([] if normalizer is None else [normalizer])]}


def _body(
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any],
    decoder: dict[str, Any],
    model: dict[str, Any],
    special: Sequence[str],
    around: tuple[str, str, str],
) -> dict[str, Any]:
    """The content of a tokenizer.json.

    Args:
        special: its special tokens.
        around: those in front of a text, behind it, and behind that.
    """
    ids = model["vocab"]
    start, end, padding = around
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (start, end)]
    single = [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": _padded(padding, ids),
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in special],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": end, "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in sorted({start, end})
            },
        },
        "decoder": decoder,
        "model": model,
    }


def _padded(token: str, ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": ids[token],
        "pad_type_id": 0,
        "pad_token": token,
    }
