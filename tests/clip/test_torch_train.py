"""``clip train``: a run by a recipe, stopped and resumed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import clip
import converters
from clip_core.data.shapes import vocabulary_captions
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import learn, padded
from clip_core.text.loading import read_tokenizer
from clip_core.training.checkpoint import newest, read
from tests.clip.running import RECIPE, assert_refused, ended, metrics, process
from tests.training.tiny import METRICS


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def test_train_and_resume(run, recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run("train", "-c", recipe, "--steps", 4, "--output", whole)
    assert (result.code, result.out) == (0, "")
    assert f"step 4, loss {metrics(whole)[-1]['loss']:.4f}; the model is {whole / 'model.safetensors'}" in result.err
    assert [list(line) for line in metrics(whole)] == [METRICS] * 4
    assert {".lock", "checkpoints", "loss.png", "metrics.jsonl", "model.safetensors", "recipe.yaml"} == {
        path.name for path in whole.iterdir()
    }

    assert run("train", "-c", recipe, "--steps", 2, "--output", parts).code == 0
    assert run("train", "-c", recipe, "--steps", 4, "--resume", parts).code == 0
    assert [line["loss"] for line in metrics(parts)] == [line["loss"] for line in metrics(whole)]
    result = run("train", "-c", recipe, "--steps", 3, "--resume", parts)
    assert (result.code, "None" in result.err) == (0, False)
    assert "the run is at step 4 already; a higher --steps, up to the recipe's last" in result.err
    first, second = (converters.read(folder / "model.safetensors") for folder in (whole, parts))
    assert all((array == second.weights[name]).all() for name, array in first.weights.items())

    clip.load(whole / "model.safetensors", backend="numpy")  # with its own vocabulary
    assert clip.tokenize("a red circle", context_length=32).max() == 599

    assert run("train", "-c", recipe, "--steps", 1, "--seed", 2, "--output", tmp_path / "seed").code == 0
    assert metrics(tmp_path / "seed")[0]["loss"] != metrics(whole)[0]["loss"]


def test_the_vocabulary_is_that_of_the_data_or_of_a_file(run, recipe, tmp_path):
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [f"{tmp_path / f'{number}.png'}\tquokka number {number}" for number in range(8)]
    (tmp_path / "data.tsv").write_text("\n".join(["filepath\ttitle", *rows]))
    recipe.write_text(RECIPE.replace("kind: shapes, examples: 100", f"kind: table, file: {tmp_path / 'data.tsv'}"))
    folder = tmp_path / "learnt"
    result = run("train", "-c", recipe, "--steps", 1, "--output", folder)
    assert "Warning: the captions have 10 merges only; 76 tokens stay unused.\n" in result.err
    assert "the model's vocabulary has 10 merges learnt from the captions of its data\n" in result.err
    found = converters.read(folder / "model.safetensors").vocabulary
    assert BytePairTokenizer(found).vocabulary_size == 600
    assert len(BytePairTokenizer(found).encode("quokka number")) == 2
    (tmp_path / "merges.txt").write_text(learn(vocabulary_captions(), 90))
    named = ("-o", f"model.vocabulary={tmp_path / 'merges.txt'}")
    assert run("train", "-c", recipe, *named, "--steps", 1, "--output", tmp_path / "named").code == 0
    assert converters.read(tmp_path / "named" / "model.safetensors").vocabulary == learn(vocabulary_captions(), 86)
    assert_refused(run("train", "-c", recipe, *named, "--resume", folder), "was made with model.vocabulary = None")
    weights = ("--load", folder / "model.safetensors", "--output", tmp_path / "again")
    assert_refused(run("train", "-c", recipe, *named, *weights), "carries the vocabulary that its weights were trained")


def test_a_recipe_names_any_tokenizer(run, recipe, tmp_path):
    """It is learnt beforehand, goes into checkpoints and the model, and a resumed run refuses another one."""
    (tmp_path / "corpus.txt").write_text("\n".join(vocabulary_captions()))
    learning = ("tokenizer", "train", tmp_path / "corpus.txt", "--kind", "bytes", "--vocab-size", 300)
    assert run(*learning, "-o", tmp_path / "tokenizer.json").code == 0
    text = recipe.read_text().replace("vocabulary_size: 600", "vocabulary_size: 300, end_of_text: 1")
    recipe.write_text(text.replace("model:", f"model:\n  vocabulary: {tmp_path / 'tokenizer.json'}"))
    folder, definition = tmp_path / "run", (tmp_path / "tokenizer.json").read_text()
    assert run("train", "-c", recipe, "--steps", 2, "--output", folder).code == 0
    assert (folder / "checkpoints" / "step-00000002" / "vocabulary.txt").read_text() == definition
    assert run("train", "-c", recipe, "--steps", 4, "--resume", folder).code == 0
    assert len(metrics(folder)) == 4
    assert converters.read(folder / "model.safetensors").vocabulary == definition
    clip.load(folder / "model.safetensors", backend="numpy")
    expected = read_tokenizer(tmp_path / "tokenizer.json").tokenize("Red circles", 32)
    np.testing.assert_array_equal(clip.tokenize("Red circles", 32), expected)
    assert run(*learning[:-1], 299, "-o", tmp_path / "tokenizer.json", "--force").code == 0
    assert_refused(
        run("train", "-c", recipe, "--resume", folder),
        "was made with another vocabulary than the one that is given: byte-pair encoding of 300 tokens there",
    )
    recipe.write_text(recipe.read_text().replace("end_of_text: 1", "end_of_text: 2"))
    assert_refused(
        run("train", "-c", recipe, "--output", tmp_path / "other"),
        "tokenizer.json, a tokenizer of 299 tokens that ends texts with 1, and its text tower is for 300",
        "set model.architecture.text.end_of_text to 1, or give the one that the tower is for.",
    )


def test_a_resumed_run_keeps_its_merges(run, recipe, tmp_path):
    """Whether they came with the first weights or of a file, and no others are taken for them."""
    merges = padded(learn(["zebra quokka axolotl platypus capybara wolverine"] * 2, 86), 86)
    other = learn(vocabulary_captions(), 86)
    (tmp_path / "merges.txt").write_text(merges)
    named = ("-o", f"model.vocabulary={tmp_path / 'merges.txt'}")
    whole, parts, again = tmp_path / "whole", tmp_path / "parts", tmp_path / "again"
    assert run("train", "-c", recipe, *named, "--steps", 1, "--output", tmp_path / "first").code == 0
    load = ("--load", tmp_path / "first" / "model.safetensors")
    assert run("train", "-c", recipe, *load, "--steps", 4, "--output", whole).code == 0
    assert run("train", "-c", recipe, *load, "--steps", 2, "--output", parts).code == 0
    kept = (parts / "checkpoints" / "step-00000002" / "vocabulary.txt").read_text()
    assert kept == converters.read(tmp_path / "first" / "model.safetensors").vocabulary == merges
    result = run("train", "-c", recipe, "--steps", 4, "--resume", parts)
    assert result.code == 0, result.err
    assert [line["loss"] for line in metrics(parts)] == [line["loss"] for line in metrics(whole)]
    assert converters.read(parts / "model.safetensors").vocabulary == merges
    assert run("train", "-c", recipe, *load, "--steps", 5, "--resume", parts).code == 0

    assert run("train", "-c", recipe, "--steps", 1, "--output", again).code == 0
    assert_refused(
        run("train", "-c", recipe, *load, "--resume", again),
        f"{again / 'checkpoints' / 'step-00000001'} was made with another vocabulary than the one that is given: "
        f"merge 1 is '{other.splitlines()[1]}' there, and '{merges.splitlines()[1]}' here; resume without --load",
    )
    (tmp_path / "merges.txt").write_text(other)
    refused = run("train", "-c", recipe, *named, "--resume", tmp_path / "first")
    assert_refused(refused, f"merge 1 is '{merges.splitlines()[1]}' there, and '{other.splitlines()[1]}' here")


def test_the_run_of_a_checkpoint_goes_on_in_its_own_folder(run, recipe, tmp_path):
    folder = tmp_path / "run"
    assert run("train", "-c", recipe, "--steps", 4, "--output", folder).code == 0
    result = run("train", "-c", recipe, "--resume", folder / "checkpoints" / "step-00000002")
    assert result.code == 0
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert (folder / "checkpoints" / "step-00000006").is_dir()


def test_a_moving_average_is_written_beside_the_model(run, recipe, tmp_path):
    folder = tmp_path / "run"
    assert run("train", "-c", recipe, "--output", folder, "-o", "optimizer.ema_decay=0.5").code == 0
    trained, averaged = (converters.read(folder / f"{name}.safetensors") for name in ("model", "model-average"))
    state = load_file(folder / "checkpoints" / "step-00000006" / "state.safetensors")
    assert averaged.architecture == trained.architecture
    assert averaged.vocabulary == trained.vocabulary
    for name, array in averaged.weights.items():
        assert (array == state[f"average/{name}"]).all()
    assert not (averaged.weights["visual.proj"] == trained.weights["visual.proj"]).any()


def test_train_refuses(run, recipe, tmp_path):
    run_folder = tmp_path / "run"
    for change, part in (
        (("batch_size: 4", "batch_sise: 4"), "did you mean data.batch_size"),
        (("vocabulary_size: 600", "vocabulary_size: 500"), "The architecture's vocabulary has 500 tokens"),
        (("examples: 100", "examples: 3"), "fewer than one batch of 4"),
    ):
        recipe.write_text(RECIPE.replace(*change))
        assert_refused(run("train", "-c", recipe, "--output", run_folder), part)
    recipe.write_text(RECIPE)
    assert_refused(run("train", "-c", tmp_path / "none.yaml"), "There is no recipe", "none.yaml; give a YAML file or")
    assert_refused(
        run("train", "-c", recipe, "--backend", "jax"),
        "There is no training in 'jax'; choose the backend torch, paddle or nnabla.",
    )
    assert_refused(run("train", "-c", recipe, "--resume", "rnu"), "There is no folder rnu; give the --output folder")
    assert_refused(run("train", "-c", recipe, "--resume", tmp_path), "has no complete training checkpoint")
    assert not run_folder.exists()
    assert run("train", "-c", recipe, "--seed", 2**32).code == 2


def test_the_weights_to_start_from_are_not_replaced(run, recipe, tmp_path):
    """Neither where a folder has nothing else, nor in the run that wrote them."""
    weights = tmp_path / "mine" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"mine")
    link = tmp_path / "link.safetensors"
    link.symlink_to(weights)
    for load, options in ((weights, ()), (link, ("--resume", weights.parent))):
        (weights.parent / "checkpoints").mkdir(exist_ok=True)
        result = run("train", "-c", recipe, "--load", load, "--output", weights.parent, *options)
        assert_refused(result, f"{weights} is a file that is read here itself; give another name")
    (weights.parent / "checkpoints").rmdir()
    result = run("train", "-c", recipe, "--output", weights.parent)
    assert_refused(result, f"{weights} would be replaced, and there is no training run with checkpoints in its folder")
    assert_refused(run("train", "-c", recipe, "--output", weights), f"{weights} is a file; give the name of a folder")
    assert [(path.name, path.read_bytes()) for path in weights.parent.iterdir()] == [(weights.name, b"mine")]


def test_train_stops_on_a_signal(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("steps: 6", "steps: 100000"))
    folder = tmp_path / "run"
    command = process("train", "-c", recipe, "--output", folder)
    while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_bytes()) == 0:
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    result = ended(command)
    assert result.code == 128 + signal.SIGTERM
    steps = len(metrics(folder))
    assert metrics(folder)[-1]["step"] == read(newest(folder)).step == steps
    assert (folder / "loss.png").is_file()
    assert f"stopped early at step {steps}, loss {metrics(folder)[-1]['loss']:.4f}; go on with --resume {folder}; " in (
        result.err
    )
    assert (folder / "model.safetensors").is_file()
