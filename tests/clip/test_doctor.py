"""What is installed, missing or broken, found by planted modules; and each extra of setup.cfg is looked at."""

from __future__ import annotations

import configparser
import sys
from importlib import metadata

import pytest

import clip
from clip import doctor
from clip_core.installation import requirement
from tests.clip.running import ROOT

PLANTED = {
    "whole": "__version__ = '1.2'",
    "unversioned": "",
    "damaged": "raise ImportError('libdamaged.so.1 is not there')",
    "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    "leaving": "import sys; sys.exit(3)",
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Modules in place of what TriCLIP requires and of the extras."""
    for name, code in PLANTED.items():
        (tmp_path / f"planted_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "REQUIRED", ("planted_whole",))
    monkeypatch.setattr(doctor, "EXTRAS", {"web": ("planted_whole", "planted_unversioned"), "ray": ("planted_none",)})
    return monkeypatch


def by_name(rows: list[dict]) -> dict[str, dict]:
    return {row["name"]: row for row in rows}


def test_what_is_there_and_what_is_missing(planted, run, tmp_path):
    planted.setenv("OMP_NUM_THREADS", "3")
    found = by_name(run("doctor", "--json").json)
    assert found["triclip"]["found"] == f"{clip.__version__} in {ROOT}"
    assert found["python"]["found"].endswith(f", {sys.executable}")
    assert found["threads"]["found"].startswith("3 to compute with on the CPU, OMP_NUM_THREADS=3")
    assert "planted_whole 1.2" in found["required"]["found"]
    assert found["web"] == {
        "name": "web",
        "state": "ok",
        "found": "planted_whole 1.2 planted_unversioned",
        "remedy": None,
    }
    remedy = f"pip install {requirement('ray')}"
    assert found["ray"] == {"name": "ray", "state": "missing", "found": "there is no planted_none", "remedy": remedy}
    shown = run("doctor")
    assert shown.code == 0
    assert remedy in shown.out
    assert "planted_unversioned" in shown.out


def test_a_version_that_the_module_does_not_say_is_that_of_its_package(planted, run):
    planted.setattr(doctor, "REQUIRED", ("rich",))
    assert by_name(run("doctor", "--json").json)["required"]["found"] == f"rich {metadata.version('rich')}"


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("damaged", "ImportError: libdamaged.so.1 is not there"),
        ("crashing", "importing it ends Python by SIGILL"),
        ("leaving", "importing it ends Python with 3"),
    ],
)
def test_what_is_installed_and_broken(module, says, planted, run):
    planted.setattr(doctor, "EXTRAS", {"web": (f"planted_{module}",)})
    result = run("doctor")
    assert (result.code, result.err) == (1, "")
    *_, row, remedy = result.out.splitlines()
    assert row.split()[:2] == ["web", "broken"]
    assert says in row
    assert remedy.strip() == f"pip install {requirement('web')}"


def test_a_vocabulary_that_is_not_openais_is_broken(planted, run, tmp_path):
    (tmp_path / "vocabulary.gz").write_bytes(b"no")
    planted.setenv("CLIP_VOCABULARY", str(tmp_path / "vocabulary.gz"))
    assert run("doctor").code == 1


def test_every_extra_is_looked_at():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    assert extras - {"all", "test", "dev", "plot", "paddle-cuda", "nnabla-cuda"} - set(doctor.EXTRAS) == set()
    assert set(doctor.EXTRAS) <= extras
