"""The tokenizer equals OpenAI's, on every code point and on whatever people type, and refuses what is no text."""

# ruff: noqa: RUF001
from __future__ import annotations

import pickle
import random
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from clip_core.errors import TextError
from clip_core.text import bpe as module
from clip_core.text import vocabulary
from clip_core.text.bpe import END_OF_WORD, BytePairTokenizer, byte_symbols, openai, words
from clip_core.text.tokenizer import MAXIMUM_CHARACTERS

SMALL = "#version: test\nt h\nth e</w>\na n\nan d</w>\n"


@pytest.fixture(scope="module")
def official() -> SimpleTokenizer:
    """An independent copy of OpenAI's tokenizer; it differs in the spelling of the special tokens only."""
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def ranks() -> dict[tuple[str, str], int]:
    lines = vocabulary.openai_merges().splitlines()[1:]
    return {(left, right): rank for rank, (left, right) in enumerate(line.split() for line in lines)}


def differences(official: SimpleTokenizer, texts: Iterable[str]) -> list[str]:
    ours = openai()
    return [text for text in texts if ours.encode(text) != official.encode(text)]


def naive(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as it is defined: the earliest merge everywhere from left to right, again and again."""
    symbols = byte_symbols(word)
    while True:
        known = [pair for pair in pairwise(symbols) if pair in ranks]
        if not known:
            return symbols
        best = min(known, key=ranks.__getitem__)
        merged, position = [], 0
        while position < len(symbols):
            step = 2 if tuple(symbols[position : position + 2]) == best else 1
            merged.append("".join(symbols[position : position + step]))
            position += step
        symbols = merged


def spelt(tokens: list[int], merges: str) -> list[str]:
    vocabulary = [*module.BYTE_SYMBOLS, *(symbol + END_OF_WORD for symbol in module.BYTE_SYMBOLS)]
    vocabulary += [line.replace(" ", "") for line in merges.splitlines()[1:]]
    return [vocabulary[token] for token in tokens]


# Values ---------------------------------------------------------------------------------------------------------------


def test_published_row():
    row = openai().tokenize("A photo of a person with black hair")
    expected = np.zeros((1, 77), np.int64)
    expected[0, :10] = [49406, 320, 1125, 539, 320, 2533, 593, 1449, 2225, 49407]
    assert row.dtype == np.int64
    np.testing.assert_array_equal(row, expected)


def test_published_ids():
    assert openai().encode("The quick brown fox.") == [518, 3712, 2866, 3240, 269]
    assert (openai().vocabulary_size, openai().start, openai().end) == (49408, 49406, 49407)


def test_small_vocabulary_uses_all_its_lines():
    small = BytePairTokenizer(SMALL)
    assert (small.vocabulary_size, small.start, small.end) == (518, 516, 517)
    h, e = ord("h") - 33, ord("e") - 33  # bytes are numbered from "!"
    assert small.encode("The and he than") == [
        513,
        515,
        h,
        256 + e,
        512,
        ord("a") - 33,
        256 + ord("n") - 33,
    ]


def test_windows_line_ends_in_merges():
    assert BytePairTokenizer(SMALL.replace("\n", "\r\n")).encode("the and") == [513, 515]


@pytest.mark.parametrize("text", ["", " ", "\t\n \u3000", "\0", "\x7f"])
def test_nothing_to_encode(text, official):
    assert openai().encode(text) == official.encode(text) == []
    assert openai().tokenize(text)[0, :3].tolist() == [49406, 49407, 0]


# Agreement with the official tokenizer --------------------------------------------------------------------------------


def code_points(stride: int) -> Iterable[str]:
    return (f"a{chr(c)}b" for c in range(0, 0x110000, stride) if not 0xD800 <= c <= 0xDFFF)


def test_code_points_sample(official):
    common = (f"a{chr(c)}b" for c in range(0x3400) if c % 7)
    assert differences(official, [*common, *code_points(29)]) == []


@pytest.mark.slow
def test_every_code_point(official):
    texts = list(code_points(1))
    assert len(texts) == 1_112_064
    assert differences(official, texts) == []


PIECES = [
    *"aZ09.,!?'\"-_&#;<>|/\\@ \t\n\r\x0b\x0c\x1b\x1c\x85\xa0\u2028\u200b\u200d\ufeff\ufffd",
    *[
        "the",
        "Photo",
        "of",
        "a",
        "DOG",
        "dog's",
        "I'll",
        "you'Re",
        "'S",
        "'ſ",
        "n't",
        "''s",
        "2023",
        "3.14",
        "x²",
        "½",
        "Ⅷ",
    ],
    *[
        "&amp;",
        "&amp;amp;lt;",
        "&lt;b&gt;",
        "&eacute;",
        "&#39;",
        "&#x1F600;",
        "&nbsp;",
        "&#0;",
        "&#xD800;",
        "&notit;",
        "&",
    ],
    *[
        "Ã©",
        "â€œquotedâ€\x9d",
        "L&AMP;AMP;ATILDE;&AMP;AMP;SUP3;",
        "schÃ¶n",
        "“curly”",
        "it’s",
        "ﬁne",
        "ＦＵＬＬ",
        "ｶﾞ",
        "\x1b[31mred",
    ],
    *[
        "é",
        "e\u0301",
        "İstanbul",
        "ΟΔΟΣ",
        "ß",
        "ǅ",
        "ﷺ",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "日本語",
        "한국어",
        "\u1112\u1161\u11ab",
        "ไทย",
    ],
    *[
        "😀",
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳️\u200d🌈",
        "👍🏽",
        "🇫🇷",
        "1️⃣",
        "\U0001d518",
        "\U0010ffff",
        "\ue000",
        "\ud83d\ude00",
    ],
    *["</w>", "<start>", "<|", "|>", "endoftext", "a</w>b", "ĠG", "Ā"],
]


def fuzzed(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [random_.choice(["", " "]).join(random_.choices(PIECES, k=random_.randrange(1, 12))) for _ in range(count)]


def test_fuzzed_texts(official):
    assert differences(official, fuzzed(6000, seed=0)) == []


def test_fuzzed_ascii(official):
    """Plain ASCII takes a shorter way."""
    random_ = random.Random(1)
    texts = ["".join(chr(random_.randrange(32, 127)) for _ in range(random_.randrange(30))) for _ in range(6000)]
    assert differences(official, texts) == []


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES) | st.text(st.characters(max_codepoint=127), max_size=9)).map("".join))
def test_the_short_way_is_the_long_one(text):
    """Clean texts are left as they are, and remembered by their parts between blanks instead of by their words."""
    repaired = module.repaired(text)
    assert repaired == text or not module._is_clean(text)
    ours = openai()
    assert ours.encode(text) == [token for word in module._words_of(repaired) for token in ours._encode_part(word)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("&amp;lt;3", "<3"),
        ("caf&eacute;", "café"),
        ("ＦＵＬＬ", "full"),
        ("it’s", "it's"),
        ("schÃ¶n", "schön"),
        ("e\u0301", "é"),
    ],
)
def test_same_text_written_differently(left, right):
    assert openai().encode(left) == openai().encode(right) != []


# Byte-pair encoding ---------------------------------------------------------------------------------------------------


def test_long_words_equal_the_definition(ranks):
    random_, merges = random.Random(2), vocabulary.openai_merges()
    made = ["a" * 301, "ab" * 150, "ha" * 77 + "h", "é" * 40, "the" * 60, "lolololololo"]
    made += ["".join(random_.choices("etaoinshr", k=random_.randrange(2, 120))) for _ in range(200)]
    for word in made:
        assert spelt(openai().encode(word), merges) == naive(word, ranks)


def test_random_vocabularies_equal_the_definition():
    """Few letters and arbitrary merges bring out overlaps and merges that use each other in any order."""
    random_ = random.Random(3)
    for _ in range(60):
        symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
        pairs: dict[tuple[str, str], int] = {}
        for _ in range(25):
            left = random_.choice([symbol for symbol in symbols if not symbol.endswith(END_OF_WORD)])
            right = random_.choice(symbols)
            if left + right not in symbols:
                pairs[left, right] = len(pairs)
                symbols.append(left + right)
        merges = "\n".join(["#version: test", *map(" ".join, pairs)])
        ours = BytePairTokenizer(merges)
        for _ in range(40):
            word = "".join(random_.choices("abc", k=random_.randrange(1, 40)))
            assert spelt(ours.encode(word), merges) == naive(word, pairs)


class CountedMerges(dict):
    looked_up = 0

    def get(self, key, default=None):
        self.looked_up += 1
        return super().get(key, default)


@pytest.mark.parametrize("letters", ["a", "abcdefgh"])
def test_work_on_a_long_word_is_linear_in_look_ups(letters):
    ours = BytePairTokenizer(vocabulary.openai_merges())
    ours._merged = CountedMerges(ours._merged)
    word = "".join(random.Random(4).choices(letters, k=16_000))
    tokens = ours.encode(word)
    assert ours.decode(tokens) == word + " "
    assert ours._merged.looked_up <= 6 * len(word)  # one per neighbours, and at most five per merge


def test_word_cache_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "CACHED_WORDS", 8)
    ours = BytePairTokenizer(vocabulary.openai_merges())
    texts = [f"{word} {'long' * 20}" for word in 3 * [chr(c) * 3 for c in range(97, 123)]]
    assert [ours.encode(text) for text in texts] == [openai().encode(text) for text in texts]
    assert 0 < len(ours._cache) <= 8
    assert all(len(word) <= module.CACHED_WORD_LENGTH for word in ours._cache)


def test_threads_share_a_tokenizer(monkeypatch):
    monkeypatch.setattr(module, "CACHED_WORDS", 8)
    ours = BytePairTokenizer(vocabulary.openai_merges())
    texts = fuzzed(400, seed=5)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: [ours.encode(text) for text in texts], range(4)))
    assert found == 4 * [[openai().encode(text) for text in texts]]


def test_returned_ids_are_the_callers_own():
    ours = BytePairTokenizer(SMALL)
    ours.encode("the").clear()
    assert ours.encode("the") == [513]


def test_a_tokenizer_can_be_sent_to_another_process():
    ours = BytePairTokenizer(SMALL)
    assert pickle.loads(pickle.dumps(ours)).encode("the and") == ours.encode("the and")  # noqa: S301


# Special tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|endoftext|>", [49407]),
        ("<|startoftext|>", [49406]),
        ("a <|EndOfText|> a", [320, 49407, 320]),
        ("&lt;|endoftext|&gt;", [49407]),
        ("&amp;lt;|startoftext|&amp;gt;", [49406]),
        ("a<|endoftext|>a", [320, 49407, 320]),
    ],
)
def test_written_special_tokens_become_special(text, expected):
    assert openai().encode(text) == expected
    written = "<|startoftext|>" if 49406 in expected else "<|endoftext|>"
    with pytest.raises(TextError, match=rf"^the text has {re.escape(written)} in it, where a model takes a text to be"):
        openai().check(text, 77, "shorten it")


def test_nearly_special_tokens_are_text():
    for text in ["<|endoftext|", "<|end of text|>", "<endoftext>", "<start_of_text"]:
        assert not {49406, 49407} & set(openai().encode(text))
        openai().check(text, 77, "shorten it")


# Decoding -------------------------------------------------------------------------------------------------------------


def test_decode_gives_the_words_back():
    for text in fuzzed(2000, seed=5):
        assert openai().decode(openai().encode(text)) == "".join(word + " " for word in words(text))


def test_decode_equals_the_official_one(official):
    random_ = random.Random(6)
    for _ in range(500):
        tokens = [random_.randrange(49406) for _ in range(10)]
        assert openai().decode(tokens) == official.decode(tokens)


def test_decode_of_a_row():
    row = openai().tokenize("Hello, wörld 🤗!", context_length=11)[0]
    assert openai().decode(row) == "<|startoftext|>hello , wörld 🤗! <|endoftext|>!!"
    assert openai().decode([]) == ""


@pytest.mark.parametrize("tokens", [[49408], [-1], [1.5], ["a"], [[1]], 5, None])
def test_decode_refuses_what_is_no_id(tokens):
    with pytest.raises(TextError, match=r"token id -1|token id 49408|one row of whole numbers"):
        openai().decode(tokens)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_several_texts():
    rows = openai().tokenize(("a", np.str_("the"), ""), context_length=4)
    assert rows.tolist() == [[49406, 320, 49407, 0], [49406, 518, 49407, 0], [49406, 49407, 0, 0]]
    np.testing.assert_array_equal(openai().tokenize((t for t in ["a", "the", ""]), context_length=4), rows)


def test_no_texts():
    rows = openai().tokenize([])
    assert (rows.shape, rows.dtype) == ((0, 77), np.int64)


def test_longest_text_that_fits():
    assert openai().tokenize("a " * 75)[0].tolist() == [49406] + [320] * 75 + [49407]


def test_too_long():
    with pytest.raises(TextError) as caught:
        openai().tokenize(["a", "a " * 76])
    assert str(caught.value) == (
        "text 1 is too long for context length 77: it has 78 tokens with start and end; "
        "shorten it, or cut it with truncate=True (in commands: --truncate)."
    )


def test_a_text_that_a_model_would_not_read_to_its_end():
    openai().check("a " * 75, 77, "shorten it")
    openai().check("a " * 76, None, "shorten it")
    with pytest.raises(TextError) as caught:
        openai().check("a " * 76, 77, "shorten it")
    assert str(caught.value) == (
        "the text is too long: with start and end it has 78 tokens, and the model reads 77; shorten it."
    )


def test_truncate_ends_with_end(official):
    texts = ["a " * 76, "the dog " * 100, "short"]
    rows = openai().tokenize(texts, truncate=True)
    assert rows[0].tolist() == [49406] + [320] * 75 + [49407]
    np.testing.assert_array_equal(rows, official(texts).numpy())
    assert openai().tokenize("the dog", context_length=2, truncate=True).tolist() == [[49406, 49407]]


@pytest.mark.parametrize("length", [1, 0, -5, True, 7.0, "77", None])
def test_context_length_is_checked(length):
    with pytest.raises(TextError, match=r"context_length is .*; give a whole number of at least 2"):
        openai().tokenize("a", context_length=length)


# Hostile input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (b"cat", "texts is of type bytes; give a str or a list of str."),
        (None, "texts is of type NoneType; give a str or a list of str."),
        (7, "texts is of type int; give a str or a list of str."),
        (["a", b"cat"], "text 1 is of type bytes, not str; decode it first."),
        (["a", None], "text 1 is of type NoneType, not str; give a text, or a flat list of texts."),
        ([float("nan")], "text 0 is of type float, not str; give a text, or a flat list of texts."),
        ([["a"]], "text 0 is of type list, not str; give a text, or a flat list of texts."),
    ],
)
def test_wrong_types(texts, sentence):
    with pytest.raises(TextError) as caught:
        openai().tokenize(texts)
    assert str(caught.value) == sentence


def test_encode_refuses_a_list():
    with pytest.raises(TextError, match="the text is of type list, not str"):
        openai().encode(["a"])


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfff", "ab\udc80\ud83d", "ab\ud83d\ud83d\ude00"])  # noqa: PT014
def test_lone_surrogate(text):
    with pytest.raises(TextError, match=r"text 1 has the lone surrogate U\+D[8-F][0-9A-F]{2} at character 2"):
        openai().tokenize(["fine", text])


def test_surrogate_pair_is_its_character():
    assert openai().encode("\ud83d\ude00") == openai().encode("😀")


def test_endless_text_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(ftfy, "fix_text", None)
    with pytest.raises(TextError, match=f"text 0 has 100000000 characters; at most {MAXIMUM_CHARACTERS} are accepted"):
        openai().tokenize("é" * 100_000_000, truncate=True)


def test_longest_text_is_accepted():
    assert len(openai().encode("1" * MAXIMUM_CHARACTERS)) == MAXIMUM_CHARACTERS


# Merges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merges", "sentence"),
    [
        ("", r"line 1 of the merges is '', not a header"),
        ("t h\nth e", r"line 1 of the merges is 't h', not a header"),
        ("#version: 1\nt h\nth", r"line 3 of the merges is 'th', not a new merge"),
        ("#version: 1\nt h e", r"line 2 of the merges is 't h e', not a new merge"),
        ("#version: 1\nt h\n\na n", r"line 3 of the merges is '', not a new merge"),
        ("#version: 1\nth e", r"line 2 of the merges is 'th e', not a new merge"),
        ("#version: 1\nt h\nt h", r"line 3 of the merges is 't h', not a new merge"),
        ("#version: 1\na b\nb c\nab c\na bc", r"line 5 of the merges is 'a bc', not a new merge"),
    ],
)
def test_unusable_merges(merges, sentence):
    with pytest.raises(TextError, match=sentence):
        BytePairTokenizer(merges)
