"""Addresses of strangers: only the public internet is asked, and a server gets little time and space."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from clip_core.data.collection import fetching
from clip_core.data.collection.fetching import Fetcher, Limits, Stopped, is_public
from clip_core.errors import ClipError, DownloadError
from tests.serving import Pictures, answer, running

QUICK = Limits(seconds=5, attempts=2, requests_per_second=1000, private=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[tuple[Pictures, str]]:
    pictures = Pictures({})
    with running(pictures.handler) as address:
        yield pictures, address


def fault(url: str, limits: Limits = QUICK) -> str:
    with pytest.raises(DownloadError) as caught:
        Fetcher(limits).fetch(url)
    return str(caught.value)


PRIVATE = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.0.9", "169.254.169.254", "172.31.0.1", "192.168.0.1"),
    *("192.0.0.8", "192.88.99.1", "198.18.0.1", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "100::1", "fc00::1", "fd12::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1"),
]
PUBLIC = ["1.1.1.1", "172.32.0.1", "192.0.1.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1111", "2a00:1450::1"]


def test_which_addresses_are_public():
    assert [number for number in PRIVATE if is_public(number)] == []
    assert [number for number in PUBLIC if not is_public(number)] == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_this_machine_is_not_asked_however_it_is_written(host, server):
    pictures, address = server
    url = address.replace("127.0.0.1", host) + "/a"
    assert "which is not an address of the public internet." in fault(url, Limits())
    assert pictures.asked == []


def test_the_connection_goes_to_the_address_that_was_checked(server, monkeypatch):
    """A name that resolves to something public first, and to this machine from then on."""
    pictures, address = server
    port = int(address.rsplit(":", 1)[1])
    resolved, connected = [], []

    def resolve(host, port, *_, **__):
        resolved.append(host)
        number = "1.1.1.1" if len(resolved) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port))]

    def connect(place, *_):
        connected.append(place)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert "1 attempts: refused" in fault(f"http://rebinding.example:{port}/a", Limits(attempts=1))
    assert (resolved, connected) == (["rebinding.example"], [("1.1.1.1", port)])
    # Asked again it would lead to this machine, and one of two is enough to refuse it.
    assert "leads to 127.0.0.1, which" in fault(f"http://rebinding.example:{port}/a", Limits(attempts=1))
    assert len(connected) == 1
    assert pictures.asked == []


def test_redirects_are_followed(server):
    pictures, address = server
    pictures.answers |= {
        "/a": lambda handler: answer(handler, 302, Location="/b%20c?d"),
        "/b%20c?d": b"picture",
        "/loop": lambda handler: answer(handler, 301, Location="/loop"),
        "/file": lambda handler: answer(handler, 302, Location="file:///etc/passwd"),
        "/bracket": lambda handler: answer(handler, 302, Location="http://[::1"),
    }
    assert Fetcher(QUICK).fetch(f"{address}/a") == b"picture"
    assert "/loop was reached by 5 redirects and redirects again." in fault(f"{address}/loop")
    assert "'http://[::1' is not an http or https address." in fault(f"{address}/bracket")
    assert "'file:///etc/passwd' is not an http or https address." in fault(f"{address}/file")


def test_a_redirect_to_a_private_network_is_refused(server, monkeypatch):
    pictures, address = server
    pictures.answers["/a"] = lambda handler: answer(handler, 302, Location="http://10.0.0.1/latest/meta-data")
    monkeypatch.setattr(fetching, "is_public", "127.0.0.1".__eq__)
    sentence = fault(f"{address}/a", Limits())
    assert (
        sentence
        == "http://10.0.0.1/latest/meta-data leads to 10.0.0.1, which is not an address of the public internet."
    )


@pytest.mark.parametrize(
    "url",
    [
        *("", "picture.jpg", "file:///etc/passwd", "ftp://a.example/b", "javascript:alert(1)", "http://"),
        *("http://[::1", "http://a:99999/", "http://a b/", f"http://{'a' * 64}.example/", "http://a\ud800.example/"),
    ],
)
def test_what_is_no_address(url):
    assert fault(url).endswith("is not an http or https address.")


def test_letters_beyond_ascii(server):
    pictures, address = server
    pictures.answers["/gr%C3%BCn%20%41.jpg?q=%E2%82%AC"] = b"green"
    assert Fetcher(QUICK).fetch(f" {address}/grün %41.jpg?q=€ ") == b"green"


def test_answers_that_are_no_picture(server):
    pictures, address = server
    pictures.answers |= {
        "/large": lambda handler: answer(handler, 200, b"a" * 50, Content_Length=10**9),
        "/endless": lambda handler: _endless(handler),
        "/packed": lambda handler: answer(handler, 200, b"a", Content_Encoding="gzip"),
    }
    small = Limits(size=1000, requests_per_second=1000, private=True)
    assert fault(f"{address}/none") == f"{address}/none answers 404."
    assert fault(f"{address}/large", small) == f"{address}/large has 1000000000 bytes, and at most 1000 are taken."
    assert fault(f"{address}/endless", small) == f"{address}/endless gives more than 1000 bytes."
    assert "/packed is sent compressed" in fault(f"{address}/packed")
    assert pictures.asked == ["/none", "/large", "/endless", "/packed"]  # none of them is tried again


@pytest.mark.parametrize("size", ["-1", "-5", "ZZ", ""])
def test_a_chunk_of_a_wrong_size_is_a_fault(size, server):
    """Python would read a chunk of -1 bytes to the end of the stream, and end with an error of its own at -5."""
    pictures, address = server

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(size.encode() + b"\r\n" + b"a" * 200)

    pictures.answers["/chunked"] = respond
    sentence = fault(f"{address}/chunked", Limits(seconds=5, size=100, attempts=1, private=True))
    assert sentence.startswith(f"{address}/chunked could not be fetched in 1 attempts: IncompleteRead(0 bytes read")


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"a" * 100)


def test_what_may_pass_is_tried_again(server):
    pictures, address = server

    def times(count: int, refuse) -> None:
        left = [count]

        def respond(handler: BaseHTTPRequestHandler) -> None:
            left[0] -= 1
            refuse(handler) if left[0] >= 0 else answer(handler, 200, b"picture")

        pictures.answers["/a"] = respond

    for refuse in (
        lambda handler: answer(handler, 503, Retry_After="0"),
        lambda handler: answer(handler, 429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
        lambda handler: answer(handler, 200, b"pict", Content_Length=7),
        lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
    ):
        times(1, refuse)
        assert Fetcher(QUICK).fetch(f"{address}/a") == b"picture"
        times(2, refuse)
        assert "could not be fetched in 2 attempts: " in fault(f"{address}/a")


def test_a_server_that_drips_is_left(server):
    """Each byte in time, and the whole never."""
    pictures, address = server
    done = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            while not done.wait(0.02):
                handler.wfile.write(b"a")
        except OSError:
            pass

    pictures.answers["/a"] = drip
    started = time.monotonic()
    sentence = fault(f"{address}/a", Limits(seconds=0.3, attempts=1, private=True))
    done.set()
    assert "could not be fetched in 1 attempts: the answer does not go on." in sentence
    assert time.monotonic() - started < 5


def test_stopping_ends_a_wait_for_a_server(server):
    pictures, address = server
    done = threading.Event()
    asked = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        done.wait(20)

    pictures.answers["/a"] = hang
    fetcher = Fetcher(Limits(seconds=20, private=True))
    ended: list[BaseException] = []

    def fetch() -> None:
        try:
            fetcher.fetch(f"{address}/a")
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    assert asked.wait(10)
    fetcher.stop()
    thread.join(5)
    done.set()
    assert not thread.is_alive()
    assert [type(error) for error in ended] == [Stopped]


def test_a_host_is_asked_so_often_and_no_more(server, monkeypatch):
    pictures, address = server
    pictures.answers |= {"/a": b"a"}
    waits: list[float] = []
    fetcher = Fetcher(Limits(requests_per_second=4, private=True))
    monkeypatch.setattr(fetcher, "_rest", waits.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    for _ in range(3):
        fetcher.fetch(f"{address}/a")
    fetcher.fetch(f"{address.replace('127.0.0.1', 'localhost')}/a")
    assert waits == [0.0, 0.25, 0.5, 0.0]
    with pytest.raises(ClipError, match="must be numbers above 0"):
        Limits(requests_per_second=float("nan"))
