"""Pictures at addresses: fetched by a server that may, and from the public internet only."""

from __future__ import annotations

import pytest

from clip import samples
from clip.serving.pictures import content_of
from clip_core.data.collection.fetching import Fetcher, Limits
from clip_core.errors import DownloadError
from tests.serving import Pictures, running

FILE = samples.pictures()["a large solid red circle"].read_bytes()


def test_an_address_gives_its_picture():
    pictures = Pictures({"/circle.png": FILE})
    with running(pictures.handler) as address:
        assert content_of(f"{address}/circle.png", Fetcher(Limits(private=True))) == FILE
        with pytest.raises(DownloadError, match=r"answers 404\.$"):
            content_of(f"{address}/star.png", Fetcher(Limits(private=True)))
        asked = len(pictures.asked)
        with pytest.raises(DownloadError, match=r"which is not an address of the public internet\.$"):
            content_of(f"{address}/circle.png", Fetcher(Limits()))
    assert len(pictures.asked) == asked


@pytest.mark.parametrize("address", ["file:///etc/passwd", "gopher://127.0.0.1/", "HTTP://169.254.169.254/latest/"])
def test_addresses_that_are_not_fetched(address):
    with pytest.raises(DownloadError, match=r"is not an http or https address|of the public internet"):
        content_of(address, Fetcher(Limits(attempts=1)))
