"""`backends.get`: each framework on demand, and one sentence for what is missing."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import backends
from clip_core.backend import Backend
from clip_core.errors import BackendMissing, ClipError, EndedBySignal
from clip_core.installation import requirement
from clip_core.training.trainable import OPTIONAL_KEYS
from tests.requested import FRAMEWORKS

ROOT = Path(__file__).parents[2]


class Broken:
    """An importer that finds ``name`` and fails with ``error``."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise self.error


def test_each_backend_has_the_same_face(backend):
    assert isinstance(backend, Backend)
    assert backends.get(backend.name) is backend
    assert backend.CLIP.backend == backend.name  # type: ignore[attr-defined]
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (backend.to_array(backend.to_tensor(array)) == array).all()


def test_a_backend_trains_or_says_that_it_does_not(backend):
    if backend.name in backends.TRAINING:
        assert backend.ProcessGroup().size == 1
        assert set(backend.Trainer.optional_keys) <= set(OPTIONAL_KEYS)
        assert backend.launcher(3)[-1] in ("3", sys.executable)
        return
    for training in ("Trainer", "ProcessGroup"):
        with pytest.raises(ClipError, match=f"^There is no training in '{backend.name}'; choose another backend"):
            getattr(backend, training)


def test_inference_imports_nothing_of_training(backend):
    code = f"import sys, backends; assert backends.get({backend.name!r}).CLIP; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    training = {f"backends.{backend.name}.{part}" for part in ("training", "process_group")}
    assert "clip_core.architecture" in loaded
    assert not loaded & (training | {"clip_core.training", "grain", "pydantic"})


@pytest.mark.parametrize("name", ["tensorflow", "", "Torch", "backends"])
def test_an_unknown_backend(name):
    with pytest.raises(ClipError) as caught:
        backends.get(name)
    assert (
        str(caught.value)
        == f"There is no backend {name!r}; choose one of torch, paddle, nnabla, numpy, onnx, openvino."
    )


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.12: no such file"),
        RuntimeError("module compiled\nagainst numpy 1"),
        OSError("bad ELF"),
        SystemExit(3),
    ],
)
def test_a_broken_framework(monkeypatch, name, error):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(name, error), *sys.meta_path])
    with pytest.raises(BackendMissing) as caught:
        backends.get(name)
    assert str(caught.value) == (
        f"The {name} backend needs {name} {backends.OLDEST[name]} or newer; {name} does not import here "
        f"({type(error).__name__}: {' '.join(str(error).split())}); "
        f"install it with: pip install {requirement(name)}."
    )


def test_a_signal_while_a_framework_is_imported_is_no_fault_of_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken("torch", EndedBySignal(143)), *sys.meta_path])
    with pytest.raises(EndedBySignal):
        backends.get("torch")


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"__version__": "0.1"}, r" 0\.1 does not import here \(ImportError: this release is too old\)"),
        ({"__version__": "99.0"}, r" 99\.0 does not import here \(\w+Error: "),  # lacks all that the backend uses
        ({}, r" without a version does not import here \(\w+Error: "),
    ],
    ids=["old", "half", "empty"],
)
def test_an_old_or_half_installed_framework(monkeypatch, name, attributes, says):
    module = ModuleType(name)
    vars(module).update(attributes)
    for loaded in [loaded for loaded in sys.modules if loaded.startswith((f"{name}.", f"backends.{name}"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delattr(backends, name, raising=False)
    monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(BackendMissing, match=f"needs {name} {backends.OLDEST[name]} or newer; {name}{says}"):
        backends.get(name)


@pytest.mark.parametrize(
    ("version", "older"),
    [("2.3.1", True), ("1.13", True), ("2.4.0+cpu", False), ("2.10", False), ("3", False), ("0.0.0", False)],
)
def test_what_is_older(version, older):
    assert backends._is_older(version, "2.4") == older


def test_the_oldest_releases_are_those_of_the_package():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = settings["options.extras_require"]
    for name, package in {"torch": "torch", "paddle": "paddlepaddle", "nnabla": "nnabla"}.items():
        assert f"{package}>={backends.OLDEST[name]}" in extras[name]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissing, match=rf"pip install {re.escape(requirement(name))}\.$"):
        backends.get(name)
    assert name not in backends.available()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_module_of_this_project(monkeypatch, name):
    """Which no framework is to blame for."""
    module = f"backends.{name}"
    for loaded in [loaded for loaded in sys.modules if loaded == module or loaded.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delattr(backends, name, raising=False)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    error = ModuleNotFoundError(f"No module named '{module}'", name=module)
    monkeypatch.setattr(sys, "meta_path", [Broken(module, error), *sys.meta_path])
    with pytest.raises(ClipError, match=rf"^This TriCLIP is not whole, it lacks its module {module}; install it again"):
        backends.get(name)


def test_available_backends_are_in_the_order_of_preference(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert backends.available() == ["paddle", "nnabla", "numpy"]


def test_numpy_is_always_available(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.available() == ["numpy"]
    assert backends.get("numpy").CLIP.backend == "numpy"
