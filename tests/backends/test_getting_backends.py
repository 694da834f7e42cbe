"""`backends.get`: each framework on demand, and one sentence for what is missing."""

from __future__ import annotations

import importlib
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

import pytest

import backends
from clip_core.errors import BackendMissing, ClipError
from tests.requested import FRAMEWORKS


class Broken:
    """An importer that finds ``name`` and fails with ``error``."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise self.error


def test_each_backend_has_the_same_face(backend):
    assert {"CLIP", "to_tensor", "to_array"} <= vars(backend).keys()
    assert backends.get(backend.CLIP.backend) is backend


@pytest.mark.parametrize("name", ["tensorflow", "", "Torch", "backends"])
def test_an_unknown_backend(name):
    with pytest.raises(ClipError) as caught:
        backends.get(name)
    assert str(caught.value) == f"There is no backend {name!r}; choose one of torch, paddle, nnabla, numpy."


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
        f"install it with: pip install --upgrade 'triclip[{name}]'."
    )


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
    settings.read(Path(__file__).parents[2] / "setup.cfg")
    extras = settings["options.extras_require"]
    for name, package in {"torch": "torch", "paddle": "paddlepaddle", "nnabla": "nnabla"}.items():
        assert f"{package}>={backends.OLDEST[name]}" in extras[name]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissing, match=rf"pip install --upgrade 'triclip\[{name}\]'\.$"):
        backends.get(name)
    assert name not in backends.available()


def test_available_backends_are_in_the_order_of_preference(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert backends.available() == ["paddle", "nnabla", "numpy"]


def test_numpy_is_always_available(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.available() == ["numpy"]
    assert backends.get("numpy").CLIP.backend == "numpy"
