"""Packages of other projects that stand where TriCLIP's are looked for, are named in one sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from clip_core import installation
from clip_core.errors import ClipError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A folder in which the packages lie, as far as they are looked at."""
    for name in installation.FIRST_LINES:
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", tmp_path / name)
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "clip_core" / "installation.py"))
    monkeypatch.setattr(installation, "find_spec", lambda name: spec_in(tmp_path, name))
    return tmp_path


def spec_in(folder: Path, name: str):
    return importlib.util.spec_from_file_location(name, folder / name / "__init__.py")


def check() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        installation.check.__wrapped__()


def test_this_one_is_whole(installed):
    check()


def test_one_package_that_is_linked_to(installed, monkeypatch):
    (installed / "clip_core").mkdir()
    (installed / "clip_core" / "installation.py").write_text("")
    (installed / "work").mkdir()
    (installed / "work" / "clip_core").symlink_to(installed / "clip_core")
    monkeypatch.setattr(installation, "__file__", str(installed / "work" / "clip_core" / "installation.py"))
    check()


@pytest.mark.parametrize("name", installation.FIRST_LINES)
def test_an_overwritten_package(installed, name):
    (installed / name / "__init__.py").write_text("from .clip import *\n")
    with pytest.raises(ClipError) as caught:
        check()
    assert str(caught.value) == (
        f"Another project has overwritten {installed / name / '__init__.py'}; uninstall the project that brought it, "
        f"and run: pip install --force-reinstall --no-deps {installation.requirement()}."
    )


def test_a_package_that_hides_ours(installed, monkeypatch):
    other = installed / "other" / "backends"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    places = {"backends": installed / "other"}
    monkeypatch.setattr(installation, "find_spec", lambda name: spec_in(places.get(name, installed), name))
    with pytest.raises(ClipError, match=r"Python finds the package backends of another project at .*other"):
        check()


def test_a_package_that_is_not_there(installed, monkeypatch):
    monkeypatch.setattr(
        installation, "find_spec", lambda name: spec_in(installed, name) if name != "exporters" else None
    )
    with pytest.raises(ClipError, match="is not whole, it lacks its package exporters; install it again"):
        check()


def test_openais_package_in_the_same_folder(installed):
    (installed / "clip" / installation.OTHERS_VOCABULARY).write_bytes(b"")
    with pytest.warns(UserWarning, match="OpenAI's package clip, or a copy of it, is installed into TriCLIP's folder"):
        installation.check.__wrapped__()


@pytest.mark.parametrize("kind", ["package", "folder"])
def test_the_command_in_a_folder_with_another_package(kind, tmp_path):
    (tmp_path / "converters").mkdir()
    (tmp_path / "converters" / ("__init__.py" if kind == "package" else "data.txt")).write_text("")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "clip", "models"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if kind == "package":
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"clip: Python finds the package converters of another project at {tmp_path}")
        assert done.stderr.count("\n") == 1
    else:  # a folder without a module hides nothing
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("record", "plain", "with_extra"),
    [
        (None, "triclip", "'triclip[torch]'"),
        ({"url": "file://{}", "dir_info": {"editable": True}}, "-e {}", "-e '{}[torch]'"),
        ({"url": "file://{}", "dir_info": {}}, "{}", "'{}[torch]'"),
        ({"url": "file://{}/a%20b.whl", "archive_info": {}}, "'{}/a b.whl'", "'{}/a b.whl[torch]'"),
        ({"url": "file://{}/gone.whl", "archive_info": {}}, "triclip", "'triclip[torch]'"),
        (
            {"url": "https://a.b/c.whl", "archive_info": {}},
            *(f"'triclip{x} @ https://a.b/c.whl'" for x in ("", "[torch]")),
        ),
        (
            {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            *(f"'triclip{extra} @ git+https://a.b/c@12ab'" for extra in ("", "[torch]")),
        ),
    ],
)
def test_what_pip_is_to_be_given(record, plain, with_extra, tmp_path, monkeypatch):
    (tmp_path / "a b.whl").touch()
    for name, text in (("a", None), ("b", record and json.dumps(record).replace("file://{}", f"file://{tmp_path}"))):
        folder = tmp_path / name / "triclip-0.1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Name: triclip\nVersion: 0.1.0\n")
        if text is not None:
            (folder / "direct_url.json").write_text(text)
    # A clone has metadata without the record beside the packages, where Python looks first.
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in ("a", "b")])
    expected = [each.replace("{}", str(tmp_path)) for each in (plain, with_extra)]
    assert [installation.requirement(), installation.requirement("torch")] == expected
