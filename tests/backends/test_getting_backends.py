"""`backends.get`: each framework on demand, and one sentence for what is missing."""

from __future__ import annotations

import importlib
import sys

import pytest

import backends
from clip_core.errors import BackendMissing, ClipError

FRAMEWORKS = ("torch", "paddle", "nnabla")


class Broken:
    """An importer that finds ``name`` and fails with ``error``."""

    def __init__(self, name: str, error: Exception) -> None:
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
    [ImportError("libcudart.so.12: no such file"), RuntimeError("module compiled against numpy 1"), OSError("bad ELF")],
)
def test_a_broken_framework(monkeypatch, name, error):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(name, error), *sys.meta_path])
    with pytest.raises(BackendMissing) as caught:
        backends.get(name)
    assert str(caught.value) == (
        f"The {name} backend needs {name}, which does not import here ({type(error).__name__}: {error}); "
        f"install it with: pip install 'triclip[{name}]'."
    )


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissing, match=rf"pip install 'triclip\[{name}\]'\.$"):
        backends.get(name)
    assert name not in backends.available()


def test_available_backends_are_in_the_order_of_preference(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert backends.available() == ["paddle", "nnabla", "numpy"]


def test_numpy_is_always_available(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.available() == ["numpy"]
    assert backends.get("numpy").CLIP.backend == "numpy"
