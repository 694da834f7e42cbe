"""Clients that ask for too much, too slowly or not at all cost the server little, and the others nothing."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.running import Running, serving_slowly, within_seconds

QUEUE, CONNECTIONS, BODY = 4, 24, 100_000
PASS_SECONDS = 0.4


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    limits = {"batch": 1, "queue": QUEUE, "connections": CONNECTIONS, "body": BODY, "bodies": 3 * BODY}
    limits |= {"head_seconds": 0.4, "body_seconds": 2.0, "unread_seconds": 0.3}
    with serving_slowly(tmp_path_factory.mktemp("server"), PASS_SECONDS, **limits) as running:
        yield running


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def error(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def embeddings(text: str) -> bytes:
    return json.dumps({"model": "shapes", "input": text}).encode()


def test_more_than_the_queue_holds_is_refused_for_now(server):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.embed, ["a star"] * 12))
    assert sorted({answer.status_code for answer in answers}) == [200, 503]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(answers) - len(refused) >= QUEUE
    for answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["message"].startswith("The server has 4 texts and pictures to embed, and room")
        assert answer.json()["error"]["type"] == "server_error"
    assert server.client.get("/healthz").status_code == 200
    assert server.embed("a star").status_code == 200


def test_who_goes_away_makes_room(server):
    connections = [server.connect() for _ in range(QUEUE)]
    for connection in connections:
        connection.sendall(server.request(embeddings("a star")))
    within_seconds(5, lambda: server.metric("clip_inputs_accepted") == QUEUE)
    for connection in connections:
        connection.close()
    within_seconds(5, lambda: server.metric("clip_inputs_accepted") == 0)
    assert server.metric("clip_inputs_waiting") == 0
    assert server.embed("a star").status_code == 200
    assert [line["status"] for line in server.log if line["event"] == "request"].count(499) == QUEUE


@pytest.mark.parametrize("headers", [["Content-Length: 100001"], ["Content-Length: 99999999999"]])
def test_a_body_that_is_announced_as_too_large(server, headers):
    answer = server.say(server.request(b"", *headers, "Expect: 100-continue"))
    assert status(answer) == 413
    assert error(answer)["message"] == "The body has more than 100000 bytes; send less in each request."


def test_a_body_that_becomes_too_large(server):
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    answer = server.say(server.request(b"", "Transfer-Encoding: chunked"), *[chunk] * 4, b"0\r\n\r\n")
    assert status(answer) == 413
    assert server.metric("clip_body_bytes") == 0


def test_bodies_that_are_too_large_together(server):
    connections = [server.connect() for _ in range(3)]
    for connection in connections:
        connection.sendall(server.request(b"a" * (BODY - 1), f"Content-Length: {BODY}"))
    within_seconds(1.8, lambda: server.metric("clip_body_bytes") == 3 * (BODY - 1))
    answer = server.embed("a star")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("The server holds as many bytes of requests as it may")
    for connection in connections:
        connection.close()
    within_seconds(5, lambda: server.embed("a star").status_code == 200)


def test_bodies_that_do_not_end(server):
    answer = server.say(server.request(b"{", "Content-Length: 10"))
    assert status(answer) == 408
    assert error(answer)["message"] == "The body did not end within 2 seconds."


@pytest.mark.parametrize("pieces", [[], [b"POST /v1/embe"], [b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"]])
def test_headers_that_do_not_end(server, pieces):
    answer = server.say(*pieces)
    assert status(answer) == 408
    assert error(answer) == "The headers did not end within 0.4 seconds."


def test_headers_that_do_not_end_behind_a_request(server):
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(whole)
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(1 << 16)
        connection.sendall(whole[:20])
        assert status(b"".join(iter(lambda: connection.recv(1 << 16), b""))) == 408


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
)
def test_what_is_not_http(server, request_):
    answer = server.say(request_)
    assert status(answer) == 400
    assert error(answer) == "The request is not valid HTTP/1.1."


def test_a_body_whose_length_is_stated_in_two_ways(server):
    hidden = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = server.say(server.request(b"0\r\n\r\n" + hidden, "Content-Length: 5", "Transfer-Encoding: chunked"))
    assert (status(answer), answer.count(b"HTTP/1.1")) == (400, 1)
    assert error(answer)["message"] == "The request has both Content-Length and Transfer-Encoding; send one of them."


def test_what_watches_over_a_server_need_not_name_it(server):
    assert status(server.say(b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    assert status(server.say(b"GET /healthz HTTP/1.0\r\nHost: example.org\r\n\r\n")) == 403


def test_more_connections_than_there_may_be(server):
    connections = [server.connect() for _ in range(CONNECTIONS)]
    answer = server.say()
    assert status(answer) == 503
    assert b"retry-after: 1\r\n" in answer.lower()
    for connection in connections:
        connection.close()
    within_seconds(5, lambda: server.client.get("/healthz").status_code == 200)


def test_a_client_that_reads_nothing_loses_its_connection(server):
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # The answers are more than the system keeps.
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)
        within_seconds(20, lambda: server.metric("clip_connections") == 1)  # of the question itself


def test_a_server_without_an_index(server):
    answer = server.client.post("/search", json={"text": "a star"})
    assert answer.status_code == 404
    assert answer.json()["error"] == "This server has no index; it is given one by clip serve --index."


def test_requests_that_are_there_are_answered_before_the_end(tmp_path):
    with serving_slowly(tmp_path, 0.5) as server, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.embed, text) for text in ("a star", "a circle", "a red star")]
        within_seconds(5, lambda: server.metric("clip_inputs_accepted") == 3)
        server.process.send_signal(signal.SIGTERM)
        assert [each.result().status_code for each in asked] == [200, 200, 200]
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            server.embed("a star")
    assert server.log[-1]["event"] == "ended"
    assert {line["level"] for line in server.log} == {"info"}
