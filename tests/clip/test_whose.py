"""``clip whose``: every variant is told apart from 20 pictures, and what cannot be told is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.api import open_model
from clip.whose import Suspects
from clip_core.embedding.parts import FORMATS, PICTURE_COLUMNS, Part, Place, write
from clip_core.embedding.stamp import Stamp, pixels_of
from clip_core.image import open_image
from clip_core.similarity import normalize
from clip_core.whose.reading import read
from clip_core.whose.variants import RESIZINGS, SCALINGS, Making, scaled
from tests.clip.running import assert_refused

PICTURES = 20
USUAL = Making("quick_gelu", "CLIP", "RGB")
BY_NAME = {resizing.name: resizing for resizing in RESIZINGS}
VARIANTS = [
    *((name, USUAL) for name in BY_NAME),
    ("OpenAI", USUAL._replace(activation="gelu")),
    ("OpenAI", USUAL._replace(channels="BGR")),
    ("OpenAI", USUAL._replace(scaling="ImageNet")),
    ("OpenCV", Making("gelu", "0 to 1", "BGR")),
    ("squash, Pillow 13", Making("quick_gelu", "-1 to 1", "RGB")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures with edges and noise, of sizes that no variant treats alike; some have an alpha channel."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        width, height = (int(side) for side in generator.integers(50, 200, 2))
        coarse = generator.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3 + (number % 5 == 0)), np.uint8)
        values = np.asarray(Image.fromarray(coarse).resize((width, height))) + generator.normal(
            0, 20, (height, width, 1)
        )
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(folder) -> list[str]:
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def loaded(files):
    return open_model(files[".safetensors"], backend="numpy")


@pytest.fixture(scope="module")
def suspects(loaded, pictures) -> Suspects:
    return Suspects(loaded, pictures)


@pytest.fixture(scope="module")
def embed(loaded, suspects, pictures):
    """Features float32 [n, d] of the pictures by a variant."""

    def features(name: str, making: Making = USUAL) -> np.ndarray:
        squares = np.stack([BY_NAME[name](open_image(picture), 48) for picture in pictures])
        model = suspects._models[making.activation]
        return model.embed_image(scaled(squares, SCALINGS[making.scaling], making.channels))

    return features


@pytest.mark.parametrize(("name", "making"), VARIANTS)
def test_every_variant_is_told_apart(name, making, suspects, embed):
    verdict = suspects.judge(normalize(embed(name, making)))
    (found,) = verdict.found
    assert (found.resizings, found.making) == ((name,), making)
    assert verdict.candidates[0].distance < 1e-6
    assert verdict.ratio > 20
    assert (verdict.exact, verdict.length, verdict.rounding, verdict.permuted) == (True, "unit", "float32", False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_that_were_rounded_are_compared_with_rounded_ones(dtype, suspects, embed):
    features = normalize(embed("transformers 5"))
    stored = torch.from_numpy(features).to(getattr(torch, dtype)).float().numpy()
    verdict = suspects.judge(stored)
    assert [found.resizings for found in verdict.found] == [("transformers 5",)]
    assert (verdict.rounding, verdict.length) == (dtype, "unit")


def test_lengths(suspects, embed):
    features = embed("OpenAI")
    assert suspects.judge(features).length == "model"
    verdict = suspects.judge(features * 100)
    assert (verdict.length, verdict.lengths) == ("other", pytest.approx((100, 100)))


def test_noise_as_that_of_half_precision_leaves_the_near_variants_together(suspects, embed):
    features = normalize(embed("OpenAI"))
    noisy = features + np.random.default_rng(0).normal(0, 1e-3, features.shape)
    verdict = suspects.judge(noisy)
    assert {found.resizings for found in verdict.found} == {("OpenAI",), ("OpenAI, Pillow 13",)}
    assert not verdict.exact


def test_other_weights_are_none_of_these(suspects, pictures, other):
    stranger = open_model(other, backend="numpy", activation="quick_gelu").model
    squares = np.stack([BY_NAME["OpenAI"](open_image(picture), 48) for picture in pictures])
    verdict = suspects.judge(stranger.embed_image(scaled(squares, SCALINGS["CLIP"], "RGB")))
    assert (verdict.found, verdict.permuted) == ([], False)


def test_another_order_is_noticed(suspects, embed):
    verdict = suspects.judge(embed("transformers 5")[::-1])
    assert (verdict.found, verdict.permuted) == ([], True)


def test_variants_that_coincide_are_named_together(files, tmp_path, run):
    """Of a picture as large as the model's, nothing is left to resize."""
    values = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    model = open_model(files[".safetensors"], backend="numpy").model
    np.save(tmp_path / "e.npy", model.embed_image(scaled(values[None], SCALINGS["CLIP"], "RGB")))
    command = ["whose", tmp_path / "e.npy", "--pictures", tmp_path / "a.png", "--model", files[".safetensors"]]
    assert run(*command, "--json").json["found"][0]["resizing"] == list(BY_NAME)
    assert "whose: resized in any way, which gives these pictures the same pixels, scaled as" in run(*command).out


def test_the_command_says_it_in_words(folder, files, embed, tmp_path, run):
    np.save(tmp_path / "e.npy", normalize(embed("OpenAI, Pillow 13")).astype(np.float16))
    arguments = ("--pictures", folder, "--model", files[".safetensors"], "--backend", "numpy")
    found = run("whose", tmp_path / "e.npy", *arguments)
    assert found.code == 0
    assert "20 pictures, whose embeddings are of length 1 and fit into float16\n" in found.out
    assert "whose: resized as 'OpenAI, Pillow 13', scaled as 'CLIP', RGB, quick_gelu\n" in found.out
    np.save(tmp_path / "e.npy", embed("OpenAI")[::-1])
    found = run("whose", tmp_path / "e.npy", *arguments)
    assert found.code == 1
    assert "another order, which --names FILE tells\n" in found.out
    (tmp_path / "names.txt").write_text("".join(f"{number:02}\n" for number in reversed(range(PICTURES))))
    found = run("whose", tmp_path / "e.npy", *arguments, "--names", tmp_path / "names.txt", "--limit", 7, "--json").json
    assert (found["pictures"], found["found"][0]["resizing"]) == (
        7,
        ["OpenAI", "OpenAI, Pillow 13"],
    )  # which these seven do not tell apart


def test_refusals(folder, files, embed, tmp_path, run):
    arguments = ("--pictures", folder, "--model", files[".safetensors"], "--backend", "numpy")
    features = embed("OpenAI")
    for array, part in (
        (features[:7], "7 embeddings and no names of pictures, and there are 20 pictures"),
        (features[:, :5], "embeddings of 5 dimensions"),
        (features * 0, "20 embeddings that are zero or not finite"),
        (features.astype(np.int64), "int64 of shape (20, 32)"),
        (np.array([["a"], [{}]], object), "Python's objects"),
    ):
        np.save(tmp_path / "e.npy", array, allow_pickle=True)
        assert_refused(run("whose", tmp_path / "e.npy", *arguments), "e.npy", part)
    (tmp_path / "e.txt").write_text("1")
    assert_refused(run("whose", tmp_path / "e.txt", *arguments), "suffix '.txt'")
    (tmp_path / "empty").mkdir()
    assert_refused(run("whose", tmp_path / "empty", *arguments), "has no embeddings in it")


def test_every_kind_of_file_is_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    values, names = np.arange(6, dtype=np.float32).reshape(3, 2) / 7, ["b.png", "a.png", "c.png"]
    np.save(tmp_path / "e.npy", values)
    np.savez(tmp_path / "e.npz", embeddings=values, paths=np.array(names))
    columns = {"width": [1, 2, 3], "path": names, "embedding": pa.array(list(values), pa.list_(pa.float32(), 2))}
    parquet.write_table(pa.table(columns), tmp_path / "e.parquet")
    lines = [f"{name},{row[0]!r},{row[1]!r}" for name, row in zip(names, values.astype(float).tolist())]
    (tmp_path / "e.csv").write_text("\n".join(["file,0,1", *lines]))
    for suffix, named in ((".npy", None), (".npz", names), (".parquet", names), (".csv", names)):
        found = read(tmp_path / f"e{suffix}")
        assert np.array_equal(found.embeddings, values)
        assert found.names == named
    (tmp_path / "parts").mkdir()
    for number in range(2):
        parquet.write_table(pa.table(columns), tmp_path / "parts" / f"{number}.parquet")
    found = read(tmp_path / "parts")
    assert np.array_equal(found.embeddings, np.concatenate([values, values]))
    assert found.names == names * 2


@pytest.mark.parametrize("format", FORMATS)
def test_folders_that_clip_embed_writes_are_read(format, loaded, tmp_path):
    architecture = loaded.model.architecture
    stamp = Stamp(
        *("0a" * 32, "small", architecture.to_dict(), None, pixels_of(architecture)),
        *("fp32", "float32", True, "numpy", {"numpy": "1"}),
    )
    columns = {**{name: [None] for name in PICTURE_COLUMNS}, "width": [1], "height": [1]}
    for number in range(2):
        part = Part(Place(number, number + 1, 2, "digest"), np.full((1, 3), number, np.float32), dict(columns))
        part.columns["path"] = [f"a/{number}.png"]
        write(tmp_path, part, stamp, format)
    found = read(tmp_path)
    assert found.embeddings.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found.names == ["a/0.png", "a/1.png"]
