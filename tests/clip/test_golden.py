"""Golden files: what they keep, and that each change of a model or its inputs is noticed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import converters
from clip import golden
from clip_core import preprocess
from clip_core.text.bpe_training import learn
from converters import ModelFile
from tests.clip.running import assert_refused
from tests.clip.small import ARCHITECTURE, MERGES


@pytest.fixture(scope="module")
def kept(checkpoint, tmp_path_factory):
    """A model's file and its golden file."""
    model = tmp_path_factory.mktemp("golden") / "small.safetensors"
    converters.write(checkpoint, model)
    return model, golden.write(model, model.parent / "kept.json")


@pytest.fixture
def changed(tmp_path):
    """Write a changed model."""

    def write(file: ModelFile):
        converters.write(file, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return write


def test_a_golden_file_has_embeddings_tokens_and_digests(kept):
    found = json.loads(kept[1].read_text())
    assert found["files"].keys() == {"small.safetensors"}
    assert found["versions"].keys() == {"triclip", "numpy", "PIL"}
    image = np.array(found["image_embedding"])
    assert image.shape == (len(found["pixels"]), ARCHITECTURE.embed_dim)
    assert np.linalg.norm(image, axis=1) == pytest.approx(np.ones(len(image)))
    drawn, others, rows = 8, 4, 4
    assert len(found["pixels"]) == drawn + others
    assert len(found["tokens"]) == len(found["text_embedding"]) == drawn + rows + len(golden.TEXTS)
    assert len({tuple(row) for row in found["tokens"]}) == len(found["tokens"])


def test_every_backend_gives_what_is_kept(kept, run, backend):
    model, file = kept
    found = run("golden", "check", model, file, "--backend", backend.name, "--json").json
    assert found["passed"]
    assert found["files_equal"]
    assert found["versions"] == {}
    assert found["backends"][backend.name]["image_embedding"] < 1e-5


def test_the_command_writes_and_checks_by_the_models_name(kept, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("golden", "write", kept[0]).code == 0
    assert (tmp_path / "small.golden.json").read_bytes() == kept[1].read_bytes()
    ended = run("golden", "check", kept[0], "--backend", "numpy")
    assert ended.code == 0
    assert ended.out.endswith("golden: PASS\n")
    assert_refused(run("golden", "write", kept[0]), "small.golden.json is there already")
    assert_refused(run("golden", "write", kept[0], "-o", kept[0], "--force"), "is a file that is read here itself")


@pytest.mark.parametrize(("name", "stage"), [("visual.proj", "image_embedding"), ("text_projection", "text_embedding")])
def test_a_changed_weight_is_noticed(kept, checkpoint, changed, run, name, stage):
    weights = {**checkpoint.weights, name: checkpoint.weights[name].copy()}
    weights[name][0, 0] += 0.01
    ended = run("golden", "check", changed(replace(checkpoint, weights=weights)), kept[1], "--backend", "numpy")
    assert ended.code == 1
    assert f"numpy: beyond its bound first at {stage}" in ended.out
    assert "files: others than those" in ended.out
    assert ended.out.endswith("golden: FAIL\n")


def test_another_format_of_the_same_model_passes(kept, checkpoint, run, tmp_path):
    converters.write(checkpoint, tmp_path / "small.pt")
    found = run("golden", "check", tmp_path / "small.pt", kept[1], "--backend", "numpy", "--json").json
    assert found["passed"]
    assert not found["files_equal"]


def test_another_tokenizer_is_noticed(kept, checkpoint, changed):
    vocabulary = learn(["a green star", "three yellow rings", "a purple cross"], MERGES)
    found = golden.check(changed(replace(checkpoint, vocabulary=vocabulary)), kept[1], backend="numpy").report
    assert found.comparisons[0].faults(found.bounds) == ["tokens"]


def test_another_order_of_preprocessing_is_noticed(kept, monkeypatch):
    def resized_to_a_square(image, resolution, wanted):
        return original(image.resize((resolution, resolution), Image.Resampling.BICUBIC), resolution, wanted)

    original = preprocess.preprocess
    monkeypatch.setattr(preprocess, "preprocess", resized_to_a_square)
    found = golden.check(*kept, backend="numpy").report
    assert found.comparisons[0].faults(found.bounds)[0] == "pixels"


def test_another_version_is_told_of(kept, tmp_path):
    then = json.loads(kept[1].read_text())
    then["versions"]["PIL"] = "1.0"
    (tmp_path / "old.json").write_text(json.dumps(then))
    assert golden.check(kept[0], tmp_path / "old.json", backend="numpy").versions == {"PIL": ("1.0", Image.__version__)}


def test_the_golden_file_of_another_architecture_is_refused(kept, run):
    ended = run("golden", "check", "shapes", kept[1], "--backend", "numpy")
    assert_refused(ended, "is of another model", f"rather than {ARCHITECTURE.embed_dim}", "clip golden write")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a golden file: "),
        ("[]", "is not a golden file: it holds no object"),
        ('{"format": 1}', "is not a golden file: the key model is missing"),
        ("[" * 100_000, "is not a golden file: "),
    ],
)
def test_what_is_no_golden_file_is_refused(kept, run, tmp_path, text, part):
    (tmp_path / "bad.json").write_text(text)
    assert_refused(run("golden", "check", kept[0], tmp_path / "bad.json", "--backend", "numpy"), "bad.json", part)


def test_a_golden_file_whose_rows_do_not_fit_is_refused(kept, run, tmp_path):
    found = json.loads(kept[1].read_text())
    found["image_embedding"].pop()
    (tmp_path / "bad.json").write_text(json.dumps(found))
    assert_refused(run("golden", "check", kept[0], tmp_path / "bad.json", "--backend", "numpy"), "has embeddings of")
