"""Merges learnt from a corpus: those of the definition, the same on every run, and usable by the tokenizer."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from clip_core.errors import TextError
from clip_core.text import bpe_training
from clip_core.text.bpe import HEADER, BytePairTokenizer, byte_symbols, words
from clip_core.text.bpe_training import learn, learn_byte_level, padded
from clip_core.text.definitions import byte_level
from clip_core.text.json_tokenizer import JsonTokenizer


def corpus(size: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    vocabulary = ["".join(random_.choices("abcdeé", k=random_.randrange(1, 9))) for _ in range(120)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    return [" ".join(random_.choices(vocabulary, weights, k=10)) for _ in range(size)]


def naive(texts: list[str], merges: int) -> str:
    """Count every pair anew before each merge."""
    spellings = [byte_symbols(word) for text in texts for word in words(text)]
    learnt: list[tuple[str, str]] = []
    while len(learnt) < merges:
        counts = Counter(pair for spelling in spellings for pair in pairwise(spelling))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learnt.append(best)
        for spelling in spellings:
            position = 0
            while position < len(spelling) - 1:
                if (spelling[position], spelling[position + 1]) == best:
                    spelling[position : position + 2] = ["".join(best)]
                position += 1
    return "\n".join([HEADER, *map(" ".join, learnt)]) + "\n"


def test_by_hand():
    # ab</w> x 3, abc</w> x 2: (a b) and (a b</w>) are different pairs, with 2 and 3 occurrences.
    assert learn(["ab ab abc", "AB, abc"], 10) == f"{HEADER}\na b</w>\na b\nab c</w>\n"


def test_equal_counts_go_by_the_alphabet():
    assert learn(["zy dc ba"], 2) == f"{HEADER}\nb a</w>\nd c</w>\n"


def test_overlaps_are_merged_from_the_left():
    assert learn(["aaaaa"], 2) == f"{HEADER}\na a\naa a</w>\n"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_counting_anew(seed):
    texts = corpus(60, seed)
    assert learn(texts, 150) == naive(texts, 150)


def test_equals_counting_anew_until_nothing_is_left():
    texts = corpus(8, seed=3)
    learnt = learn(texts, 10**6)
    assert learnt == naive(texts, 10**6)
    tokenizer = BytePairTokenizer(learnt)
    assert all(len(tokenizer.encode(word)) == 1 for text in texts for word in words(text))


@pytest.mark.parametrize("letters", ["ab", "abcdefgh"])
def test_equals_counting_anew_when_few_pairs_are_counted_at_once(letters, monkeypatch):
    """Few letters bring out overlaps and pairs in a row."""
    monkeypatch.setattr(bpe_training, "_FREQUENT", 3)
    monkeypatch.setattr(bpe_training, "_BLOCK", 7)
    random_ = random.Random(6)
    texts = [
        " ".join("".join(random_.choices(letters, k=random_.randrange(1, 12))) for _ in range(8)) for _ in range(9)
    ]
    assert learn(texts, 10**6) == naive(texts, 10**6)


def test_byte_level_merges_are_those_of_the_library(monkeypatch):
    monkeypatch.setattr(bpe_training, "_FREQUENT", 40)
    texts = [*corpus(60, seed=7), "Ünïcödé,  日本 & more!\t3.14's", " It's", "", "x" * 30, "aaab aab ab " * 9]
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    specials, letters = ["[NON]", "[EOS]", "[SOS]"], pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": specials, "initial_alphabet": letters, "min_frequency": 2, "show_progress": False}
    library.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=10_000, **options))
    expected = json.loads(library.to_str())["model"]
    found = JsonTokenizer(byte_level(learn_byte_level(texts, 10_000)))
    model = json.loads(found.definition)["model"]
    assert [merge.split() for merge in model["merges"]] == expected["merges"]
    assert model["vocab"] == expected["vocab"]
    assert len(expected["merges"]) > 100
    for text in [*texts, "words it has never seen"]:
        assert found.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert found.decode(found.encode(text)).removeprefix(" ") == text.removeprefix(" ")
    assert found.tokenize("ab", 5).tolist() == [[2, *found.encode("ab"), 1, 0, 0][:5]]


def test_progress_is_told():
    told: list[int] = []
    learn(["ab ab abc"], 2, told.append)
    assert told == [1, 2]


def test_order_of_the_texts_does_not_matter():
    texts = corpus(60, seed=4)
    assert learn(reversed(texts), 100) == learn(iter(texts), 100) == learn(texts, 100)


def test_the_tokenizer_reads_and_shortens():
    texts = [*corpus(60, seed=5), "Ünïcödé, 日本 & more!"]
    learnt, none = BytePairTokenizer(learn(texts, 200)), BytePairTokenizer(learn(texts, 0))
    assert (learnt.vocabulary_size, none.vocabulary_size) == (714, 514)
    for text in texts:
        assert learnt.decode(learnt.encode(text)) == none.decode(none.encode(text)) == " ".join(words(text)) + " "
    assert sum(len(learnt.encode(text)) for text in texts) < 0.5 * sum(len(none.encode(text)) for text in texts)


def test_special_tokens_are_not_learnt():
    assert learn(["<|endoftext|> <|startoftext|>"] * 5, 10) == HEADER + "\n"


def test_no_token_is_made_twice():
    """Few letters make the same strings in many ways, and a written ``</w>`` is not the end of a word."""
    for seed in range(40):
        random_ = random.Random(seed)
        texts = [
            " ".join("".join(random_.choices("ab<", k=random_.randrange(1, 30))) for _ in range(9)) for _ in range(9)
        ]
        learnt = learn([*texts, "a</w>", "a <", "</w>b"], 10**6)
        tokens = [line.replace(" ", "") for line in learnt.splitlines()[1:]]
        assert len(tokens) == len(set(tokens)) > 50


def test_no_texts():
    assert learn([], 5) == HEADER + "\n"


def test_merges_that_no_word_uses():
    learnt = learn(["a red circle"], 10**6)
    count = len(learnt.splitlines()) - 1
    whole = padded(learnt, 600)
    assert whole.startswith(learnt)
    assert padded(whole, 600) == whole
    text = "a red circle \xff \xf5\xc0 \u03b1 \U0001f600"
    tokens = BytePairTokenizer(whole).encode(text)
    assert BytePairTokenizer(whole).vocabulary_size == 514 + 600
    assert tokens == BytePairTokenizer(learnt).encode(text)
    assert BytePairTokenizer(padded(learnt, count + 6656)).vocabulary_size == 514 + count + 6656
    with pytest.raises(TextError, match=r"^6657 merges are missing; at most 6656 can stay unused"):
        padded(learnt, count + 6657)


@pytest.mark.parametrize(
    ("texts", "merges", "sentence"),
    [
        ("abc", 5, "texts is one str; give several texts"),
        (["abc", None], 5, "text 1 is of type NoneType, not str"),
        (["abc"], -1, "merges is -1; give 0 or more"),
    ],
)
def test_unusable_input(texts, merges, sentence):
    with pytest.raises(TextError, match=sentence):
        learn(texts, merges)
