"""``clip evaluate --download``: a published data set is fetched, checked and scored."""

from __future__ import annotations

from hashlib import sha256

import pytest

from clip_core.evaluation.sets.mnist import Mnist
from tests.clip.running import assert_refused
from tests.evaluation.layouts import mnist
from tests.serving import Pictures, running


@pytest.fixture
def served(monkeypatch):
    files = {path: data for path, data in mnist("mnist", ".gz").items() if path.startswith("t10k")}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Pictures({f"/{name}": data for name, data in files.items()})
    with running(server.handler) as address:
        monkeypatch.setattr(Mnist, "address", address)
        digests = {name: (sha256(data).hexdigest(), len(data)) for name, data in files.items()}
        monkeypatch.setattr(Mnist, "digests", digests)
        yield server


def test_a_data_set_is_fetched_and_scored(run, served, tmp_path):
    wanted = ["evaluate", "mnist", "--data", tmp_path / "mnist", "--backend", "numpy", "--json"]
    found = run(*wanted, "--download").json
    assert (found["data"]["kind"], found["data"]["pictures"]) == ("mnist", 10)
    assert run(*wanted).json == found
    assert len(served.asked) == 2


def test_a_data_set_that_is_not_there_is_refused(run, served, tmp_path):
    assert_refused(run("evaluate", "mnist", "--data", tmp_path, "--backend", "numpy"), str(tmp_path))
    assert served.asked == []
