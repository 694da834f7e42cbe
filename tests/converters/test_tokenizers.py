"""A model's file carries any tokenizer, in every format, and folders of libraries tell theirs."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from clip.api import open_model
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, TextError
from clip_core.text.bpe_training import learn, learn_byte_level
from clip_core.text.definitions import byte_level, wordpiece
from clip_core.text.loading import tokenizer_from
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, convert, read, write
from converters.manifest import Manifest
from tests.models import sample_weights

TEXTS = ["A red circle", "two blue squares", "grüne Sterne \u65e5\u672c", ""]
BYTES = byte_level(learn_byte_level(TEXTS * 2, 20))
WORDS = wordpiece("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\ncircle\na\ntwo\n##s\n", {})


def model(definition: str, **text: int) -> ModelFile:
    """A model whose text tower is for the tokenizer."""
    tokenizer = tokenizer_from(definition)
    fields = {"vocabulary_size": tokenizer.vocabulary_size, "end_of_text": tokenizer.end} | text
    architecture = Architecture(
        embed_dim=32,
        image=VisionTransformer(resolution=32, patch=16, width=64, layers=1, heads=1),
        text=TextTransformer(context_length=32, width=64, layers=1, heads=1, **fields),
    )
    return ModelFile(sample_weights(architecture), architecture, vocabulary=definition)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".h5", ".pdparams"])
@pytest.mark.parametrize("definition", [BYTES, WORDS], ids=["bytes", "words"])
def test_a_file_carries_its_tokenizer(definition, suffix, tmp_path):
    write(model(definition), tmp_path / f"model{suffix}")
    convert(tmp_path / f"model{suffix}", tmp_path / "again.safetensors")
    assert read(tmp_path / "again.safetensors").vocabulary == definition
    found = open_model(tmp_path / "again.safetensors", backend="numpy").model
    np.testing.assert_array_equal(found.tokenize(TEXTS), tokenizer_from(definition).tokenize(TEXTS, 32))
    assert found.embed_text(found.tokenize(TEXTS)).shape == (4, 32)


@pytest.mark.parametrize("suffix", [".safetensors", ".h5"])  # whose room for it is bounded
def test_a_tokenizer_of_many_megabytes_fits(suffix, tmp_path):
    """As large as the largest in use, of which about a fifth is left when it is compressed."""
    random_ = np.random.default_rng(0)
    letters = "".join(map(chr, random_.integers(0x4E00, 0x9FFF, 3_000_000)))
    definition = json.dumps({"model": letters, "again": "a" * 20_000_000}, ensure_ascii=False)
    stored = replace(model(WORDS), vocabulary=definition)
    write(stored, tmp_path / f"model{suffix}")
    assert read(tmp_path / f"model{suffix}").vocabulary == definition


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    write(model(WORDS, end_of_text=2), tmp_path / "model.safetensors")
    found = open_model(tmp_path / "model.safetensors", backend="numpy").model
    with pytest.raises(TextError) as caught:
        found.tokenize(TEXTS)
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'} carries a tokenizer of 9 tokens that ends texts with 3, and its text tower "
        "is for 9 and looks for 2; convert the original file again."
    )


def signed(body: dict) -> str:
    """The text of a manifest with the right digest."""
    dumped = json.dumps(body, separators=(",", ":"))
    return json.dumps(body | {"sha256": hashlib.sha256(dumped.encode()).hexdigest()}, separators=(",", ":"))


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        ({"other": ""}, "its vocabulary is dict, expected a text"),
        ({"zlib, base64": "!"}, "the manifest cannot be read"),
        ({"zlib, base64": base64.b64encode(b"no").decode()}, "the manifest cannot be read"),
        (
            {"zlib, base64": base64.b64encode(zlib.compress(b"{}")[:-1]).decode()},
            "vocabulary is cut short, or has m",
        ),
        ({"zlib, base64": base64.b64encode(zlib.compress(bytes(80 << 20))).decode()}, "is cut short, or has more than"),
        ({"zlib, base64": base64.b64encode(zlib.compress(b"\xff")).decode()}, "UnicodeDecodeError"),
        ({"zlib, base64": 5}, "the manifest cannot be read"),
    ],
)
def test_a_damaged_tokenizer_in_a_manifest(packed, sentence):
    body = json.loads(Manifest(model(WORDS).architecture, {}, WORDS).to_text())
    del body["sha256"]
    assert Manifest.from_text(signed(body)).vocabulary == WORDS
    with pytest.raises(CheckpointError, match=sentence):
        Manifest.from_text(signed(body | {"vocabulary": packed}))


def test_merges_are_stored_as_they_always_were():
    merges = learn(TEXTS, 20)
    assert json.loads(Manifest(model(merges).architecture, {}, merges).to_text())["vocabulary"] == merges


def without_manifest(source: Path, target: Path) -> Path:
    """A folder of transformers with the same weights and files, of which nothing says that it was made here."""
    from safetensors.numpy import load_file, save_file

    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    save_file(load_file(source / "model.safetensors"), target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("definition", [BYTES, WORDS], ids=["bytes", "words"])
def test_a_folder_of_transformers_has_the_tokenizer(definition, tmp_path):
    write(model(definition), tmp_path / "made", layout="huggingface")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "made")
    padded = theirs(TEXTS, padding="max_length", max_length=32, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(padded, tokenizer_from(definition).tokenize(TEXTS, 32))
    other = without_manifest(tmp_path / "made", tmp_path / "other")
    assert tokenizer_from(read(other).vocabulary).definition == definition
    write(model(definition), tmp_path / "made", layout="huggingface", force=True)


def test_a_folder_with_a_vocab_txt_has_the_tokenizer(tmp_path):
    write(model(WORDS), tmp_path / "made", layout="huggingface")
    other = without_manifest(tmp_path / "made", tmp_path / "other")
    (other / "tokenizer.json").unlink()
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\ncircle\na\ntwo\n##s\n")
    assert read(other).vocabulary == WORDS
    (other / "vocab.txt").write_text("[UNK]\n")
    with pytest.raises(CheckpointError, match=r"the tokenizer beside it cannot be read: .*has no line \[PAD\]"):
        read(other)


def test_a_tokenizer_beside_a_file_must_be_that_of_a_like_one(tmp_path):
    write(model(WORDS), tmp_path / "made", layout="huggingface")
    other = without_manifest(tmp_path / "made", tmp_path / "other")
    assert read(other, like=tmp_path / "made").vocabulary == WORDS
    longer = wordpiece("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\ncircle\na\ntwo\n##t\n", {})
    write(model(longer), tmp_path / "longer.safetensors")
    with pytest.raises(CheckpointError, match="the tokenizer beside it is another than that of the file it should be"):
        read(other, like=tmp_path / "longer.safetensors")
