"""OpenAI's vocabulary is found in the stated order, checked, and fetched at most once."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clip_core import download
from clip_core.errors import DownloadError, TextError
from clip_core.text import vocabulary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original() -> bytes:
    """The file as the test dependency open_clip brings it."""
    specification = importlib.util.find_spec("open_clip")
    assert specification is not None
    return Path(specification.origin).with_name(vocabulary.NAME).read_bytes()


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """A computer on which no source has the file; gives its cache folder, which does not exist yet."""
    monkeypatch.delenv("CLIP_VOCABULARY", raising=False)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(vocabulary, "ADDRESS", f"http://127.0.0.1:9/{vocabulary.NAME}")  # nobody listens there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path / "cache"


@pytest.fixture
def address(original, nowhere, monkeypatch) -> Iterator[list[str]]:
    """OpenAI's repository, on this computer; gives the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(original)))
            self.end_headers()
            self.wfile.write(original)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(vocabulary, "ADDRESS", f"http://127.0.0.1:{server.server_port}/{vocabulary.NAME}")
        yield asked
        server.shutdown()
        thread.join()


def check(merges: str) -> None:
    lines = merges.split("\n")
    assert lines[0] == '"bpe_simple_vocab_16e6.txt#version: 0.2'
    assert lines[1:3] == ["i n", "t h"]
    assert lines[-2:] == ["jeky ll</w>", ""]
    assert len(lines) == 1 + 48_894 + 1


# Sources, in order ----------------------------------------------------------------------------------------------------


def test_named_file_comes_first(original, nowhere, tmp_path, monkeypatch):
    path = tmp_path / "mine.gz"
    path.write_bytes(original)
    monkeypatch.setenv("CLIP_VOCABULARY", str(path))
    nowhere.mkdir()
    (nowhere / vocabulary.NAME).write_bytes(b"never read")
    check(vocabulary.openai_merges())


def test_a_named_file_that_is_wrong_is_not_passed_over(original, nowhere, monkeypatch):
    nowhere.mkdir()
    (nowhere / vocabulary.NAME).write_bytes(original)
    monkeypatch.setenv("CLIP_VOCABULARY", "/missing/file.gz")
    with pytest.raises(TextError) as caught:
        vocabulary.openai_merges()
    assert str(caught.value) == (
        "$CLIP_VOCABULARY cannot be used: /missing/file.gz cannot be read: No such file or directory; "
        "check that it exists and may be read."
    )


def test_cache_comes_before_the_network(original, nowhere, address):
    nowhere.mkdir()
    (nowhere / vocabulary.NAME).write_bytes(original)
    check(vocabulary.openai_merges())
    assert address == []


def test_installed_package_is_read_and_not_imported(tmp_path):
    code = (
        "import sys; from clip_core.text import vocabulary; merges = vocabulary.openai_merges(); "
        "print(len(merges), 'open_clip' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {"CLIP_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9"}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.stdout == f"{len(vocabulary.openai_merges())} False False\n", child.stderr
    assert list(tmp_path.iterdir()) == []


def test_repository_is_asked_once(nowhere, address):
    check(vocabulary.openai_merges())
    check(vocabulary.openai_merges())
    assert address == [f"/{vocabulary.NAME}"]
    assert [path.name for path in nowhere.iterdir()] == [vocabulary.NAME]


def test_spoilt_cache_is_replaced(original, nowhere, address):
    nowhere.mkdir()
    (nowhere / vocabulary.NAME).write_bytes(original[:-1])
    check(vocabulary.openai_merges())
    assert (nowhere / vocabulary.NAME).read_bytes() == original


def test_no_source_has_it(nowhere):
    with pytest.raises(DownloadError) as caught:
        vocabulary.openai_merges()
    file = nowhere / vocabulary.NAME
    assert str(caught.value) == (
        f"OpenAI's vocabulary was not found: {file} is not there; open_clip is not installed; "
        f"http://127.0.0.1:9/{vocabulary.NAME} could not be fetched in 5 attempts: Connection refused; "
        f"try again later, or put the file with SHA-256 {vocabulary.SHA256} at {file} yourself. "
        f"Set $CLIP_VOCABULARY to a copy of {vocabulary.NAME}, or run: pip install --no-deps open_clip_torch."
    )


# What differs ---------------------------------------------------------------------------------------------------------


def test_digests(original):
    assert len(original) == vocabulary.SIZE
    assert hashlib.sha256(original).hexdigest() == vocabulary.SHA256
    assert hashlib.sha256(gzip.decompress(original)).hexdigest() == vocabulary.TEXT_SHA256


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda data: gzip.compress(gzip.decompress(data), 1), "it has the right text but was compressed anew"),
        (lambda data: gzip.decompress(data), "it has the right text but is not compressed"),
        (lambda data: gzip.compress(gzip.decompress(data).replace(b"\n", b"\r\n"), 1), "its line ends are CRLF"),
        (lambda data: data[:1_000_000], "it is cut short (1000000 bytes instead of 1356917)"),
        (lambda data: gzip.compress(b"#version: 0.2\na b\n"), "its text is another one, of 2 lines"),
        (lambda data: gzip.compress(bytes(50 << 20)), "it decompresses to more than 8388608 bytes"),
        (lambda data: b"", "it is cut short (0 bytes instead of 1356917)"),
        (lambda data: b"<html>", "it does not decompress (Error -3 while decompressing data: incorrect header check, "),
        (lambda data: data[:500_000] + bytes([data[500_000] ^ 1]) + data[500_001:], "it does not decompress ("),
    ],
)  # fmt: skip
def test_what_differs(original, nowhere, tmp_path, monkeypatch, change, difference):
    path = tmp_path / "mine.gz"
    path.write_bytes(change(original))
    monkeypatch.setenv("CLIP_VOCABULARY", str(path))
    with pytest.raises(TextError) as caught:
        vocabulary.openai_merges()
    expected = (
        f"$CLIP_VOCABULARY cannot be used: {path} is not OpenAI's {vocabulary.NAME} (SHA-256 {vocabulary.SHA256}): "
    )
    assert str(caught.value).startswith(expected + difference)
    assert str(caught.value).endswith("; fetch it again.")


def test_endless_file_is_not_read(nowhere, tmp_path, monkeypatch):
    path = tmp_path / "sparse.gz"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setenv("CLIP_VOCABULARY", str(path))
    with pytest.raises(TextError, match="has 1099511627776 bytes; at most 8388608 are read here"):
        vocabulary.openai_merges()
