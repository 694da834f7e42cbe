"""What is installed and what is published: built offline from a copy of the checkout, as `pip` and `build` do."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import clip
from clip_core.errors import ClipError
from clip_core.training.recipe import installed_recipes

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(kind: str, source: Path, target: Path) -> Path:
    """The ``sdist`` or ``wheel`` of the tree ``source``, which stays as it is."""
    tree = shutil.copytree(source, target / "tree")
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, ".."], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
    return built


def test_setup_cfg_has_all_metadata_and_pyproject_toml_the_tools(monkeypatch):
    """Nothing is said in two places, and the version is that of the package that is installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tables = set(re.findall(r"^\[([\w-]+)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert tables == {"build-system", "tool"}
    assert not {f"tool.{name}" for name in ("mypy", "ruff")} & set(setup)
    assert clip.__version__ == setup["metadata"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (clip.__version__, setup["metadata"]["license"])
    assert citation["abstract"] == f"{setup['metadata']['description']}."

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ClipError, match=r"^triclip is not installed, so its version is not known; run: pip install"):
        _ = clip.__version__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = clip.nothing


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of this checkout without what git ignores."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "checkout", ignore=IGNORED))


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", checkout, folder)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # newer Pythons ask for one
        archive.extractall(folder)
    return folder / f"triclip-{clip.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_all_of_the_checkout(checkout, sdist):
    assert files(checkout) - files(sdist) == set()


def test_the_sdist_builds_the_wheel_of_the_checkout(checkout, wheel, tmp_path):
    with zipfile.ZipFile(build("wheel", checkout, tmp_path)) as expected, zipfile.ZipFile(wheel) as found:
        assert found.namelist() == expected.namelist()
        assert all(found.read(name) == expected.read(name) for name in expected.namelist())


def test_the_wheel_holds_the_packages_with_all_their_files_and_the_recipes(checkout, wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert wheel.name == f"triclip-{clip.__version__}-py3-none-any.whl"
    packages = ("backends", "clip", "clip_core", "converters", "exporters")
    expected = {f"{package}/{name}" for package in packages for name in files(checkout / package)}
    assert found == expected | {f"clip_core/configs/{name}" for name in files(checkout / "configs")}


def run(command: list[str], folder: Path, timeout: float = 300, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_unpacked_wheel_knows_its_recipes_by_name(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "from clip_core.training.recipe import *; print(*map(recipe_file, installed_recipes()))"
    found = run([sys.executable, "-c", code], tmp_path).split()
    assert [Path(name).relative_to(tmp_path / "clip_core" / "configs") for name in found] == [
        path.relative_to(ROOT / "configs") for path in installed_recipes().values()
    ]


@pytest.mark.slow
def test_an_installed_wheel_trains_by_a_recipe_of_its_own(wheel, tmp_path):
    run([sys.executable, "-m", "venv", "installed"], tmp_path)
    python = tmp_path / "installed" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], tmp_path)
    dependencies = {"PYTHONPATH": str(Path(pytest.__file__).parents[1])}  # from the environment of these tests
    program = str(python.with_name("clip"))
    assert run([program, "--version"], tmp_path, **dependencies) == f"triclip {clip.__version__}\n"
    run([program, "train", "-c", "shapes", "--steps", "1", "--output", "run"], tmp_path, **dependencies)
    assert (tmp_path / "run" / "model.safetensors").exists()
    where = run([str(python), "-c", "import clip; print(clip.__file__)"], tmp_path, **dependencies)
    assert Path(where.strip()).is_relative_to(tmp_path)


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
WITH_TORCH = "3.12"  # alone, since a framework takes gigabytes


@pytest.mark.slow
def test_the_wheel_alone_in_new_environments(wheel):
    """Of each Python that is found here: with the newest versions of all packages, the commands of a new user work."""
    found = {version: run([str(ROOT / ".ci" / "python"), version], ROOT).strip() for version in PYTHONS}
    assert found[".".join(map(str, sys.version_info[:2]))]
    for version, python in found.items():
        if python:
            with tempfile.TemporaryDirectory(prefix=f"triclip-{version}-") as folder:
                check_commands(wheel, python, Path(folder), "torch" if version == WITH_TORCH else None)
        else:
            print(f"left out, since it is not found here: Python {version}")


def check_commands(wheel: Path, python: str, folder: Path, extra: str | None) -> None:
    run([python, "-m", "venv", "."], folder)
    run(["bin/python", "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]" if extra else str(wheel)], folder, 1800)
    assert run(["bin/clip", "--version"], folder) == f"triclip {clip.__version__}\n"
    findings = {row["name"]: row for row in json.loads(run(["bin/clip", "doctor", "--json"], folder))}
    assert findings["triclip"]["found"].startswith(f"{clip.__version__} in {folder}/lib")
    states = {name: findings[name]["state"] for name in ("required", "torch", "paddle")}
    assert states == {"required": "ok", "torch": "ok" if extra else "missing", "paddle": "missing"}
    recipes = json.loads(run(["bin/clip", "recipes", "--json"], folder))
    assert {row["name"] for row in recipes} == set(installed_recipes())
    backends = f"numpy,{extra}" if extra else "numpy"
    assert f"parity: PASS backends={backends} " in run(["bin/clip", "demo"], folder)
    (picture,) = folder.glob("lib/*/site-packages/clip_core/resources/pictures/a-large-solid-red-circle.png")
    labels = ["--labels", "red circle,blue circle,red star"]
    (answer,) = json.loads(run(["bin/clip", "classify", str(picture), *labels, "--json"], folder))
    assert max(answer["probabilities"], key=answer["probabilities"].get) == "red circle"
    if extra:
        plan = json.loads(run(["bin/clip", "train", "-c", "shapes", "--dry-run", "--json"], folder))
        assert plan["trained_parameters"] > 1_000_000
