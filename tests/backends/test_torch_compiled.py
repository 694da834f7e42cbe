"""Models that are compiled for inference give what they give otherwise, see each change, and yield to watchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import backends
import clip
from backends.torch import CLIP
from backends.torch.compilation import compile_inference
from clip_core.backend import plainly
from clip_core.errors import ClipError
from clip_core.similarity import normalize
from clip_core.tolerances import EMBEDDING
from tests.models import sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES

ARCHITECTURE = EXAMPLES["vit and transformer"]


@pytest.fixture
def calls(monkeypatch):
    """What is computed as compiled code, which is not compiled here: the functions themselves take its place."""
    found = []

    def compiled(function):
        def call(*given):
            found.append(function.__name__)
            return function(*given)

        return call

    for module in ("layers", "towers.token_tree"):
        monkeypatch.setattr(f"backends.torch.{module}.compiled", compiled)
    return found


def model_of(architecture=ARCHITECTURE, compiled=True):
    model = CLIP(architecture, sample_weights(architecture), device="cpu")
    for transformer in (model.visual.transformer, model.transformer):
        transformer.compiled = compiled
    return model


def features(model, pixels, tokens):
    return [normalize(each) for each in (model.embed_image(pixels), model.embed_text(tokens))]


def test_inference_takes_all_blocks_but_the_last_as_compiled_code(calls):
    model = model_of()
    model.embed_image(sample_pixels(ARCHITECTURE))
    assert calls == ["advance"] * (ARCHITECTURE.image.layers - 1)
    calls.clear()
    model.embed_text(sample_tokens(ARCHITECTURE))
    assert calls == ["advance"] * (ARCHITECTURE.text.layers - 1)
    model.train()
    model.embed_image(sample_pixels(ARCHITECTURE))  # in evaluation mode all the same
    assert len(calls) == ARCHITECTURE.text.layers - 1 + ARCHITECTURE.image.layers - 1


def hooked(model):
    model.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model.encode_image(torch.tensor(sample_pixels(ARCHITECTURE)))


def plain(model):
    with plainly():
        model.embed_text(sample_tokens(ARCHITECTURE))


def with_gradients(model):
    model.encode_image(torch.tensor(sample_pixels(ARCHITECTURE)))
    model.encode_text(torch.tensor(sample_tokens(ARCHITECTURE)))


@pytest.mark.parametrize("use", [hooked, plain, with_gradients])
def test_where_it_is_looked_at_nothing_is_compiled(calls, use):
    use(model_of())
    assert calls == []


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.needs(name)) for name in backends.NAMES if name != "torch"]
)
def test_other_frameworks_have_no_compilation(backend):
    with pytest.raises(ClipError) as caught:
        clip.load("shapes", backend=backend, compile=True)
    expected = f"There is no compilation in {backend!r}; leave compile out, or choose the backend torch."
    assert str(caught.value) == expected


def test_a_model_without_transformers_is_refused():
    architecture = EXAMPLES["mixer and distilbert"]
    model = CLIP(architecture, sample_weights(architecture), device="cpu", source="model.pt")
    with pytest.raises(ClipError, match=r"^model\.pt has no transformer that could be compiled; leave compile out\.$"):
        compile_inference(model)


def test_without_a_compiler_one_sentence_says_so(tmp_path):
    code = (
        "import clip\n"
        "try: clip.load('shapes', backend='torch', device='cpu', compile=True)\n"
        "except clip.ClipError as error: print(error)"
    )
    done = run_python(code, PATH="", CXX=str(tmp_path / "g++"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout.startswith("compile=True needs torch.compile, which does not work here: ")
    assert done.stdout.endswith("Install a C++ compiler, such as g++, or leave it out.\n")
    assert done.stdout.count("\n") == 1


def run_python(code, **changed):
    environment = os.environ | changed | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


COUNTS = (1, 2, 3, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler's own code
@pytest.mark.parametrize("name", ["vit and transformer", "siglip and siglip"])
def test_compiled_models_give_the_same_numbers_for_batches_of_any_size(name, caplog):
    """They are compiled once, and see each change of a weight."""
    architecture = EXAMPLES[name]
    model = CLIP(architecture, sample_weights(architecture), device="cpu", source="model.pt")
    compile_inference(model)
    assert [record.name for record in caplog.records if "model.pt was compiled" in record.message] == [
        "backends.torch.compilation"
    ]
    versions = graphs()
    for change in (0, 0.25):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter[..., 0] += change
        eager = CLIP(architecture, model.export(), device="cpu")
        for count in COUNTS:
            given = sample_pixels(architecture, count), sample_tokens(architecture, count)
            for found, expected in zip(features(model, *given), features(eager, *given)):
                assert np.abs(found - expected).max() <= EMBEDDING
    assert graphs() == versions > 0


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_second_process_takes_the_code_from_the_cache(tmp_path):
    code = (
        "import clip, torch\n"
        "clip.load('shapes', backend='torch', device='cpu', compile=True)\n"
        "from torch._dynamo.utils import counters\n"
        "print(counters['inductor']['fxgraph_cache_hit'], counters['inductor']['fxgraph_cache_miss'])"
    )
    first, second = (run_python(code, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert f"the code is kept in {tmp_path}" in first.stderr
    hits, misses = map(int, first.stdout.split())
    assert misses > 0
    assert list(map(int, second.stdout.split())) == [hits + misses, 0]
