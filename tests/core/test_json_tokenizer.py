"""Tokenizers of vocab.txt and tokenizer.json equal those of transformers, and what is none is one sentence."""

# ruff: noqa: RUF001
from __future__ import annotations

import base64
import builtins
import json
import pickle
import random
import re
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import DistilBertTokenizer, PreTrainedTokenizerFast

from clip_core.errors import ClipError, TextError
from clip_core.installation import requirement
from clip_core.text.bpe_training import learn
from clip_core.text.json_tokenizer import JsonTokenizer
from clip_core.text.loading import misfit, read_tokenizer, tokenizer_from
from clip_core.towers.parts import TextTower

TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "A Photo, of: (a) CAT!?",
    "don't stop\tme\n now",
    "Zürich naïve Ångström ﬁne e\u0301 \u1e9e",
    "你好，世界 漢字かなカナ 한국어",
    "שלום عليكم नमस्ते ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 ☃️",
    "x" * 150,
    "1234567890 3.14 10^6 ½",
    "\u200b\ufeff\u00ad\u0000\u0007 controls",
    "[UNK] words <pad> ▁ blocks_and-dashes",
    "ΣΊΣΥΦΟΣ ǅ İstanbul",
    "quick brown foxes jumping over lazy dogs " * 3,
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def fuzzed() -> list[str]:
    """Random texts out of the letters of many scripts, blanks and signs."""
    random_ = random.Random(0)
    letters = "abcdefgABCDEFG  \t.,!?'-_éÉßñ你好ひ가אب😀\u0301\u200d0123456789"
    return ["".join(random_.choices(letters, k=random_.randrange(1, 40))) for _ in range(300)]


def letters() -> list[str]:
    """The letters of `TEXTS` and `fuzzed`, lower-cased and without accents."""
    text = "".join(TEXTS + fuzzed()).lower()
    return sorted({letter for letter in unicodedata.normalize("NFD", text) if not letter.isspace()})


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Path:
    """A vocab.txt that spells the texts in words, pieces of words and letters; some letters are unknown."""
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    known = [letter for letter in letters() if letter not in "你א"]
    words = ["photo", "cat", "stop", "quick", "jump", "##ing", "##es", "don", "zur", "##ich", "12", "##34", "##xx"]
    path.write_text("\n".join([*SPECIALS, *known, *(f"##{letter}" for letter in known), *words]) + "\n")
    return path


@pytest.fixture(scope="module")
def unigram(tmp_path_factory) -> Path:
    """A SentencePiece-unigram tokenizer.json as T5's and SigLIP's are, whose settings say that </s> fills texts up."""
    trained = LibraryTokenizer(models.Unigram())
    trained.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator([*TEXTS, *fuzzed()], trainer)
    trained.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "</s>"}}))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory) -> Path:
    """The tokenizer.json of the low-resource family: byte-level pairs, with padding, end and start in front."""
    trained = LibraryTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["[NON]", "[EOS]", "[SOS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    trained.post_processor = processors.BertProcessing(("[EOS]", 1), ("[SOS]", 2))
    trained.enable_padding(length=10**9, pad_token="[NON]", pad_id=0)
    trained.enable_truncation(2)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    trained.save(str(path))
    return path


def rows(texts: list[str], library: PreTrainedTokenizerFast, length: int) -> np.ndarray:
    return library(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")["input_ids"]


@pytest.mark.parametrize("length", [5, 40])
def test_wordpiece_equals_distilberts(wordpiece, length):
    ours = read_tokenizer(wordpiece)
    theirs = DistilBertTokenizer.from_pretrained(wordpiece.parent)
    found = ours.tokenize([*TEXTS, *fuzzed()], length, truncate=True)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, rows([*TEXTS, *fuzzed()], theirs, length))
    assert (ours.start, ours.end, ours.padding) == (2, 3, 0)
    assert (found == 1).any()  # unknown words occur
    assert ours.decode(found[2]) == theirs.decode(found[2])


@pytest.mark.parametrize("lower", [True, False])
def test_settings_beside_a_vocabulary_say_whether_to_lower_case(wordpiece, lower, tmp_path):
    (tmp_path / "vocab.txt").write_text(wordpiece.read_text() + "CAT\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    ours = read_tokenizer(tmp_path / "vocab.txt")
    theirs = DistilBertTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(ours.tokenize(TEXTS, 40, truncate=True), rows(TEXTS, theirs, 40))
    assert (ours.vocabulary_size - 1 in ours.encode("a CAT")) != lower


@pytest.mark.parametrize("kind", ["unigram", "bytewise"])
@pytest.mark.parametrize("length", [5, 64])
def test_a_tokenizer_json_equals_the_library(kind, length, request):
    path = request.getfixturevalue(kind)
    names = {"unigram": {"pad_token": "</s>"}, "bytewise": {"pad_token": "[NON]"}}[kind]
    ours, theirs = read_tokenizer(path), PreTrainedTokenizerFast(tokenizer_file=str(path), **names)
    found = ours.tokenize([*TEXTS, *fuzzed()], length, truncate=True)
    np.testing.assert_array_equal(found, rows([*TEXTS, *fuzzed()], theirs, length))
    assert (ours.start, ours.end, ours.padding) == {"unigram": (None, 1, 1), "bytewise": (2, 1, 0)}[kind]
    assert ours.decode(found[4]) == theirs.decode(found[4])
    assert len(np.unique(found)) > 50


def test_siglips_texts_lose_case_and_punctuation(unigram, tmp_path):
    """As SigLIP's tokenizer cleans them, whatever the tokenizer.json says of it."""
    (tmp_path / "tokenizer.json").write_text(unigram.read_text())
    settings = {"pad_token": "</s>", "tokenizer_class": "SiglipTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    siglip, plain = read_tokenizer(tmp_path / "tokenizer.json"), read_tokenizer(unigram)
    texts = [text.replace("<pad>", "") for text in TEXTS]  # which is taken for the token before
    for text in [*texts, *fuzzed(), f"a{string.punctuation}b"]:
        clean = text.lower().translate(str.maketrans("", "", string.punctuation))
        clean = re.sub(r"\s+", " ", clean).strip()
        assert siglip.encode(text) == plain.encode(clean)
    again = tokenizer_from(siglip.definition)
    assert again.encode("A.B") == siglip.encode("ab")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Siglip2Tokenizer"}))
    assert read_tokenizer(tmp_path / "tokenizer.json").encode("A CAT!") == plain.encode("a cat!")


def test_the_definition_makes_the_same_tokenizer(wordpiece):
    first = read_tokenizer(wordpiece)
    for again in (tokenizer_from(first.definition), pickle.loads(pickle.dumps(first))):  # noqa: S301
        assert again.definition == first.definition
        assert [again.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]
    assert tokenizer_from(learn(["a red circle"], 5)).vocabulary_size == 519


def test_a_special_token_in_a_text_is_refused(wordpiece):
    with pytest.raises(TextError, match=r"the text has \[SEP\] in it, where a model takes a text to begin or end"):
        read_tokenizer(wordpiece).check("a [SEP] b", 40, "shorten it")
    with pytest.raises(TextError, match=r"the text is too long: with start and end it has 5 tokens, and the model re"):
        read_tokenizer(wordpiece).check("cat cat cat", 4, "shorten it")
    read_tokenizer(wordpiece).check("cat \u6666", 4, "shorten it")  # an unknown word is none


class Tower(TextTower):
    """A text tower of which only the tokens are asked."""

    parameters = recognises = infer = summary = None  # type: ignore[assignment]

    def __init__(self, size: int, required: int | None, padding: int | None) -> None:
        self.vocabulary_size, self._required, self._padding = size, required, padding

    required_token = property(lambda self: self._required)
    padding_token = property(lambda self: self._padding)


Tower.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("size", "required", "padding", "fault"),
    [
        (0, None, None, None),
        (0, 3, 0, None),
        (8, 3, None, None),  # tokens that were added to the model
        (8, None, None, "of {size} tokens, and its text tower is for {more}"),
        (-1, 3, None, "of {size} tokens that ends texts with 3, and its text tower is for {less} and looks for 3"),
        (0, 2, None, "of {size} tokens that ends texts with 3, and its text tower is for {size} and looks for 2"),
        (0, None, 1, "that fills texts up with 0, and its text tower looks for 1"),
    ],
)
def test_a_tokenizer_must_fit_its_tower(wordpiece, size, required, padding, fault):
    tokenizer = read_tokenizer(wordpiece)
    sizes = {"size": tokenizer.vocabulary_size}
    sizes |= {"more": sizes["size"] + 8, "less": sizes["size"] - 1}
    found = misfit(tokenizer, Tower(sizes["size"] + size, required, padding))
    assert found == (fault and fault.format(**sizes))


# Hostile files --------------------------------------------------------------------------------------------------------

REMOVE = object()


def small(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of three words, with other values under the names of its model and of itself."""
    body = {
        "version": "1.0",
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0},
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "ab": 2}, "unk_token": "a"},
    }
    for name, value in changes.items():
        place = body["model"] if name in ("type", "vocab", "unk_token", "unk_id", "merges", "dropout") else body
        place[name] = value
    return body


def added(token: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": token, "id": number, **flags}


def replaced(content: str, times: int = 1) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def template(*tokens: str) -> dict[str, Any]:
    pieces = [{"Sequence": {"id": "A"}} if token == "$" else {"SpecialToken": {"id": token}} for token in tokens]
    known = {"a": {"ids": [0]}, "far": {"ids": [9]}, "two": {"ids": [0, 1]}}
    return {"type": "TemplateProcessing", "single": pieces, "special_tokens": known}


def table(replacement: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(replacement).decode()}


PAIRS = {"type": "BPE", "unk_token": None}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, r"the tokenizer.json is damaged \(KeyError\('model'\)\); download it again"),
        (small(type="Tree"), "is of the kind 'Tree'; known are WordPiece, Unigram, BPE, WordLevel"),
        (small(vocab={}), "has no tokens"),
        (small(vocab={"a": 0, "b": 2}), "has 2 tokens, but their ids are not 0 to 1: 'b' has 2"),
        (small(vocab={"a": 0, "b": 0}), "has 2 tokens, but their ids are not 0 to 1: 'b' has 0"),
        (small(vocab={"a": 0, "b": 4294967296}), "but their ids are not 0 to 1: 'b' has 4294967296"),
        (small(vocab={"a": "0"}), "but their ids are not 0 to 0: 'a' has '0'"),
        (small(vocab=5), "is damaged"),
        (small(unk_token="c"), "has 'c' for unknown words, which is none of its tokens"),
        (small(type="Unigram", vocab=[["a", -1.0]], unk_id=1), "has 1 for unknown words"),
        (small(type="Unigram", vocab=[["a"]], unk_id=0), "is damaged"),
        (small(added_tokens=[added("c", 7)]), "has 4 tokens, but their ids are not 0 to 3: 'c' has 7"),
        (small(**PAIRS, merges=["a b"], dropout=0.5), "has a dropout, so that it is random"),
        (small(**PAIRS, merges=["b a"]), "merges 'b' and 'a', which its vocabulary lacks"),
        (small(**PAIRS, merges=["ab"]), "is damaged"),
        (small(normalizer=replaced("x" * 101)), "has a normalizer that may make a text 101 times as long"),
        (small(normalizer=replaced("aa", 7)), "has a normalizer that may make a text 128 times as long"),
        (small(normalizer=table(b"\4\0\0\0abcd" + b"x" * 101)), "may make a text 101 times as long"),
        (small(normalizer=table(b"\xff\xff\xff\xffabcd")), "has a damaged precompiled_charsmap"),
        (small(normalizer=table(b"\4\0\0\0abcd\xff")), "is damaged"),
        (small(normalizer={"type": "Nothing"}), "cannot be read"),
        (small(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}), "cannot be read"),
        (small(padding=None), "does not say which token fills texts up; put the tokenizer_config.json"),
        (small(padding={"direction": "Left", "pad_id": 0}), "fills texts up in front"),
        (small(padding={"direction": "Right", "pad_id": 3}), "puts the token 3 around texts"),
        (small(padding={"direction": "Right", "pad_id": -1}), "puts the token -1 around texts"),
        (small(post_processor={"type": "Other"}), "has a post_processor 'Other' that is not known here"),
        (small(post_processor=template("a", "a", "$")), "puts more around a text than one token in front"),
        (small(post_processor=template("two", "$")), "puts more around a text than one token in front"),
        (small(post_processor=template("$", "$")), "puts more around a text than one token in front"),
        (small(post_processor=template("$", "far")), "puts the token 9 around texts"),
        (small(post_processor=template("$", "unknown")), "is damaged"),
    ],
)
def test_impossible_tokenizers_are_one_sentence(body, sentence):
    with pytest.raises(TextError, match=sentence):
        JsonTokenizer(json.dumps(body))


def test_the_small_one_is_a_tokenizer():
    assert JsonTokenizer(json.dumps(small())).tokenize("b ab c", 5).tolist() == [[1, 2, 0, 0, 0]]
    ends = small(post_processor=template("a", "$"))
    assert JsonTokenizer(json.dumps(ends)).tokenize("b", 3).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it starts with ''; give a merges file, a tokenizer.json or a vocab.txt"),
        (b"{", "the tokenizer.json is not JSON"),
        (b'{"model": ' * 20_000, "the tokenizer.json is not JSON"),
        (b"\xff{", "'utf-8' codec can't decode byte 0xff"),
        (b"[PAD]\n[UNK]\n[CLS]\n", r"the vocab.txt has no line \[SEP\], which BERT's vocabularies have"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n", "the vocab.txt has 'a' on two lines"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nThe\n", "the vocab.txt has the token 'The' in upper case, so texts may have to"),
    ],
)
def test_files_that_are_no_tokenizers(content, sentence, tmp_path):
    path = tmp_path / "tokenizer"
    path.write_bytes(content)
    with pytest.raises(TextError, match=rf"^{re.escape(str(path))} is no tokenizer: {sentence}"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("[]", "tokenizer_config.json beside it is not a JSON object"),
        ("{", "tokenizer_config.json beside it cannot be read"),
        ('{"pad_token": "[NON]"}', r"its tokenizer_config.json fills texts up with '\[NON\]', which it has not"),
    ],
)
def test_settings_that_cannot_be_used(wordpiece, settings, sentence, tmp_path):
    (tmp_path / "vocab.txt").write_text(wordpiece.read_text())
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(TextError, match=sentence):
        read_tokenizer(tmp_path / "vocab.txt")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    definition = json.dumps(small())
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ClipError, match=rf"not installed; run: pip install {re.escape(requirement('tokenizers'))}\."):
        JsonTokenizer(definition)
