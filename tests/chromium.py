"""Chromium, as `make test-browser` has got it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

_CHROMIUM = Path(sys.prefix, "browser", "chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-quic", "--no-first-run"]
        with playwright.chromium.launch(executable_path=_CHROMIUM, args=quiet) as browser:
            yield browser
