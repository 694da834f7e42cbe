"""What each command, option and key of Low-resource CLIP becomes here, run as its table in docs/migrating.md says."""

from __future__ import annotations

import bz2
import json
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import converters
from clip_core.architecture import Architecture
from clip_core.buffers import Tensor
from clip_core.initialize import initialize
from clip_core.layouts import LAYOUTS
from clip_core.models import ARCHITECTURES, TOWERS
from clip_core.text.bpe_training import learn_byte_level
from clip_core.text.definitions import byte_level
from clip_core.text.loading import read_tokenizer
from clip_core.training.recipe import Recipe
from tests.migration.checks import (
    READS_TABLE,
    architecture,
    batch,
    cropped,
    damaged,
    decay,
    epochs,
    epsilon,
    evaluated,
    folder_of,
    gradient_clip,
    kept,
    loaded,
    loss_scales,
    moments,
    rate,
    recomputed,
    reduction,
    resumed,
    scale_bounds,
    tensorboard,
    truncated,
    warm_up,
)
from tests.migration.commands import in_this_process
from tests.migration.datasets import picture, ramp
from tests.migration.document import Check, Row, each_row
from tests.migration.scoring import scored, told_nearest
from tests.migration.trainings import BASE, Trainings, half_cosine
from tests.serving import Pictures, running

PUBLISHED = ARCHITECTURES["B/32@224+B"].architecture


def dimensions(row: Row, train: Trainings) -> None:
    built = train.recipe(row.settings).model.build()
    text = built.text
    assert (text.context_length, text.width, built.image.feature_width, built.embed_dim) == (32, 512, 768, 512)
    (option,) = (code for code in row.codes if code.startswith("-o "))
    key, _, value = option.removeprefix("-o ").partition("=")
    assert value == "N"
    assert Recipe.parse({**BASE, **row.settings}, overrides={key: 48}).model.build().text.context_length == 48


def linear_descent(row: Row, train: Trainings) -> None:
    assert train(row.settings).column("learning_rate") == [pytest.approx(half_cosine(5e-4, s, 3)) for s in (1, 2)]


def pinned(row: Row, train: Trainings) -> None:
    """The scale stays, whatever the rate; without it, it moves."""
    settings = {"optimizer": {"learning_rate": 0.5}}
    scales = [exp(train(settings, given).steps[-1].after["weights/logit_scale"]) for given in (row.settings, {})]
    assert scales[0] == pytest.approx(1 / 0.07, rel=1e-5)
    assert abs(scales[1] - 1 / 0.07) > 1


def low_resource(row: Row, train: Trainings) -> None:
    data = {"data__source__file": "WKIT_local.csv", "data__source__images": train.data / "pictures"}
    run = in_this_process(row, train, model__vocabulary="null", **data)
    assert [len(step.pixels) for step in run.steps] == [128, 128]
    assert run.column("learning_rate") == [pytest.approx(5e-4 * step / 2000) for step in (1, 2)]
    assert all(caption == f"n{number}" for step in run.steps for number, caption in step.pairs)
    optimizer = run.recipe.optimizer
    assert (optimizer.weight_decay, optimizer.decay, optimizer.betas) == (0.2, "all", (0.9, 0.98))


def four_epochs(row: Row, train: Trainings) -> None:
    run = train(*row.fragments, options="--steps 1")
    assert run.column("learning_rate") == [pytest.approx(half_cosine(4e-5, 1, 4 * 4 + 1))]


SMALL = {
    "embed_dim": 16,
    "image": {"kind": "low_resource", "resolution": 32, "patch": 16, "width": 32, "layers": 1, "heads": 8}
    | {"mlp_width": 32, "head_width": 32, "feature_width": 24, "activation": "gelu"},
    "text": {"kind": "low_resource", "context_length": 32, "vocabulary_size": 261, "width": 32, "layers": 1, "heads": 8}
    | {"mlp_width": 64, "activation": "gelu"},
}


def own_tokens(row: Row, train: Trainings) -> None:
    """2, the tokens of the caption, 1, and zeros."""
    tokenizer = byte_level(learn_byte_level(["to to"], 2))
    (train.data / "tokenizer.json").write_text(tokenizer)
    assert row.settings == {"model": {"vocabulary": "FILE"}}
    model = {"architecture": SMALL, "vocabulary": str(train.data / "tokenizer.json")}
    run = train({"model": model}, folder_of(train, "own", [picture(0), picture(1)], "to"))
    both_merged = 260  # of a blank and two letters
    assert run.steps[0].tokens.tolist() == [[2, both_merged, 1] + [0] * 29] * 2
    assert {tower.vocabulary_size for tower in TOWERS["text"].values()} == {20_000}


def learnt_tokens(row: Row, train: Trainings) -> None:
    """[NON], [EOS] and [SOS] first, then bytes, then merges."""
    (train.data / "corpus.txt").write_text("to to\n")
    command = row.command.removeprefix("clip ").replace("20000", "261")
    assert command != row.command.removeprefix("clip ")
    train.command(
        f"{command} --force -o {train.data / 'learnt.json'}".replace("corpus.txt", str(train.data / "corpus.txt"))
    )
    tokenizer = read_tokenizer(train.data / "learnt.json")
    assert (tokenizer.vocabulary_size, tokenizer.padding, tokenizer.end, tokenizer.start) == (261, 0, 1, 2)
    assert tokenizer.encode("to") == [260]


def unscaled(row: Row, train: Trainings) -> None:
    """The middle square of a picture, from 0 to 1."""
    built = train.recipe(row.settings).model.build()
    (train.data / "tokenizer.json").write_text(byte_level(learn_byte_level(["to to"], 2)))
    model = {"architecture": SMALL, "vocabulary": str(train.data / "tokenizer.json")}
    grey = ramp(48).convert("L")
    pixels = train({"model": model}, folder_of(train, "grey", [grey, grey], "grey")).steps[0].pixels[0]
    np.testing.assert_allclose(pixels, np.stack([np.asarray(grey)[:, 8:40] / 255] * 3), atol=1e-6)
    assert built.image.pixels == Architecture.from_dict(SMALL).image.pixels


def converted(row: Row, train: Trainings) -> None:
    """A file without a suffix, whose weights are an entry of it."""
    small = Architecture.from_dict(SMALL)
    weights = initialize(small, 0)
    tensors = {name: Tensor(array, array.dtype) for name, array in weights.items()}
    stored = LAYOUTS["low_resource"].store(tensors, small)
    state = {name: torch.tensor(tensor.array) for name, tensor in stored.items() if name != "logit_scale"}
    file, target = train.data / row.theirs.split()[-1], train.data / "converted.safetensors"
    torch.save({"epoch": 3, "model_state_dict": state, "loss_history": [2.5]}, file)
    command = row.command.removeprefix("clip ").replace("FILE", str(file)).replace("model.safetensors", str(target))
    train.command(f"{command} --force")
    found = converters.read(target)
    assert found.architecture == small
    assert all(np.array_equal(found.weights[name], array) for name, array in weights.items())


def collecting(row: Row, train: Trainings, **places: object) -> Path:
    """Run the row's command with places instead of its words; gives the folder of what it writes."""
    folder = train.folder()
    folder.mkdir(exist_ok=True)
    words = row.command.removeprefix("clip ").split()
    if "-o" in words:
        written = words[words.index("-o") + 1]
        places[written] = folder / written
    else:
        places["DIR"] = folder / "fetched"
    assert set(places) <= set(words)
    more = ["--private"] if "download" in words else []
    train.command(" ".join([str(places.get(word, word)) for word in words] + more))
    return folder


def words_counted(row: Row, train: Trainings) -> None:
    page = "<page><ns>0</ns><revision><text>{}</text></revision></page>"
    pages = page.format("the [[Zebra|zebra]]") * 100 + page.format("the rare zebra") * 99
    (train.data / "DUMP").write_bytes(bz2.compress(f"<mediawiki>{pages}</mediawiki>".encode()))
    folder = collecting(row, train)
    assert (folder / "words.tsv").read_text() == "word\ttimes\nzebra\t199\n"


def joined(row: Row, train: Trainings) -> None:
    pairs = [{"query": "a zebra", "image": "https://a.example/1"}, {"query": None, "image": "https://a.example/2"}]
    (train.data / "words_0.json").write_text(json.dumps(pairs))
    (train.data / "words_1.json").write_text(json.dumps([*pairs, {"query": "a horse", "image": "https://a.example/3"}]))
    folder = collecting(row, train)
    expected = "query,image\na zebra,https://a.example/1\na horse,https://a.example/3\n"
    assert (folder / "WKIT_24M_dataset.csv").read_text() == expected


def downloaded(row: Row, train: Trainings) -> None:
    stored = {f"/{number}": (train.data / "pictures" / f"{number}.jpg").read_bytes() for number in range(4)}
    served = Pictures({**stored})
    with running(served.handler) as address:
        rows = [f"n{number},{address}/{number}" for number in range(5)]
        (train.data / "pairs.csv").write_text("\n".join(["query,image", *rows]))
        folder = collecting(row, train, **{"WKIT_24M_dataset.csv": train.data / "pairs.csv"}) / "fetched"
    data = {"source": "table", "file": str(folder / "images.csv"), "separator": ","}
    run = train({"data": data, "training": {"epochs": 1}})
    assert sorted(pair for step in run.steps for pair in step.pairs) == [(number, f"n{number}") for number in range(4)]
    assert "4 answers 404." in (folder / "faults.jsonl").read_text()


def indexed(row: Row, train: Trainings) -> None:
    source = train.data / "sides"
    source.mkdir()
    for side in (111, 112):
        Image.new("RGB", (200, side)).save(source / f"{side}.jpg")
    (source / "download.json").write_text("{}")
    (source / "images.csv").write_text("filepath,title\n111.jpg,small\n112.jpg,large\nabsent.jpg,absent\n")
    folder = collecting(row, train, DIR=source)
    assert (folder / "WKIT_local.csv").read_text() == "IMG,Q\n112.jpg,large\n"


def corpus_written(row: Row, train: Trainings) -> None:
    (train.data / "captions.csv").write_text('query,image\n"a\nzebra",1\na horse,2\n')
    folder = collecting(row, train, **{"WKIT_24M_dataset.csv": train.data / "captions.csv"})
    assert (folder / "corpus.txt").read_text() == "a zebra\na horse\n"


CHECKS: dict[str, Check] = {
    'python train.py -device="gpu" -image_encoder="B/32@224" -text_encoder="B" ...': low_resource,
    "python src/data/image_gen/word_scraping.py, tasks 1 to 3, an empty file there": words_counted,
    "python data.py -task=1, task 5": joined,
    "python data.py -task=2, task 6, in 20 threads": downloaded,
    "python data.py -task=4, task 7": indexed,
    "WKIT_local.csv": READS_TABLE,
    "python data.py -task=3.5": corpus_written,
    "python data.py -task=5, 6, 7: CSV of query, image": READS_TABLE,
    "-fine_tuning (not in the code)": loaded,
    "-load_last_checkpoint True": resumed,
    "-warmup 2000": warm_up(2000),
    "-use_checkpoint True, of the text blocks": recomputed,
    "-image_encoder B/32@224, -text_encoder B": architecture(PUBLISHED),
    "-max_temperature 100.0; the factor is kept from 0.01 to 100": scale_bounds(0.01, 100),
    "the temperature is not trained": pinned,
    "-batch_size 128": batch(128),
    "-epochs 5": epochs(5),
    "-max_length 32, -text_dim_out 512, -image_dim_out 768, -embedding_dim 512": dimensions,
    "python data.py -task=3, the tokenizer of a corpus": learnt_tokens,
    "-vocab_size 20000, a tokenizer JSON": own_tokens,
    "-decay 0.2, of every parameter": decay(0.2, of_all=True),
    "-beta_1 0.9, -beta_2 0.98": moments(0.9, 0.98),
    "-epsilon 1e-6": epsilon(1e-6),
    "-lr 5e-4": rate(5e-4),
    "parallel_train.py -epochs 4 -lr 4e-5 -clip_embedding_dim 512": four_epochs,
    "schedule: linear up, linear down to 0": linear_descent,
    "autocast and GradScaler": loss_scales,
    "no clipping of gradients": gradient_clip(None),
    "mean of the two cross-entropies, scale from 14.2857": reduction(1, 14.2857),
    "resize of the short side, random crop": cropped("random"),
    "pixels from 0 to 255 in training, from 0 to 1 in evaluation": unscaled,
    "text attention by sums in place of projections, softmax over queries, no token sees itself": architecture(
        PUBLISHED
    ),
    "-text_encoder L, whose 12 heads do not divide its width 512": architecture(PUBLISHED),
    "an unreadable picture becomes item 1 or 2": damaged,
    "[SOS] ids [EOS] of at most 32 tokens": truncated,
    "a checkpoint each epoch": kept(2),
    "its checkpoint CLIP_epoch_3_2023-07-01": converted,
    "TensorBoard: loss and learning rate": tensorboard,
    "python imagenet.py -clip B224px -epoch 3: top-1, top-5, top-10": scored,
    "python cifar10.py -clip B224px -epoch 3: top-1": scored,
    "python caltech101.py -clip B224px -epoch 3: top-1, with the background as a class": scored,
    "python coco.py: which of 16 captions is nearest, which fails there": scored,
    "-clip B112px, -epoch -1 to 3: one of five files": scored,
    "the same scores during training": evaluated,
    "retrieval during training": evaluated,
    "bias_test.ipynb: photographs with labels of paper by texts, as bars": told_nearest,
}


@each_row("Low-resource CLIP", CHECKS)
def test_row(row, check, train):
    check(row, train)
