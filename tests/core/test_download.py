"""Downloads from a server that misbehaves in every way: the right bytes come, or nothing under the final name."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clip_core import download
from clip_core.errors import ClipError, DownloadError

ROOT = Path(__file__).parents[2]
DATA = bytes(range(256)) * 1200  # 300 KiB, in which every place differs from its neighbours
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]


class Server(ThreadingHTTPServer):
    """Answers request number i with ``script[i]``, the last one again and again, and records what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = [whole]
        self.ranges: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/weights.bin"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            number = len(self.server.ranges)
            self.server.ranges.append(self.headers["Range"])
            self.server.headers.append(dict(self.headers))
        self.close_connection = True
        self.server.script[min(number, len(self.server.script) - 1)](self)

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        headers = {"Content_Length": len(body), **headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def asked_from(self) -> int:
        return int((self.headers["Range"] or "bytes=0-")[6:-1])

    def log_message(self, *_) -> None:
        pass


Answer = Callable[[Handler], None]


def whole(handler: Handler) -> None:
    """A server that knows ranges."""
    start = handler.asked_from()
    if start >= len(DATA):
        handler.answer(416, Content_Range=f"bytes */{len(DATA)}")
    elif start:
        handler.answer(206, DATA[start:], Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
    else:
        handler.answer(200, DATA)


def cut(after: int) -> Answer:
    """The connection ends ``after`` more bytes, although more were promised."""

    def answer(handler: Handler) -> None:
        start = handler.asked_from()
        headers = {"Content_Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        handler.answer(206 if start else 200, DATA[start : start + after], Content_Length=len(DATA) - start, **headers)

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.answer(code, b"a page that explains it")


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def partial_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{SHA256[:16]}.partial")


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is meant to happen ----------------------------------------------------------------------------------------------


def test_plain_download(server, tmp_path):
    target = tmp_path / "new" / "folder" / "weights.bin"
    assert download.download(server.url, target, SHA256.upper(), expected_size=len(DATA)) == target
    assert target.read_bytes() == DATA
    assert only(target.parent) == ["weights.bin"]
    assert server.ranges == [None]
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_file_that_is_there_needs_no_network(server, tmp_path):
    target = tmp_path / "weights.bin"
    target.write_bytes(DATA)
    assert download.download(server.url, str(target), SHA256) == target
    assert download.download(server.url, target, None, expected_size=len(DATA)) == target
    assert server.ranges == []


def test_wrong_file_that_is_there_is_replaced(server, tmp_path):
    target = tmp_path / "weights.bin"
    target.write_bytes(OTHER)
    target.chmod(0o600)
    download.download(server.url, target, SHA256)
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o777 == 0o600
    target.write_bytes(DATA[:-1])
    download.download(server.url, target, None, expected_size=len(DATA))
    assert target.read_bytes() == DATA


def test_progress(server, tmp_path):
    server.script = [cut(100_000), whole]
    seen: list[tuple[int, int | None]] = []
    download.download(server.url, tmp_path / "weights.bin", SHA256, progress=lambda *call: seen.append(call))
    done = [present for present, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (len(DATA), len(DATA))
    assert 100_000 in done


def test_without_a_digest(server, tmp_path):
    server.script = [cut(100_000), whole]
    target = download.download(server.url, tmp_path / "weights.bin", None)
    assert target.read_bytes() == DATA
    assert server.ranges == [None, None]  # parts of unknown files are not put together
    assert only(tmp_path) == ["weights.bin"]


def test_link_is_followed(server, tmp_path):
    (tmp_path / "link").symlink_to("weights.bin")
    download.download(server.url, tmp_path / "link", SHA256)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "weights.bin").read_bytes() == DATA


def test_chunked_answer(server, tmp_path):
    def chunked(handler: Handler) -> None:
        handler.answer(200, Content_Length=None, Transfer_Encoding="chunked")
        for start in range(0, len(DATA), 50_000):
            piece = DATA[start : start + 50_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    server.script = [chunked]
    for name, digest in (("a", SHA256), ("b", None)):
        assert download.download(server.url, tmp_path / name, digest).read_bytes() == DATA


def test_server_that_keeps_the_connection_open(server, tmp_path):
    done = threading.Event()

    def lingering(handler: Handler) -> None:
        whole(handler)
        handler.wfile.flush()
        done.wait(30)

    server.script = [lingering]
    download.download(server.url, tmp_path / "weights.bin", SHA256)
    done.set()
    assert server.ranges == [None]


def test_redirect(server, tmp_path):
    server.script = [lambda handler: handler.answer(302, Location="/elsewhere"), whole]
    assert download.download(server.url, tmp_path / "weights.bin", SHA256).read_bytes() == DATA


# Going on after an interruption ---------------------------------------------------------------------------------------


def test_cut_connection_goes_on(server, tmp_path):
    server.script = [cut(100_000), cut(50_000), whole]
    assert download.download(server.url, tmp_path / "weights.bin", SHA256).read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_later_call_goes_on(server, tmp_path):
    target = tmp_path / "weights.bin"
    server.script = [cut(1000)]
    with pytest.raises(DownloadError, match="could not be fetched in 5 attempts: the connection ended after 5000 of"):
        download.download(server.url, target, SHA256)
    assert only(tmp_path) == [partial_of(target).name]
    assert partial_of(target).read_bytes() == DATA[:5000]
    server.ranges.clear()
    server.script = [whole]
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == ["bytes=5000-"]
    assert only(tmp_path) == ["weights.bin"]


def test_complete_partial_file_needs_no_network(server, tmp_path):
    target = tmp_path / "weights.bin"
    partial_of(target).write_bytes(DATA)
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == []


@pytest.mark.parametrize("start", [OTHER[:1000], OTHER, OTHER + b"more"])
def test_wrong_partial_file_is_dropped(server, tmp_path, start):
    target = tmp_path / "weights.bin"
    partial_of(target).write_bytes(start)
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == [f"bytes={len(start)}-", None]


CHILD = """
import sys
from clip_core import download
def progress(done, total):
    print(done, flush=True)
    if done > 50_000:
        sys.stdin.read()
download.download(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_killed_download_goes_on(server, tmp_path, sent):
    target = tmp_path / "weights.bin"
    release = threading.Event()

    def half(handler: Handler) -> None:
        handler.answer(200, DATA[:100_000], Content_Length=len(DATA))
        handler.wfile.flush()
        release.wait(30)

    server.script = [half, whole]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url, target, SHA256],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) > 50_000:
                break
        child.send_signal(sent)
        assert child.wait(30) == -sent
    release.set()
    assert only(tmp_path) == [partial_of(target).name]
    kept = partial_of(target).stat().st_size
    assert kept > 40_000
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == [None, f"bytes={kept}-"]


def test_two_at_once(server, tmp_path):
    """The second waits and finds the work done."""
    target, started, go_on = tmp_path / "weights.bin", threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        handler.answer(200, DATA[:1000], Content_Length=len(DATA))
        handler.wfile.flush()
        started.set()
        go_on.wait(30)
        handler.wfile.write(DATA[1000:])

    server.script = [slow]
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(download.download(server.url, target, SHA256).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    time.sleep(0.2)  # lets the others reach the lock
    assert results == []
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert results == [DATA] * 4
    assert server.ranges == [None]
    assert only(tmp_path) == ["weights.bin"]


def test_the_second_takes_over_when_the_first_fails(server, tmp_path):
    target, started, go_on = tmp_path / "weights.bin", threading.Event(), threading.Event()

    def fails(handler: Handler) -> None:
        started.set()
        go_on.wait(30)
        handler.answer(404)

    server.script = [fails, whole]
    outcomes: list[object] = []

    def attempt() -> None:
        try:
            outcomes.append(download.download(server.url, target, SHA256).read_bytes())
        except DownloadError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    time.sleep(0.2)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert outcomes == [DownloadError, DATA]
    assert only(tmp_path) == ["weights.bin"]


# A server that lies ---------------------------------------------------------------------------------------------------


def test_range_ignored(server, tmp_path):
    target = tmp_path / "weights.bin"
    partial_of(target).write_bytes(DATA[:5000])
    server.script = [lambda handler: handler.answer(200, DATA)]
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == ["bytes=5000-"]


@pytest.mark.parametrize(
    "stated",
    ["bytes 0-299999/307200", "bytes 5001-307199/307200", "bytes */307200", "items 5000-307199/307200", "", None,
     "bytes 5000-307199/" + "9" * 5000],
)  # fmt: skip
def test_wrong_content_range_starts_afresh(server, tmp_path, stated):
    target = tmp_path / "weights.bin"
    partial_of(target).write_bytes(DATA[:5000])
    server.script = [lambda handler: handler.answer(206, DATA[5000:], Content_Range=stated), whole]
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == ["bytes=5000-", None]


def test_partial_answer_that_nobody_asked_for(server, tmp_path):
    server.script = [lambda handler: handler.answer(206, DATA[1:], Content_Range="bytes 1-307199/307200")]
    with pytest.raises(DownloadError, match=r"it answers 206 with Content-Range 'bytes 1-307199/307200' when asked"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == []


def test_range_shorter_than_asked_for(server, tmp_path):
    def short(handler: Handler) -> None:
        handler.answer(206, DATA[5000:6000], Content_Range=f"bytes 5000-5999/{len(DATA)}")

    target = tmp_path / "weights.bin"
    partial_of(target).write_bytes(DATA[:5000])
    server.script = [short, whole]
    assert download.download(server.url, target, SHA256).read_bytes() == DATA
    assert server.ranges == ["bytes=5000-", "bytes=6000-"]


def test_wrong_bytes(server, tmp_path):
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    server.script = [lambda handler: handler.answer(200, OTHER)]
    with pytest.raises(DownloadError) as caught:
        download.download(server.url, target, SHA256)
    found = hashlib.sha256(OTHER).hexdigest()
    assert str(caught.value) == f"{server.url} has SHA-256 {found}, not {SHA256}; it is not the file asked for."
    assert target.read_bytes() == b"old"
    assert only(tmp_path) == ["weights.bin"]
    assert server.ranges == [None]


@pytest.mark.parametrize("digest", [SHA256, None])
def test_wrong_length(server, tmp_path, digest):
    server.script = [lambda handler: handler.answer(200, DATA[:-1])]
    with pytest.raises(DownloadError, match="has 307199 bytes, not 307200; it is not the file asked for"):
        download.download(server.url, tmp_path / "weights.bin", digest, expected_size=len(DATA))
    assert only(tmp_path) == []
    assert server.ranges == [None]


def test_endless_answer(server, tmp_path):
    def endless(handler: Handler) -> None:
        handler.answer(200, Content_Length=None)
        for _ in range(100):
            handler.wfile.write(DATA)

    server.script = [endless]
    with pytest.raises(DownloadError, match="gives more than 307200 bytes; it is not the file asked for"):
        download.download(server.url, tmp_path / "weights.bin", SHA256, expected_size=len(DATA))
    assert only(tmp_path) == []


def chunked_without_end(handler: Handler) -> None:
    handler.answer(200, Content_Length=None, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(DATA), DATA))


@pytest.mark.parametrize("digest", [SHA256, None])
def test_chunks_without_end_and_without_a_size(server, tmp_path, digest):
    server.script = [chunked_without_end]
    with pytest.raises(DownloadError, match="gives more than 1000000 bytes; it is not the file asked for"):
        download.download(server.url, tmp_path / "weights.bin", digest, limit=1_000_000)
    assert only(tmp_path) == []
    assert len(server.ranges) == 1


def test_stated_size_beyond_the_limit(server, tmp_path):
    with pytest.raises(DownloadError, match="has 307200 bytes, more than 307199; it is not the file asked for"):
        download.download(server.url, tmp_path / "weights.bin", SHA256, limit=len(DATA) - 1)
    assert only(tmp_path) == []
    assert download.download(server.url, tmp_path / "weights.bin", SHA256, limit=len(DATA)).read_bytes() == DATA


def head_without_end(handler: Handler) -> None:
    while True:  # "100 Continue" is followed by another head
        handler.send_response_only(100)
        handler.end_headers()


def trailers_without_end(handler: Handler) -> None:
    handler.answer(200, b"1\r\nx\r\n0\r\n", Content_Length=None, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"Name: value\r\n")


@pytest.mark.parametrize("answer", [head_without_end, trailers_without_end])
def test_what_is_no_body_ends_too(server, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.script = [answer]
    with pytest.raises(DownloadError, match="could not be fetched in 5 attempts: the answer does not go on"):
        download.download(server.url, tmp_path / "weights.bin", None)
    assert only(tmp_path) == []


def test_download_of_a_day(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "LONGEST", 0.3)
    monkeypatch.setattr(download, "SLOWEST", 10)

    def steady(handler: Handler) -> None:
        handler.answer(200, Content_Length=len(DATA))
        for byte in DATA:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.01)

    server.script = [steady]
    with pytest.raises(DownloadError, match="did not come within 0 hours; try again later"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == [partial_of(tmp_path / "weights.bin").name]  # which a later call goes on from
    assert len(server.ranges) == 1


def test_no_length_and_no_digest(server, tmp_path):
    server.script = [lambda handler: handler.answer(200, DATA, Content_Length=None)]
    with pytest.raises(DownloadError, match="states no length, so a cut could not be noticed"):
        download.download(server.url, tmp_path / "weights.bin", None)
    assert download.download(server.url, tmp_path / "weights.bin", SHA256).read_bytes() == DATA


def test_compressed_answer(server, tmp_path):
    server.script = [lambda handler: handler.answer(200, DATA, Content_Encoding="gzip")]
    with pytest.raises(DownloadError, match="is sent compressed although that was not asked for"):
        download.download(server.url, tmp_path / "weights.bin", None)
    assert only(tmp_path) == []


# A server that fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusal_is_not_repeated(server, tmp_path, code):
    server.script = [status(code)]
    with pytest.raises(DownloadError, match=f"weights.bin answers {code} .*; check the address") as caught:
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert str(caught.value).endswith(
        f", or put the file with SHA-256 {SHA256} at {tmp_path / 'weights.bin'} yourself."
    )
    assert only(tmp_path) == []
    assert len(server.ranges) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_failure_that_passes_is_tried_again(server, tmp_path, code):
    server.script = [status(code), status(code), whole]
    assert download.download(server.url, tmp_path / "weights.bin", SHA256).read_bytes() == DATA


def test_attempts_are_bounded_and_farther_and_farther_apart(server, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.script = [status(500)]
    with pytest.raises(DownloadError, match="could not be fetched in 5 attempts: it answers 500 Internal Server Error"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert pauses == [0.5, 1, 2, 4]
    assert len(server.ranges) == 5


def test_no_server(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="could not be fetched in 5 attempts: Connection refused; try again later"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)


def test_silent_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    done = threading.Event()
    server.script = [lambda _: bool(done.wait(30))]
    with pytest.raises(DownloadError, match="could not be fetched in 5 attempts: timed out"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    done.set()


def test_trickle(server, tmp_path, monkeypatch):
    """Each byte comes in time, but the file never would."""
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    done = threading.Event()

    def trickle(handler: Handler) -> None:
        start = handler.asked_from()
        headers = {"Content_Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        handler.answer(206 if start else 200, Content_Length=len(DATA) - start, **headers)
        for byte in DATA[start:]:
            if done.wait(0.02):
                return
            handler.wfile.write(bytes([byte]))

    server.script = [trickle]
    with pytest.raises(DownloadError, match=r"in 5 attempts: only [0-9]+ bytes came in 0 seconds"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    done.set()
    kept = partial_of(tmp_path / "weights.bin").read_bytes()
    assert 5 <= len(kept) < 500
    assert DATA.startswith(kept)


def test_unsafe_redirects(server, tmp_path):
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.script = [lambda handler, location=location: handler.answer(302, Location=location)]
        with pytest.raises(DownloadError, match=r"302|less safe"):
            download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == []


def test_redirect_from_https_to_http():
    request = download.urllib.request.Request("https://example.org/a")
    with pytest.raises(DownloadError, match=r"https://example\.org/a redirects to http://example\.org/b, which"):
        download._HttpOnly().redirect_request(request, None, 302, "Found", {}, "http://example.org/b")
    followed = download._HttpOnly().redirect_request(request, None, 302, "Found", {}, "https://example.org/b")
    assert followed.full_url == "https://example.org/b"


def test_redirect_loop(server, tmp_path):
    server.script = [lambda handler: handler.answer(302, Location="/weights.bin")]
    with pytest.raises(DownloadError, match=r"answers 302 .* infinite loop") as caught:
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert "\n" not in str(caught.value)
    assert len(server.ranges) < 20


@pytest.mark.parametrize("location", ["http://[::1", "http://" + "x" * 64 + ".org/", "http://h:x/"])
def test_redirect_to_an_impossible_address(server, tmp_path, location):
    server.script = [lambda handler: handler.answer(302, Location=location)]
    with pytest.raises(DownloadError, match=r"leads to an impossible address: .*; check the address"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == []
    assert len(server.ranges) == 1


# This machine ---------------------------------------------------------------------------------------------------------


def test_no_room_is_noticed_before(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="has 1000 bytes free, and 307200 are needed"):
        download.download(server.url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == []


FILL = """
import resource, signal, sys
from clip_core import download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    download.download(sys.argv[1], sys.argv[2], sys.argv[3])
except download.DownloadError as error:
    print(type(error).__name__, error)
"""


def test_no_room_on_the_way(server, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", FILL, server.url, tmp_path / "weights.bin", SHA256],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "cannot be written: File too large" in child.stdout, child.stderr
    assert only(tmp_path) == []  # nor does what filled the disk stay on it
    assert len(server.ranges) == 1  # another attempt would not help


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "weights.bin", "", "http://", "http:///x", "http://[", "http://h:99999/",
     "http://h:0/", "http://h/a b", "http://h/ü", "http://h/\r\nX: y", "data:,x"],
)  # fmt: skip
def test_addresses(tmp_path, url):
    with pytest.raises(DownloadError, match="is not an address to fetch from; it must start with http:// or https://"):
        download.download(url, tmp_path / "weights.bin", SHA256)
    assert only(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a folder"),
        ("file/x", "cannot be written: (Not a directory|File exists)"),
        ("a\0", "no file can have this"),
    ],
)
def test_impossible_targets(server, tmp_path, name, sentence):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ClipError, match=sentence):
        download.download(server.url, os.path.join(tmp_path, name), SHA256)
    assert server.ranges == []
    assert only(tmp_path) == ["file"]


def test_long_name(server, tmp_path):
    name = "語" * 85
    download.download(server.url, tmp_path / name, SHA256)
    assert only(tmp_path) == [name]
