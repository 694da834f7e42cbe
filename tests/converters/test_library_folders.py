"""Folders for transformers and open_clip: these load them and say what is said here; and folders of theirs are read."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import clip
from backends import numpy as reference
from clip import samples
from clip.api import RESOURCES, open_model
from clip.zero_shot import Classifier
from clip_core import safetensors
from clip_core.architecture import Architecture
from clip_core.data.shapes import TrainingSet
from clip_core.errors import CheckpointError, ClipError, TextError
from clip_core.image import open_image
from clip_core.initialize import initialize
from clip_core.pixels import Pixels
from clip_core.preprocess import preprocess
from clip_core.text.bpe import openai
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, convert, inspect, read, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer, pipeline

SHAPES = RESOURCES / "shapes.safetensors"
# Texts of many kinds that need no repair, which transformers does not do.
TEXTS = [
    *("a red circle", "A Large, Solid RED circle!", "  two\tblue\n\nstars  ", "it's what they've said, isn't it?", ""),
    *(
        "3 hearts & 12 rings (or 13?)",
        "...!?-- #@ 100%",
        "na\u00efve caf\u00e9",
        "\u732b\u3068\u72ac",
        "\u0440\u044b\u0436\u0438\u0439 \u043a\u043e\u0442",
    ),
    *("\U0001f98a in the snow", "x" * 60, "a_b c-d e/f", "<|startoftext|> in a text", "the end <|endoftext|> and more"),
]


@contextmanager
def quiet() -> Iterator[None]:
    """What transformers warns of on the way is not about this project."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Killed(BaseException):
    """Nothing touches the disk after it."""


@pytest.mark.parametrize("fault", [Killed, OSError])
def test_no_weights_lie_beside_the_configuration_of_others(fault, vit, tmp_path, monkeypatch):
    """A folder is replaced, and each of the renames and removals fails, alone or with all that follow."""
    texts = {"quick_gelu": "old", "gelu": "new"}
    towers = {
        name: replace(tower, activation="gelu")
        for name, tower in (("image", vit.architecture.image), ("text", vit.architecture.text))
    }
    new = ModelFile({name: array + 1 for name, array in vit.weights.items()}, replace(vit.architecture, **towers))
    calls = {(os, "replace"): os.replace, (os, "link"): os.link, (Path, "unlink"): Path.unlink}
    found = []
    for at in range(9):
        folder = tmp_path / str(at)
        write(vit, folder, layout="huggingface")
        weights = load_file(folder / "model.safetensors")
        save_file(weights, folder / "model.safetensors")  # without a manifest, as transformers writes it
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        count = 0

        def failing(call, at=at):
            def wrapped(*arguments, **options):
                nonlocal count
                count += 1
                if count - 1 == at or (fault is Killed and count > at):
                    raise fault
                return call(*arguments, **options)

            return wrapped

        with monkeypatch.context() as patched:
            for (owner, name), call in calls.items():
                patched.setattr(owner, name, failing(call))
            with suppress(Killed, OSError, ClipError):
                write(new, folder, layout="huggingface", force=True)
        old = load_file(folder / "model.safetensors")["logit_scale"] == weights["logit_scale"]
        config = folder / "config.json"
        text = texts[json.loads(config.read_text())["text_config"]["hidden_act"]] if config.exists() else "no"
        found.append(("old" if old else "new", text))
        if not old:
            assert read(folder).architecture == new.architecture
        elif fault is OSError:
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # After a fault of one call alone, the old configuration is back beside the old weights.
    alone = {("new", "no")} if fault is OSError else {("old", "no"), ("new", "no")}
    assert set(found) == {("old", "old"), ("new", "new")} | alone
    assert (found[0], found[-1]) == (("old", "old"), ("new", "new"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model as a folder of Hugging Face."""
    path = tmp_path_factory.mktemp("library") / "shapes"
    report = convert(SHAPES, path, layout="huggingface")
    assert report.target == str(path / "model.safetensors")
    assert {file.name for file in path.iterdir()} == {"model.safetensors", *report.beside}
    return path


def without_manifest(folder, target):
    """A copy as another program would write it."""
    shutil.copytree(folder, target)
    for file in target.glob("*.safetensors"):
        save_file(load_file(file), file)
    return target


def test_a_model_without_names_there_gets_no_folder(resnet, tmp_path):
    with pytest.raises(ClipError) as caught:
        write(resnet, tmp_path / "folder", layout="huggingface")
    assert str(caught.value) == (
        "The layout huggingface has no names for a ResNet with a Transformer; choose openai, nnabla, paddle or "
        "open_clip."
    )
    assert list(tmp_path.iterdir()) == []


def test_the_pipeline_gives_the_same_numbers(folder):
    """The pictures have the model's resolution: transformers resizes by other code."""
    labels = ["red circle", "blue circle", "turquoise star", "three pink hearts"]
    ours = open_model("shapes", backend="numpy")
    pictures = [open_image(path) for path in samples.pictures().values()]
    with quiet():
        classify = pipeline("zero-shot-image-classification", model=str(folder))
        found = classify(pictures, candidate_labels=labels, hypothesis_template="a {}")
    pixels = np.stack([ours.preprocess(picture) for picture in pictures])
    expected = Classifier(ours, labels, "a {}").score(pixels).probabilities
    for row, answers in zip(expected, found, strict=True):
        shares = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose([shares[label] for label in labels], row, atol=1e-5)


def test_the_processor_prepares_the_same(folder):
    ours = open_model("shapes", backend="numpy")
    captions = [TrainingSet(0, 200)[index].caption for index in range(200)]
    with quiet():
        processor = CLIPProcessor.from_pretrained(folder)
    picture = open_image(samples.pictures()["a large solid red circle"])
    pixels = processor(images=picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, ours.preprocess(picture), atol=1e-6)
    assert processor.image_processor.resample == 3  # bicubic
    assert processor.tokenizer.model_max_length == 77
    assert_same_tokens(processor.tokenizer, ours.model.tokenizer, TEXTS + captions)


def assert_same_tokens(theirs, ours, texts):
    for text in texts:
        assert theirs(text)["input_ids"] == [ours.start, *ours.encode(text), ours.end], text


def test_openais_vocabulary_becomes_transformers_tokenizer(tmp_path):
    text = TextTransformer(context_length=20, vocabulary_size=49408, width=8, layers=1, heads=1)
    architecture = Architecture(8, VisionTransformer(resolution=8, patch=4, width=8, layers=1, heads=1), text)
    write(ModelFile(initialize(architecture, 0), architecture), tmp_path / "model.safetensors", layout="huggingface")
    with quiet():
        assert_same_tokens(CLIPTokenizer.from_pretrained(tmp_path), openai(), TEXTS)
    found = read(without_manifest(tmp_path, tmp_path / "other"))
    assert (found.architecture, found.vocabulary) == (architecture, None)  # OpenAI's is not carried


@pytest.mark.parametrize("saved", [False, True])
def test_a_folder_tells_its_vocabulary(folder, saved, tmp_path):
    """From vocab.json and merges.txt, and from the tokenizer.json that transformers writes instead."""
    other = without_manifest(folder, tmp_path / "other")
    if saved:
        with quiet():
            CLIPModel.from_pretrained(other).save_pretrained(tmp_path / "saved")
            CLIPProcessor.from_pretrained(other).save_pretrained(tmp_path / "saved")
        other = tmp_path / "saved"
        assert not (other / "merges.txt").exists()
    assert inspect(other).own_vocabulary
    assert (read(other).architecture, read(other).assumed) == (read(SHAPES).architecture, ())
    found, expected = open_model(other, backend="numpy"), open_model("shapes", backend="numpy")
    np.testing.assert_array_equal(found.model.tokenize(TEXTS), expected.model.tokenize(TEXTS))
    tokens = found.model.tokenize("a red circle")
    np.testing.assert_allclose(found.model.embed_text(tokens), expected.model.embed_text(tokens), atol=1e-6)


def change(file, edit):
    def changed(folder):
        content = json.loads((folder / file).read_text())
        edit(content)
        (folder / file).write_text(json.dumps(content))

    return changed


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (
            change("vocab.json", lambda ids: ids.update({"a": 5})),
            r"vocab\.json gives 'a' the id 5; in CLIP's order .* 64",
        ),
        (change("vocab.json", lambda ids: ids.pop("a")), r"vocab\.json gives 'a' the id None; in CLIP's order"),
        (
            lambda folder: (folder / "vocab.json").write_text("["),
            "the tokenizer beside it cannot be read: JSONDecodeError",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "the tokenizer beside it cannot be read: KeyError",
        ),
        (
            lambda folder: (folder / "merges.txt").write_text("#version\nno\n"),
            "in vocab.json, line 2 of the merges is 'no'",
        ),
        *(
            (added, r"adds the token '<cat>' with the id 770 to those of its merges, and here it would be cut into p")
            for added in (
                change("vocab.json", lambda ids: ids.update({"<cat>": 770})),
                lambda folder: (folder / "added_tokens.json").write_text('{"<cat>": 770}'),
                change(
                    "tokenizer_config.json",
                    lambda settings: settings.update(added_tokens_decoder={"770": {"content": "<cat>"}}),
                ),
            )
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(folder, damage, what, tmp_path):
    other = without_manifest(folder, tmp_path / "other")
    damage(other)
    with pytest.raises(CheckpointError, match=what):
        read(other)
    assert inspect(other).faults


def test_a_token_that_transformers_adds_is_refused(folder, tmp_path):
    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<cat>"])
        CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert tokenizer("a <cat>")["input_ids"][2] == len(tokenizer) - 1
    with pytest.raises(CheckpointError, match=f"adds the token '<cat>' with the id {len(tokenizer) - 1} to those"):
        read(tmp_path)


def other_vocabulary(path):
    """The embedded model with two merges in another order."""
    checkpoint = read(SHAPES)
    header, first, second, *rest = checkpoint.vocabulary.splitlines()
    write(replace(checkpoint, vocabulary="\n".join([header, second, first, *rest]) + "\n"), path)
    return path


@pytest.mark.parametrize("layout", ["huggingface", "open_clip"])
def test_a_tokenizer_beside_a_file_is_not_replaced_by_that_of_a_like_one(layout, tmp_path):
    convert(SHAPES, tmp_path / "folder", layout=layout)
    other = without_manifest(tmp_path / "folder", tmp_path / "other")
    assert read(other, like=SHAPES).vocabulary == read(other).vocabulary
    assert read(other).vocabulary.splitlines()[1:] == read(SHAPES).vocabulary.splitlines()[1:]
    with pytest.raises(CheckpointError, match="the tokenizer beside it is another than that of the file it should be"):
        read(other, like=other_vocabulary(tmp_path / "swapped.safetensors"))
    (other / "vocab.json").unlink()  # as the sentence says
    assert (
        read(other, like=tmp_path / "swapped.safetensors").vocabulary
        == read(tmp_path / "swapped.safetensors").vocabulary
    )


def test_the_folder_of_open_clip_is_read_without_its_manifest(tmp_path):
    convert(SHAPES, tmp_path / "folder", layout="open_clip")
    other = without_manifest(tmp_path / "folder", tmp_path / "other")
    assert (read(other).architecture, read(other).assumed) == (read(SHAPES).architecture, ())
    found, expected = open_model(other, backend="numpy"), open_model("shapes", backend="numpy")
    np.testing.assert_array_equal(found.model.tokenize(TEXTS), expected.model.tokenize(TEXTS))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_the_tokenizer_of_another_model_is_not_taken_for_that_of_an_unknown_one(name, folder, tmp_path):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    unknown = replace(read(SHAPES), vocabulary=None)
    with pytest.raises(ClipError, match=rf"{name} would be taken for the vocabulary of this model, which says nothing"):
        write(unknown, tmp_path, layout="huggingface", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_open_clip_loads_a_folder(tmp_path):
    convert(SHAPES, tmp_path / "shapes", layout="open_clip")
    ours = open_model("shapes", backend="numpy")
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'shapes'}")
        tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'shapes'}")
    picture = open_image(samples.pictures()["a large solid red circle"]).resize((90, 70))
    np.testing.assert_allclose(transform(picture).numpy(), ours.preprocess(picture), atol=1e-6)
    with torch.no_grad():
        found = model.eval().encode_text(tokenize(TEXTS[:5])).numpy()
    np.testing.assert_allclose(found, ours.model.embed_text(ours.model.tokenize(TEXTS[:5])), atol=1e-5)


def unusual(vit, image_activation, text_activation):
    """A model in which nothing is as in OpenAI's."""
    pixels = Pixels((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bilinear", "squash")
    image = replace(
        vit.architecture.image, heads=4, mlp_width=147, activation=image_activation, epsilon=1e-4, pixels=pixels
    )
    text = replace(
        vit.architecture.text, heads=4, mlp_width=70, activation=text_activation, epsilon=1e-3, end_of_text=40
    )
    architecture = replace(vit.architecture, image=image, text=text)
    weights = {
        name: array
        if name == "logit_scale"
        else array + 0.1 * np.sin(np.arange(array.size, dtype=np.float32)).reshape(array.shape)
        for name, array in initialize(architecture, 0).items()
    }
    return ModelFile(weights, architecture)


@pytest.mark.parametrize(
    ("layout", "activations"),
    [
        ("huggingface", ("quick_gelu", "gelu")),
        ("huggingface", ("gelu_tanh", "quick_gelu")),
        ("open_clip", ("gelu_tanh", "gelu")),
        ("open_clip", ("quick_gelu", "quick_gelu")),
    ],
)
def test_a_model_that_is_not_like_openais(vit, layout, activations, tmp_path):
    checkpoint = unusual(vit, *activations)
    write(checkpoint, tmp_path / "folder", layout=layout)
    generator = np.random.default_rng(0)
    pixels = generator.standard_normal((2, 3, 32, 32)).astype(np.float32)
    tokens = generator.integers(1, 40, (2, 16))
    tokens[:, 9], tokens[:, 12] = 40, 49  # its end of text is not the highest token
    picture = Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8))
    with quiet(), torch.no_grad():
        if layout == "huggingface":
            model = CLIPModel.from_pretrained(tmp_path / "folder").eval()
            image = model.visual_projection(model.vision_model(torch.from_numpy(pixels)).pooler_output)
            text = model.text_projection(model.text_model(torch.from_numpy(tokens)).pooler_output)
            processor = CLIPImageProcessor.from_pretrained(tmp_path / "folder")
            prepared = processor(picture, return_tensors="np")["pixel_values"][0]
            wide = processor(picture.resize((50, 32)), return_tensors="np")["pixel_values"][0]
            assert processor.resample == 2  # bilinear
        else:
            model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'folder'}")
            image = model.eval().encode_image(torch.from_numpy(pixels))
            text = model.encode_text(torch.from_numpy(tokens))
            prepared, wide = transform(picture).numpy(), transform(picture.resize((50, 32))).numpy()
    expected = reference.CLIP(checkpoint.architecture, checkpoint.weights)
    np.testing.assert_allclose(image.numpy(), expected.embed_image(pixels), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(text.numpy(), expected.embed_text(tokens), rtol=1e-4, atol=1e-4)
    found = read(without_manifest(tmp_path / "folder", tmp_path / "other"))
    assert (found.architecture, found.assumed) == (checkpoint.architecture, ())
    wanted = checkpoint.architecture.image.pixels
    np.testing.assert_allclose(prepared, preprocess(picture, 32, wanted), atol=1e-6)
    # Both squash, but not bit for bit: one step of a colour is 0.02.
    np.testing.assert_allclose(wide, preprocess(picture.resize((50, 32)), 32, wanted), atol=0.06)


def test_what_open_clip_cannot_say_is_refused(vit, tmp_path):
    with pytest.raises(ClipError, match="quick_gelu in both towers or in none, and these have gelu and quick_gelu"):
        write(unusual(vit, "quick_gelu", "gelu"), tmp_path / "folder", layout="open_clip")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_of_another_size_is_refused(vit, tmp_path):
    merges = ModelFile(vit.weights, vit.architecture, vocabulary="#version: 1\n")
    with pytest.raises(TextError, match=r"The vocabulary has 514 tokens, the weights are for 50; give the model's\."):
        write(merges, tmp_path / "folder", layout="huggingface")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_configuration_is_kept(vit, tmp_path):
    """All that is written here is replaced by force only, and what is the same already is no fault."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ClipError, match=r"config\.json is there already; give another name, or --force"):
        write(vit, tmp_path, layout="huggingface")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", "{}")]
    write(vit, tmp_path, layout="huggingface", force=True)
    assert json.loads((tmp_path / "config.json").read_text())["projection_dim"] == 32
    with pytest.raises(ClipError, match=r"model\.safetensors is there already"):
        write(vit, tmp_path, layout="huggingface")
    (tmp_path / "model.safetensors").unlink()
    write(vit, tmp_path, layout="huggingface")


@pytest.mark.parametrize(
    ("there", "target"),
    [("tokenizer.json", "."), ("processor_config.json", "."), ("model.safetensors", "pytorch_model.bin")],
)
def test_what_would_be_read_instead_is_refused(vit, there, target, tmp_path):
    (tmp_path / there).write_text("{}")
    with pytest.raises(
        ClipError, match=rf"{there} would be read instead of what is written here; remove it, or choose"
    ):
        write(vit, tmp_path / target, layout="huggingface", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize("made", [False, True])
def test_a_fault_leaves_no_part_of_a_folder(vit, made, tmp_path, monkeypatch):
    real = safetensors.write

    def failing(path, *arguments):
        real(path, *arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "write", failing)
    target = tmp_path / "folder"
    if made:
        target.mkdir()
        (target / "config.json").write_text("{}")
    with pytest.raises(ClipError, match=r"model\.safetensors cannot be written: No space left on device"):
        write(vit, target, layout="huggingface", force=True)
    assert [(path.name, path.read_text()) for path in target.glob("*")] == ([("config.json", "{}")] if made else [])
    assert target.exists() is made


def test_the_folder_of_a_run_and_of_a_library_wherever_a_file_may_be(folder, tmp_path):
    shutil.copy(SHAPES, tmp_path / "model.safetensors")
    shutil.copy(SHAPES, tmp_path / "model-average.safetensors")
    for path in (folder, tmp_path):
        model, _ = clip.load(path, device="cpu", backend="numpy")
        assert model.embed_text(clip.tokenize("a red circle")).shape == (1, 128)
