"""Tokenizers that a tokenizer.json describes: WordPiece, SentencePiece-unigram and byte-pair encodings of others.

The library ``tokenizers`` does the work, one text at a time, so that it starts no threads. It ends the process on some
impossible descriptions, and fills the memory by others; so they are checked here before it gets them, and what stands
around a text is added here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clip_core.errors import ClipError, TextError
from clip_core.installation import requirement
from clip_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

MAXIMUM_GROWTH = 100
"""How many times as long as a text its normalisation may be: one character becomes 18 at most in Unicode's."""

_KINDS = {
    "WordPiece": "WordPiece",
    "Unigram": "SentencePiece-unigram",
    "BPE": "byte-pair encoding",
    "WordLevel": "whole words",
}


class JsonTokenizer(Tokenizer):
    """A tokenizer of the library ``tokenizers``.

    Its ``post_processor`` says which token is put in front of each text and which behind it, and its ``padding`` which
    one fills it up. A length in ``padding`` or ``truncation`` has no effect: a model reads as much as its context.
    """

    def __init__(self, definition: str):
        """Read ``definition``, the text of a tokenizer.json.

        Raises:
            TextError: it is none, or not one that gives the same tokens each time.
            ClipError: the library is not installed.
        """
        self._definition = definition
        try:
            body = parsed(definition)
            ids = _ids(body)
            self.kind = _KINDS[body["model"]["type"]]
            self.vocabulary_size = len(ids)
            self.start, self.end = _around(body.get("post_processor"))
            self.padding = _padding(body)
            _check_model(body["model"], ids)
            _check_growth(body)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise TextError(f"the tokenizer.json is damaged ({error!r:.200}); download it again.") from error
        around = [token for token in (self.start, self.end, self.padding) if token is not None]
        for token in around:
            if type(token) is not int or not 0 <= token < self.vocabulary_size:
                raise TextError(
                    f"the tokenizer.json puts the token {token!r:.80} around texts, which is none of its own."
                )
        self.special = frozenset(around)
        self._tokenizer = _built(body)
        for token in body.get("added_tokens") or ():
            if self._tokenizer.token_to_id(token["content"]) != token["id"]:
                raise TextError(
                    f"the tokenizer.json adds the token {token['content']!r:.80} under the id {token['id']}, which its "
                    "vocabulary has for another; download it again."
                )

    @property
    def definition(self) -> str:
        return self._definition

    def spelling(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def _encode(self, text: str) -> list[int]:
        with _faults("the text cannot be encoded"):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _decode(self, tokens: list[int]) -> str:
        with _faults("the tokens cannot be decoded"):
            return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def __reduce__(self) -> tuple[type[JsonTokenizer], tuple[str]]:
        return JsonTokenizer, (self._definition,)


def parsed(definition: str) -> dict[str, Any]:
    """The content of a tokenizer.json.

    Raises:
        TextError: it is no JSON object.
    """
    try:
        body = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise TextError(f"the tokenizer.json is not JSON: {error!s:.200}; download it again.") from error
    if not isinstance(body, dict):
        raise TextError("the tokenizer.json is not a JSON object; download it again.")
    return body


def dumped(body: Mapping[str, Any]) -> str:
    """The text of a tokenizer.json with this content."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def token_ids(body: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, of the vocabulary and of what is added to it.

    Raises:
        KeyError, TypeError, AttributeError: there is no vocabulary.
    """
    vocabulary = body["model"]["vocab"]
    if isinstance(vocabulary, list):  # of tokens with their scores
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary) | {token["content"]: token["id"] for token in body.get("added_tokens") or ()}


def _ids(body: Mapping[str, Any]) -> dict[str, int]:
    """`token_ids`, once it is sure that each id from 0 to the last is that of one token.

    Raises:
        TextError: it is not so.
    """
    if body["model"]["type"] not in _KINDS:
        raise TextError(
            f"the tokenizer.json is of the kind {body['model']['type']!r:.50}; known are {', '.join(_KINDS)}."
        )
    ids = token_ids(body)
    for place, (found, token) in enumerate(sorted((number, token) for token, number in ids.items())):
        if type(found) is not int or found != place:
            raise TextError(
                f"the tokenizer.json has {len(ids)} tokens, but their ids are not 0 to {len(ids) - 1}: {token!r:.80} "
                f"has {found!r:.40}; download it again."
            )
    if not ids:
        raise TextError("the tokenizer.json has no tokens; download it again.")
    return ids


def _check_model(model: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Refuse a model that is random, or that the library cannot bear.

    Raises:
        TextError: naming what is wrong with it.
        KeyError, TypeError, ValueError: something is missing, or of a wrong type.
    """
    if model.get("dropout"):
        raise TextError("the tokenizer.json has a dropout, so that it is random; set its model's dropout to null.")
    if model["type"] == "Unigram":
        unknown, known = model["unk_id"], model["unk_id"] in range(len(model["vocab"]))
    else:
        unknown = model.get("unk_token")
        known = unknown in ids or (unknown is None and model["type"] == "BPE")
    if not known:
        raise TextError(f"the tokenizer.json has {unknown!r:.80} for unknown words, which is none of its tokens.")
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if not right.startswith(prefix) or not {left, right, left + right[len(prefix) :]} <= ids.keys():
                raise TextError(
                    f"the tokenizer.json merges {left!r:.80} and {right!r:.80}, which its vocabulary lacks, or what "
                    "they make; download it again."
                )


def _check_growth(body: Mapping[str, Any]) -> None:
    """Refuse what makes a short text endless.

    Raises:
        TextError: it may become more than `MAXIMUM_GROWTH` times as long.
        KeyError, TypeError, ValueError: something is missing, or of a wrong type.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for step in _steps(body.get(part)):
            growth *= max(1, *(len(step.get(name) or "") for name in ("content", "prepend")))
            if step["type"] == "Precompiled":
                growth *= _longest_replacement(base64.b64decode(step["precompiled_charsmap"], validate=True))
        if growth > MAXIMUM_GROWTH:
            raise TextError(
                f"the tokenizer.json has a {part} that may make a text {growth} times as long; at most "
                f"{MAXIMUM_GROWTH} times is accepted."
            )


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or decoder, which may be a sequence of others."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for part in component.get(name) or ():
            yield from _steps(part)


def _longest_replacement(table: bytes) -> int:
    """Bytes that SentencePiece's table of normalisation puts in place of a character, at most.

    The table is the size of an index, the index, and the replacements, each with a zero behind it.

    Raises:
        TextError: it is damaged.
        UnicodeDecodeError: a replacement is no text.
    """
    start = 4 + int.from_bytes(table[:4], "little")
    if start % 4 or not 4 < start <= len(table):
        raise TextError("the tokenizer.json has a damaged precompiled_charsmap; download it again.")
    table[start:].decode("utf-8")
    return max(1, *map(len, table[start:].split(b"\0")))


def _around(processor: Any) -> tuple[int | None, int | None]:
    """The tokens that a post-processor puts in front of a text and behind it.

    Raises:
        TextError: it is of a kind that is not known, or puts more there.
        KeyError, TypeError, ValueError: something is missing, or of a wrong type.
    """
    kind = None if processor is None else processor["type"]
    if kind in (None, "ByteLevel"):  # the latter changes offsets alone
        return None, None
    if kind in ("BertProcessing", "RobertaProcessing"):
        return int(processor["cls"][1]), int(processor["sep"][1])
    if kind == "Sequence":
        adding = [around for part in processor["processors"] if (around := _around(part)) != (None, None)]
        if len(adding) < 2:
            return adding[0] if adding else (None, None)
    if kind == "TemplateProcessing":
        tokens: list[int | None] = []  # None for the text
        for piece in processor["single"]:
            special = piece.get("SpecialToken")
            tokens += [None] if special is None else processor["special_tokens"][special["id"]]["ids"]
        if tokens.count(None) == 1:
            text = tokens.index(None)
            start, end = tokens[:text] or [None], tokens[text + 1 :] or [None]
            if len(start) == len(end) == 1:
                return start[0], end[0]
    raise TextError(
        f"the tokenizer.json has a post_processor {kind!r:.50} that is not known here, or that puts more around a text "
        "than one token in front and one behind."
    )


def _padding(body: Mapping[str, Any]) -> int:
    """The token that fills texts up.

    Raises:
        TextError: nothing says it.
        KeyError, TypeError: something is missing, or of a wrong type.
    """
    padding = body.get("padding")
    if padding is None:
        raise TextError(
            "the tokenizer.json does not say which token fills texts up; put the tokenizer_config.json of its model "
            'beside it, or give it a "padding" with that token\'s "pad_id".'
        )
    if padding["direction"] != "Right":
        raise TextError("the tokenizer.json fills texts up in front, and here that is done behind.")
    return int(padding["pad_id"])


def _built(body: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, without what is done here.

    Raises:
        TextError: the library cannot read it.
        ClipError: it is not installed.
    """
    try:
        from tokenizers import Tokenizer as LibraryTokenizer
    except ImportError as error:
        raise ClipError(
            "A tokenizer.json is read with the library tokenizers, which is not installed; run: pip install "
            f"{requirement('tokenizers')}."
        ) from error
    with _faults("the tokenizer.json cannot be read"):
        return LibraryTokenizer.from_str(dumped({**body, "padding": None, "truncation": None, "post_processor": None}))


@contextmanager
def _faults(sentence: str) -> Iterator[None]:
    """Turn what the library raises into a sentence."""
    try:
        yield
    except BaseException as error:
        # Rust's panics are no Exceptions.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TextError(f"{sentence}: {error!s:.300}.") from error
        raise
