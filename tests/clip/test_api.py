"""``clip.load`` and the functions of the module, on every backend."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import backends
import clip
import converters
from backends.numpy import CLIP as Reference
from clip import samples
from clip_core import tolerances
from clip_core.errors import BackendMissing, CheckpointError, ClipError, DownloadError, TextError
from clip_core.installation import requirement
from clip_core.models import MODELS, SHAPES
from clip_core.preprocess import preprocess
from clip_core.similarity import normalize
from clip_core.text.bpe import BytePairTokenizer, openai
from converters import ModelFile
from tests.clip.small import ARCHITECTURE, SUFFIXES
from tests.models import logits_of, sample_weights
from tests.requested import BACKENDS

SUFFIX_BACKENDS = {
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".safetensors": "torch",
    ".h5": "nnabla",
    ".hdf5": "nnabla",
    ".pdparams": "paddle",
    ".pd": "paddle",
}
TEXTS = ["a red circle", "a green star", "two"]
SCALE = 100  # of the small model


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (61, 90, 4), np.uint8)
    return Image.fromarray(values, "RGBA")


@pytest.fixture
def tokens(checkpoint) -> np.ndarray:
    return BytePairTokenizer(checkpoint.vocabulary).tokenize(TEXTS)


def array_of(tensor: object, backend: str) -> np.ndarray:
    """Tensor or array as an array; a variable of a static graph is computed first."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if backend == "nnabla":
        tensor.forward()
    return backends.get(backend).to_array(tensor)


def assert_embeddings(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(normalize(found.astype(np.float64)) - normalize(expected)).max() <= tolerances.EMBEDDING


# Loading --------------------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_the_packages_it_stands_in_for():
    assert list(inspect.signature(clip.load).parameters) == [
        *("name", "device", "jit", "download_root", "backend", "precision", "like", "activation", "heads"),
        *("resolution", "compile"),
    ]
    assert inspect.signature(clip.load).parameters["jit"].default is False
    assert str(inspect.signature(clip.tokenize)).startswith(
        "(texts: 'str | Sequence[str]', context_length: 'int | None' = None,"
    )


def test_available_models():
    assert clip.available_models() == [
        *("shapes", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_embedded_model_names_what_the_packaged_pictures_show(backend):
    model, transform = clip.load("shapes", device="cpu", backend=backend)
    assert (model.backend, model.architecture) == (backend, SHAPES)
    pictures = {caption: path for caption, path in samples.pictures().items() if caption.startswith("a large solid ")}
    assert len(pictures) >= 5
    labels = [caption.removeprefix("a large solid ") for caption in pictures]
    pixels = np.stack([array_of(transform(Image.open(path)), backend) for path in pictures.values()])
    tokens = array_of(clip.tokenize(labels), backend)
    per_image, per_text = logits_of(model, pixels, tokens)
    np.testing.assert_array_equal(per_image.argmax(axis=1), range(len(labels)))
    np.testing.assert_array_equal(per_text, per_image.T)


@pytest.mark.parametrize("suffix", [suffix for suffix, backend in SUFFIX_BACKENDS.items() if backend in BACKENDS])
def test_suffix_decides_the_backend(suffix, files, judge, pixels, monkeypatch):
    monkeypatch.setenv("CLIP_BACKEND", "numpy")  # for names only
    model, _ = clip.load(files[suffix])
    assert model.backend == SUFFIX_BACKENDS[suffix]
    assert_embeddings(model.embed_image(pixels), judge.embed_image(pixels))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_file_loads_in_any_backend(backend, suffix, files, judge, pixels, tokens):
    model, transform = clip.load(str(files[suffix]), backend=backend)
    assert (model.backend, model.architecture) == (backend, ARCHITECTURE)
    assert transform.resolution == 48
    assert_embeddings(model.embed_image(pixels), judge.embed_image(pixels))
    assert_embeddings(model.embed_text(tokens), judge.embed_text(tokens))
    for name, array in model.export().items():
        np.testing.assert_array_equal(array, judge.export()[name], err_msg=name)


def test_unknown_suffix_goes_to_the_default_backend(files, tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(files[".safetensors"].read_bytes())
    monkeypatch.setenv("CLIP_BACKEND", "numpy")
    assert clip.load(file)[0].backend == "numpy"


@pytest.mark.parametrize("backend", BACKENDS)
def test_variable_chooses_the_backend_for_a_name(backend, monkeypatch):
    monkeypatch.setenv("CLIP_BACKEND", backend)
    assert clip.load("shapes")[0].backend == backend


def test_default_backend_is_the_first_that_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert clip.load("shapes")[0].backend == "numpy"


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "nnabla"])
def test_precision_reaches_the_model(backend, files):
    with pytest.raises(ClipError, match="There is no precision 'fp8'"):
        clip.load(files[".pt"], backend=backend, precision="fp8")
    if backend == "torch":
        model, _ = clip.load(files[".pt"], precision="bf16")
        assert str(model.dtype) == "torch.bfloat16"
        assert model.embed_image(np.zeros((1, 3, 48, 48), np.float32)).dtype == np.float32


# The functions of the module ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_use_the_model_loaded_last(backend, files, other, judge, pixels, tokens, picture):
    first, _ = clip.load(files[".pt"], backend=backend)
    assert_embeddings(array_of(clip.encode_image(pixels), backend), judge.embed_image(pixels))

    second, _ = clip.load(other, backend=backend)
    expected = Reference(ARCHITECTURE, sample_weights(ARCHITECTURE, seed=1), precision="fp64")
    assert_embeddings(array_of(clip.encode_image(pixels), backend), expected.embed_image(pixels))
    assert_embeddings(array_of(clip.encode_text(tokens), backend), expected.embed_text(tokens))
    per_image, per_text = (array_of(values, backend) for values in clip.logits(pixels, tokens))
    assert per_image.shape == (3, 3)
    assert np.abs(per_image - expected(pixels, tokens)[0]).max() <= tolerances.logit_bound(SCALE)
    np.testing.assert_array_equal(per_text, per_image.T)
    np.testing.assert_array_equal(array_of(clip.preprocess(picture), backend), preprocess(picture, 48))

    # The one loaded before is untouched, and both compute side by side.
    assert first is not second
    assert_embeddings(first.embed_image(pixels), judge.embed_image(pixels))
    assert np.abs(judge.embed_image(pixels) - expected.embed_image(pixels)).max() > 0.01


def test_models_of_several_backends_in_one_process(files, judge, pixels):
    models = [clip.load(files[".pt"], backend=backend)[0] for backend in BACKENDS]
    for model in models:
        assert_embeddings(model.embed_image(pixels), judge.embed_image(pixels))


def test_failed_load_leaves_the_model_loaded_before(files, tmp_path):
    clip.load(files[".h5"], backend="numpy")
    before = clip.encode_image(np.ones((1, 3, 48, 48), np.float32))
    with pytest.raises(ClipError):
        clip.load(tmp_path / "missing.h5", backend="numpy")
    np.testing.assert_array_equal(clip.encode_image(np.ones((1, 3, 48, 48), np.float32)), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_and_arrays_give_the_same(backend, files, pixels, tokens):
    model, _ = clip.load(files[".pt"], backend=backend)
    framework = backends.get(backend)
    for function, values in (
        (model.encode_image, pixels),
        (model.encode_text, tokens),
        (clip.encode_image, pixels),
        (clip.encode_text, tokens),
    ):
        native, plain = function(framework.to_tensor(values)), function(values)
        assert type(native) is type(plain)
        np.testing.assert_array_equal(array_of(native, backend), array_of(plain, backend))
    mixed = array_of(clip.logits(framework.to_tensor(pixels), tokens)[0], backend)
    np.testing.assert_array_equal(mixed, array_of(clip.logits(pixels, tokens)[0], backend))
    with pytest.raises(ClipError, match="add a batch axis in front"):
        clip.encode_image(pixels[0])


# Text -----------------------------------------------------------------------------------------------------------------


def assert_native(tensor: object, backend: str, dtype: str) -> None:
    if backend == "torch":
        import torch

        assert type(tensor) is torch.Tensor
        assert tensor.dtype == getattr(torch, dtype)
        assert str(tensor.device) == "cpu"
    elif backend == "paddle":
        import paddle

        assert isinstance(tensor, paddle.Tensor)
        assert tensor.dtype == getattr(paddle, dtype)
    else:
        assert type(tensor) is np.ndarray
        assert tensor.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokenize_gives_what_the_framework_wants(backend, files, tokens):
    clip.load(files[".pt"], backend=backend)
    found = clip.tokenize(TEXTS)
    assert_native(found, backend, "int64")
    np.testing.assert_array_equal(array_of(found, backend), tokens)
    np.testing.assert_array_equal(array_of(clip.tokenize(TEXTS[0]), backend), tokens[:1])
    assert tuple(clip.tokenize(TEXTS, context_length=20).shape) == (3, 20)


def test_tokens_are_as_many_as_the_model_loaded_last_takes(checkpoint, tmp_path):
    text = replace(ARCHITECTURE.text, context_length=16)
    weights = checkpoint.weights | {"positional_embedding": checkpoint.weights["positional_embedding"][:16]}
    short = converters.ModelFile(weights, replace(ARCHITECTURE, text=text), vocabulary=checkpoint.vocabulary)
    converters.write(short, tmp_path / "short.safetensors")
    model, _ = clip.load(tmp_path / "short.safetensors", backend="numpy")
    assert clip.tokenize(TEXTS).shape == (3, 16)
    assert np.isfinite(model.encode_text(clip.tokenize(TEXTS))).all()
    assert clip.tokenize(TEXTS, 20).shape == (3, 20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_models_each_has_its_own_tokenizer(backend, files, checkpoint):
    first, _ = clip.load(files[".pt"], device="cpu", backend=backend)
    features = first.embed_text(array_of(first.tokenize(TEXTS), backend))
    second, _ = clip.load("shapes", device="cpu", backend=backend)
    strange = clip.tokenize(TEXTS)  # of the model loaded last
    np.testing.assert_array_equal(array_of(strange, backend), array_of(second.tokenize(TEXTS, 77), backend))
    with pytest.raises(
        TextError, match=r"^Token \d+ is outside the vocabulary of 534; make the tokens with this model's"
    ):
        first.encode_text(strange)
    np.testing.assert_array_equal(first.embed_text(array_of(first.tokenize(TEXTS), backend)), features)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokenize_before_any_load_is_openais(backend, monkeypatch):
    monkeypatch.setenv("CLIP_BACKEND", backend)
    found = clip.tokenize("A photo of a person with black hair")
    assert_native(found, backend, "int64")
    expected = [49406, 320, 1125, 539, 320, 2533, 593, 1449, 2225, 49407] + [0] * 67
    np.testing.assert_array_equal(array_of(found, backend), [expected])


def test_too_long_text():
    with pytest.raises(RuntimeError, match="text 0 is too long for context length 77"):  # as OpenAI's raises
        clip.tokenize("word " * 100)
    row = array_of(clip.tokenize("word " * 100, truncate=True), "torch")[0]
    assert row[-1] == 49407
    assert (row[1:-1] == openai().encode("word")[0]).all()


def test_model_with_openais_vocabulary_needs_none_in_its_file(tmp_path, monkeypatch):
    architecture = ARCHITECTURE.__class__(
        32, ARCHITECTURE.image, ARCHITECTURE.text.__class__(77, 49408, width=64, layers=1, heads=1)
    )
    converters.write(ModelFile(sample_weights(architecture), architecture), tmp_path / "theirs.safetensors")
    clip.load(tmp_path / "theirs.safetensors", backend="numpy")
    np.testing.assert_array_equal(clip.tokenize("a cat"), openai().tokenize("a cat"))


def test_vocabulary_that_is_missing(other, pixels, tokens):
    model, _ = clip.load(other, backend="numpy")
    assert model.embed_text(tokens).shape == (3, 32)  # weights and images need none
    with pytest.raises(TextError, match=r"other\.safetensors has a vocabulary of 534 tokens and does not carry it"):
        clip.tokenize("a cat")


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("#version: 1\n", r"carries a tokenizer of 514 tokens that ends texts with 513, and its text tower is for 534"),
        ("no header", r"The tokenizer that .*wrong\.safetensors carries cannot be read: line 1 of the merges"),
    ],
)
def test_vocabulary_of_another_model(vocabulary, message, checkpoint, tmp_path):
    file = tmp_path / "wrong.safetensors"
    converters.write(ModelFile(checkpoint.weights, ARCHITECTURE, vocabulary=vocabulary), file)
    clip.load(file, backend="numpy")
    with pytest.raises(TextError, match=message):
        clip.tokenize("a cat")


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_preprocess_gives_what_the_framework_wants(backend, files, picture):
    _, transform = clip.load(files[".pt"], backend=backend)
    expected = preprocess(picture, 48)
    for found in (transform(picture), clip.preprocess(picture)):
        assert_native(found, backend, "float32")
        np.testing.assert_array_equal(array_of(found, backend), expected)
    assert repr(transform) == f"Preprocess(resolution=48, backend={backend!r})"


def test_preprocess_stays_with_its_model(files, picture):
    _, transform = clip.load(files[".pt"], backend="numpy")
    clip.load("shapes", backend="numpy")
    assert transform(picture).shape == (3, 48, 48)
    assert clip.preprocess(picture).shape == (3, 64, 64)


# Named weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_name_is_fetched_once(backend, files, serve, tmp_path, judge, pixels):
    asked = serve("ViT-B/32", files[".pt"])
    for _ in range(2):
        model, _ = clip.load("ViT-B/32", download_root=tmp_path / "new" / "folder", backend=backend)
        assert_embeddings(model.embed_image(pixels), judge.embed_image(pixels))
    assert asked == ["/small.pt"]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["small.pt"]


def test_fetched_files_go_to_the_cache_folder(files, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path))
    serve("ViT-B/32", files[".pt"])
    clip.load("ViT-B/32", backend="numpy")
    assert (tmp_path / "models" / "small.pt").read_bytes() == files[".pt"].read_bytes()


def test_wrong_bytes_are_refused(files, serve, tmp_path):
    serve("ViT-B/32", files[".pt"], digest="0" * 64)
    with pytest.raises(DownloadError, match=r"/small\.pt has SHA-256 [0-9a-f]{64}, not 0{64}"):
        clip.load("ViT-B/32", download_root=tmp_path, backend="numpy")
    assert not (tmp_path / "small.pt").exists()


def test_named_file_that_holds_another_model(files, serve, tmp_path):
    serve("ViT-B/32", files[".pt"], architecture=MODELS["ViT-B/32"].architecture)
    with pytest.raises(CheckpointError, match=r"small\.pt holds another model, expected ViT-B/32; remove it"):
        clip.load("ViT-B/32", download_root=tmp_path, backend="numpy")


def test_download_root_that_is_a_file(files, serve):
    serve("ViT-B/32", files[".pt"])
    with pytest.raises(ClipError, match="cannot be written"):
        clip.load("ViT-B/32", download_root=files[".pt"], backend="numpy")


def test_backend_is_checked_before_a_download(files, serve, tmp_path):
    asked = serve("ViT-B/32", files[".pt"])
    with pytest.raises(ClipError, match="There is no backend 'tensorflow'"):
        clip.load("ViT-B/32", download_root=tmp_path, backend="tensorflow")
    assert asked == []


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [clip.encode_image, clip.encode_text, clip.preprocess])
def test_nothing_is_loaded_yet(function):
    with pytest.raises(ClipError, match=r"No model is loaded yet; call clip\.load first"):
        function(np.zeros((1, 3, 48, 48)))


def test_no_logits_before_a_model():
    with pytest.raises(ClipError, match="No model is loaded yet"):
        clip.logits(np.zeros((1, 3, 48, 48)), np.zeros((1, 77)))


@pytest.mark.parametrize("name", ["vit-b/32", "", "no\0name", "x" * 5000, "missing.pt"])
def test_neither_name_nor_file(name):
    with pytest.raises(ClipError, match=r"no model of that name; the models are shapes, RN50, .*ViT-L/14@336px"):
        clip.load(name, backend="numpy")


def test_an_architecture_without_weights():
    with pytest.raises(ClipError, match=r"^Mixer-B/32 is an architecture of Mixer CLIP without weights .* a model\.$"):
        clip.load("Mixer-B/32", backend="numpy")
    with pytest.raises(ClipError, match=r"^ViT-B-32 is an architecture of open_clip .*, or load OpenAI's ViT-B/32\.$"):
        clip.load("ViT-B-32", backend="numpy")


def test_jit_gives_the_plain_model(files):
    with pytest.warns(UserWarning, match=r"jit=True gives the plain model.*compile=True is for speed"):
        model, _ = clip.load(files[".pt"], jit=True)
    assert type(model) is type(clip.load(files[".pt"])[0])


def test_unknown_backends(files, monkeypatch):
    with pytest.raises(
        ClipError, match="There is no backend 'jax'; choose one of torch, paddle, nnabla, numpy, onnx, openvino"
    ):
        clip.load(files[".pt"], backend="jax")
    monkeypatch.setenv("CLIP_BACKEND", "jax")
    with pytest.raises(ClipError, match=r"\$CLIP_BACKEND is 'jax'; set it to one of torch, paddle, nnabla, numpy"):
        clip.load("shapes")


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_device(backend, files):
    with pytest.raises(ClipError, match="'toaster'"):
        clip.load(files[".pt"], backend=backend, device="toaster")


def test_missing_framework_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import of a package that is not there finds
    with pytest.raises(
        BackendMissing,
        match=rf"needs torch 2.4 or newer; torch does not import here .*pip install {re.escape(requirement('torch'))}",
    ):
        clip.load(files[".pt"])


def test_file_that_is_not_a_model(tmp_path):
    file = tmp_path / "page.pt"
    file.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.pt: the file is text that starts with '<html>"):
        clip.load(file, backend="numpy")


def test_importing_does_no_work():
    code = (
        "import sys, clip; loaded = set(sys.modules) & {'torch', 'paddle', 'nnabla', 'matplotlib', 'grain'}; "
        "print(sorted(loaded), clip.api._current)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "[] None\n"
