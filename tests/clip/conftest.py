"""The small model in a file of every format, a server for it, and the ``clip`` command in this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import backends
import clip
import converters
from backends.numpy import CLIP as Reference
from clip.command import main
from clip_core.text.bpe_training import learn
from converters import ModelFile
from tests.clip.running import Ended
from tests.clip.small import ARCHITECTURE, MERGES, SUFFIXES
from tests.models import sample_weights
from tests.requested import BACKENDS, load_backend
from tests.serving import Serve, serving

with warnings.catch_warnings():
    # What the frameworks say of the machine while they are imported is not about this project.
    warnings.simplefilter("ignore")
    for name in {*BACKENDS, *backends.available()}:  # commands use all that is installed
        load_backend(name)


@pytest.fixture(autouse=True)
def as_if_just_started(monkeypatch, tmp_path_factory) -> None:
    """No model is loaded, no variable is set, and nothing of this user's cache is seen."""
    monkeypatch.setattr(clip.api, "_current", None)
    monkeypatch.delenv("CLIP_BACKEND", raising=False)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def clean_scope() -> Iterator[None]:
    """What one test publishes in NNabla's global scope, the next one does not see."""
    yield
    if "nnabla" in BACKENDS:
        import nnabla

        nnabla.clear_parameters()


@pytest.fixture(scope="session")
def checkpoint() -> ModelFile:
    texts = ["a red circle", "a blue circle", "a red square", "two blue squares", "a green star", "three green stars"]
    return ModelFile(sample_weights(ARCHITECTURE), ARCHITECTURE, vocabulary=learn(texts, MERGES))


@pytest.fixture(scope="session")
def files(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Suffix -> the small model in a file of that format."""
    folder = tmp_path_factory.mktemp("files")
    written = {}
    for suffix in SUFFIXES:
        # The last two suffixes are read, not written.
        target = folder / f"small{ {'.hdf5': '.h5', '.pd': '.pdparams'}.get(suffix, suffix) }"
        if not target.exists():
            converters.write(checkpoint, target)
        written[suffix] = target
        if target.suffix != suffix:
            written[suffix] = folder / f"renamed{suffix}"
            written[suffix].write_bytes(target.read_bytes())
    return written


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """A file with other weights of the same shapes, without a vocabulary of its own."""
    target = tmp_path_factory.mktemp("other") / "other.safetensors"
    converters.write(ModelFile(sample_weights(ARCHITECTURE, seed=1), ARCHITECTURE), target)
    return target


@pytest.fixture(scope="session")
def judge(checkpoint) -> Reference:
    """The small model in float64."""
    return Reference(ARCHITECTURE, checkpoint.weights, precision="fp64")


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 3, 48, 48)).astype(np.float32)


@pytest.fixture
def serve(monkeypatch) -> Iterator[Serve]:
    """Make a name stand for a file of the small model on a local server, as `tests.serving` does."""
    with serving(monkeypatch) as start:
        yield partial(start, architecture=ARCHITECTURE)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Ended]:
    """The command in this process, through its own entry point."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["clip", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return call
