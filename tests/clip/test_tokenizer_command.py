"""``clip tokenizer``: vocabularies that are learnt from files, and the tokenizers of models and files."""

from __future__ import annotations

import hashlib
import json

import pytest

from clip_core.text.bpe_training import learn
from clip_core.text.loading import read_tokenizer
from tests.clip.running import assert_refused

TEXTS = ["A red circle", "a blue circle, two Red squares", "", "grüne Sterne \u65e5\u672c"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\r\n".join(TEXTS), encoding="utf-8", newline="")
    return path


def test_train_writes_merges(run, corpus, tmp_path):
    target = tmp_path / "merges.txt"
    assert run("tokenizer", "train", corpus, "--vocab-size", 530, "-o", target).out == f"{target}\n"
    assert target.read_text() == learn(TEXTS, 530 - 514)
    assert_refused(run("tokenizer", "train", corpus, "--vocab-size", 520, "-o", target), f"{target} is there already")
    done = run("tokenizer", "train", corpus, corpus, "--vocab-size", 520, "-o", target, "--force", "--json").json
    assert done == {"path": str(target), "kind": "openai", "vocabulary_size": 520, "merges": 6}
    assert target.read_text() == learn(TEXTS * 2, 6)


def test_train_writes_a_byte_level_tokenizer(run, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("tokenizer", "train", corpus, "--vocab-size", 264, "--kind", "bytes").out == "tokenizer.json\n"
    first = (tmp_path / "tokenizer.json").read_bytes()
    run("tokenizer", "train", corpus, "--vocab-size", 264, "--kind", "bytes", "--output", "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    found = run("tokenizer", "info", "tokenizer.json", "--json").json
    assert found == {
        "kind": "byte-pair encoding",
        "vocabulary_size": 264,
        "context_length": None,
        "sha256": hashlib.sha256(first).hexdigest(),
        "start": {"id": 2, "token": "[SOS]"},
        "end": {"id": 1, "token": "[EOS]"},
        "padding": {"id": 0, "token": "[NON]"},
    }
    rows = run("tokenizer", "encode", "--model", "tokenizer.json", *TEXTS, "--json").json
    tokenizer = read_tokenizer("tokenizer.json")
    assert [row["tokens"] for row in rows] == [[2, *tokenizer.encode(text), 1] for text in TEXTS]
    assert len(rows[0]["tokens"]) < len(TEXTS[0])
    text = run("tokenizer", "decode", "--model", "tokenizer.json", *rows[3]["tokens"]).out
    assert text == f"[SOS] {TEXTS[3]}[EOS]\n"


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"", (520,), "corpus.txt is empty; give text files with a text on each line."),
        (b"a b\n\xff", (520,), "corpus.txt is not UTF-8: invalid start byte in or behind line"),
        (
            b"abc\n",
            (1000,),
            "The texts have 2 merges, and a vocabulary of 1000 tokens needs 486; lower --vocab",
        ),
        (
            b"abc\n",
            (500,),
            "--vocab-size is 500; a vocabulary of the kind openai has 514 tokens before its",
        ),
        (b"abc\n", (258, "--kind", "bytes"), "a vocabulary of the kind bytes has 259 tokens before its first merge"),
    ],
)
def test_train_refuses(content, options, sentence, run, tmp_path):
    (tmp_path / "corpus.txt").write_bytes(content)
    target = tmp_path / "learnt"
    assert_refused(run("tokenizer", "train", tmp_path / "corpus.txt", "-o", target, "--vocab-size", *options), sentence)
    assert not target.exists()
    assert_refused(
        run("tokenizer", "train", tmp_path / "corpus.txt", "-o", tmp_path / "corpus.txt", "--vocab-size", 600),
        "corpus.txt is a file that is read here itself",
    )


def test_a_long_line_comes_in_pieces(run, tmp_path):
    (tmp_path / "corpus.txt").write_text("ab " * 50_000)
    run("tokenizer", "train", tmp_path / "corpus.txt", "--vocab-size", 515, "-o", tmp_path / "merges.txt")
    assert (tmp_path / "merges.txt").read_text().splitlines()[1:] == ["a b</w>"]


def test_info_of_a_model(run, files, checkpoint):
    found = run("tokenizer", "info", files[".h5"], "--json").json
    assert {name: found[name] for name in ("vocabulary_size", "context_length", "start", "end")} == {
        "vocabulary_size": 534,
        "context_length": 77,
        "start": {"id": 532, "token": "<|startoftext|>"},
        "end": {"id": 533, "token": "<|endoftext|>"},
    }
    assert "byte-pair encoding, as OpenAI's" in run("tokenizer", "info").out


def test_encode_is_tokenize_and_decode_reads_it(run):
    tokens = run("tokenizer", "encode", "a photo").out
    assert tokens == run("tokenize", "a photo").out
    assert run("tokenizer", "decode", *tokens.split(), "--json").json == {
        "tokens": [int(token) for token in tokens.split()],
        "text": "<|startoftext|>a photo <|endoftext|>",
    }
    assert_refused(run("tokenizer", "decode", 49408), "token id 49408 is not of this vocabulary")


def test_a_file_that_is_no_tokenizer(run, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Tree", "vocab": {}}}))
    assert_refused(
        run("tokenizer", "info", tmp_path / "tokenizer.json"), "is no tokenizer: the tokenizer.json is of the"
    )
