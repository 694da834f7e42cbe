"""The index of a server: in memory where it fits, and a fault of its own tells clients nothing of this machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from clip import samples
from clip.api import open_model
from clip.embedding import embed_into
from clip.search import Index
from clip.serving.limits import Limits
from clip.serving.metrics import Metrics
from clip.serving.refusals import Refusal
from clip.serving.service import Service
from clip_core.errors import ClipError

VECTOR_BYTES = 8 * 128 * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("index")
    embed_into(target / "embeddings", list(map(str, samples.pictures().values())), backend="numpy", workers=0)
    return Index.build(target / "embeddings", target / "index.lance").store.folder


@contextmanager
def served(index: Index, most_bytes: int) -> Iterator[tuple[Service, Metrics]]:
    """A service that is ready, or has failed."""
    metrics = Metrics()
    load = partial(open_model, "shapes", backend="numpy")
    service = Service("shapes", load, Limits(index=most_bytes), metrics, fetch=False, index=index, failed=lambda: None)

    async def until_ready() -> None:
        while not service.ready and service.failure is None:
            await asyncio.sleep(0.01)

    service.start()
    try:
        asyncio.run(asyncio.wait_for(until_ready(), 60))
        yield service, metrics
    finally:
        service.close()


@pytest.mark.parametrize(("most_bytes", "held"), [(VECTOR_BYTES, VECTOR_BYTES), (VECTOR_BYTES - 1, 0)])
def test_an_index_is_held_in_memory_where_it_fits(folder, most_bytes, held):
    with served(Index(folder), most_bytes) as (service, metrics):
        found = asyncio.run(service.search("a red circle", None, 3))
    assert f"clip_index_held_bytes {float(held)}" in metrics.text().decode()
    assert [hit.row["id"] for hit in found] == [hit.row["id"] for hit in Index(folder).search("a red circle", count=3)]


@pytest.mark.parametrize("held", [False, True])
def test_an_index_whose_files_are_gone(folder, tmp_path, caplog, held):
    copy = shutil.copytree(folder, tmp_path / "copy.lance")
    with served(Index(copy), VECTOR_BYTES if held else 0) as (service, _):
        shutil.rmtree(copy)
        with caplog.at_level(logging.ERROR), pytest.raises(Refusal) as refused:
            asyncio.run(service.search("a red circle", None, 3))
    assert refused.value.status == 500
    assert refused.value.sentence == "The index cannot be searched; the log of the server says why."
    assert caplog.records[-1].values["fault"].startswith(f"{copy} cannot be used: ")


def test_a_damaged_index_ends_the_start(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy.lance")
    index = Index(copy)
    shutil.rmtree(copy / "embeddings.lance" / "data")
    with served(index, VECTOR_BYTES) as (service, _):
        assert isinstance(service.failure, ClipError)
        assert str(service.failure).startswith(f"{copy} cannot be used: ")
