"""A new model's vocabulary is OpenAI's, a file's, or that of its own captions."""

from __future__ import annotations

import gzip

import pytest

from clip_core.data.streaming import StreamedShards
from clip_core.errors import ClipError
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import HEADER, learn
from clip_core.text.tokenizer import MAXIMUM_CHARACTERS
from clip_core.text.vocabulary import openai_merges
from clip_core.towers.text_transformer import TextTransformer
from clip_core.training import vocabulary
from clip_core.training.vocabulary import Vocabulary, kept_vocabulary, vocabulary_of
from tests.data.numbered import open_source

WORDS = ["zebra", "quokka", "axolotl"]
MERGES = learn(WORDS, 10**6)
COUNT = len(MERGES.splitlines()) - 1


class Captioned:
    """A source of which captions alone are asked."""

    def __init__(self, *captions: str) -> None:
        self.texts = captions

    def captions(self):
        return iter(self.texts)


def tower(size: int) -> TextTransformer:
    return TextTransformer(context_length=24, vocabulary_size=size, width=64, layers=1, heads=1)


def test_it_is_learnt_from_the_captions():
    found = vocabulary_of(tower(514 + 10), None, Captioned(*WORDS))
    assert found == Vocabulary(learn(WORDS, 10), learnt=10, unused=0)


def test_tokens_that_the_captions_do_not_need_stay_unused():
    found = vocabulary_of(tower(600), None, Captioned(*WORDS))
    assert found.definition.startswith(MERGES)
    assert BytePairTokenizer(found.definition).vocabulary_size == 600
    assert (found.learnt, found.unused) == (COUNT, 600 - 514 - COUNT)


def test_captions_that_are_no_texts_teach_nothing(monkeypatch):
    unusable = ("lone \ud800", "x" * (MAXIMUM_CHARACTERS + 1))
    expected = vocabulary_of(tower(600), None, Captioned(*WORDS))
    assert vocabulary_of(tower(600), None, Captioned(*unusable, *WORDS)) == expected
    monkeypatch.setattr(vocabulary, "CAPTIONS", 3)
    assert vocabulary_of(tower(600), None, Captioned(*WORDS, "platypus")) == expected


def test_captions_that_teach_too_little():
    with pytest.raises(ClipError) as caught:
        vocabulary_of(tower(30000), None, Captioned(*WORDS))
    assert str(caught.value) == (
        f"The captions have {COUNT} merges, and a vocabulary of 30000 tokens needs 29486; lower its vocabulary_size in "
        f"model.architecture to {514 + COUNT}, or set model.vocabulary to a merges file."
    )


def test_openais_and_the_smallest_learn_nothing():
    assert vocabulary_of(tower(49408), None, Captioned(*WORDS)) == Vocabulary(None)
    assert BytePairTokenizer(vocabulary_of(tower(514), None, Captioned(*WORDS)).definition).vocabulary_size == 514


def test_a_checkpoint_keeps_openais_by_its_merges():
    assert kept_vocabulary(openai_merges()) == Vocabulary(None)
    changed = openai_merges().splitlines()
    changed[-2:] = reversed(changed[-2:])
    assert kept_vocabulary("\n".join(changed)) == Vocabulary("\n".join(changed))
    assert kept_vocabulary(MERGES) == Vocabulary(MERGES)


def test_shards_on_the_network_need_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(StreamedShards, "_count", lambda *_: 8)
    source = open_source("webdataset", {"shards": "http://127.0.0.1:9/{0..1}.tar"}, 0)
    with pytest.raises(ClipError, match=r"no vocabulary can be learnt from them; set model\.vocabulary to a"):
        vocabulary_of(tower(600), None, source)
    (tmp_path / "merges.txt").write_text(MERGES)
    assert vocabulary_of(tower(514 + COUNT), str(tmp_path / "merges.txt"), source) == Vocabulary(MERGES)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_first_merges_of_a_file(tmp_path, compress):
    (tmp_path / "merges").write_bytes(compress(MERGES.encode()))
    found = vocabulary_of(tower(514 + 5), str(tmp_path / "merges"), Captioned("never", "read"))
    assert found == Vocabulary("\n".join(MERGES.splitlines()[:6]) + "\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a b\n", "cannot be used: {} is no tokenizer: it starts with 'a b\\n'; give a merges"),
        (b"\xff\xfe", "cannot be used: {} is no tokenizer: 'utf-8' codec can't decode byte 0xff"),
        (
            gzip.compress(MERGES.encode(), mtime=0)[:-9],
            "cannot be used: {} is no tokenizer: it is cut",
        ),
        (b"\x1f\x8bxyz", "cannot be used: {} is no tokenizer: Error"),
        (
            f"{HEADER}\na b c\n".encode(),
            "cannot be used: {} is no tokenizer: line 2 of the merges is 'a b c'",
        ),
        (f"{HEADER}\na b\n".encode(), "is {}, which has 1 merges, and the architecture's vocabulary needs 5; lower"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, content, says):
    (tmp_path / "merges").write_bytes(content)
    with pytest.raises(ClipError) as caught:
        vocabulary_of(tower(519), str(tmp_path / "merges"), Captioned())
    assert str(caught.value).startswith(f"model.vocabulary {says.format(tmp_path / 'merges')}")
