"""`clip serve` refuses in one sentence what it cannot serve, and clients without its token."""

from __future__ import annotations

import socket
from pathlib import Path

import openai
import pytest
from starlette.datastructures import Headers

from clip.serving.access import Access, read_token
from clip.serving.refusals import Refusal
from clip_core.errors import ClipError
from tests.clip.running import assert_refused, ended, process
from tests.server.running import serving

TOKEN = "4f9d3c8e21b07a65"


def token_file(folder: Path, content: str = f"{TOKEN}\n", mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("serve", "--port", port), f"Port {port} of 127.0.0.1 is in use by another program")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_could_ask_without_a_token(run, host):
    found = run("serve", "--host", host, "--port", 0)
    assert_refused(found, f"--host {host} can be reached by other machines", "--token-file")


def test_hosts_that_are_none(run):
    assert_refused(run("serve", "--host", "no.such.host.invalid"), "--host no.such.host.invalid is no name or address")


def test_an_address_of_another_machine(run, tmp_path):
    found = run("serve", "--host", "192.0.2.1", "--port", 0, "--token-file", token_file(tmp_path))
    assert_refused(found, "Port 0 of 192.0.2.1 cannot be used: ")


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (TOKEN, 0o644, "every user may read or write it; run: chmod 600 "),
        (TOKEN, 0o602, "every user may read or write it"),
        ("", 0o600, "holds no token; write one line of 16 or more"),
        ("short", 0o600, "holds no token"),
        (f"{TOKEN}\n{TOKEN}", 0o600, "holds no token"),
        (f"{TOKEN}é", 0o600, "holds no token"),
        ("a" * 5000, 0o600, "has 5000 bytes; at most 4096 are read here"),
    ],
)
def test_token_files_that_are_refused(tmp_path, content, mode, sentence):
    with pytest.raises(ClipError) as fault:
        read_token(token_file(tmp_path, content, mode))
    assert sentence in str(fault.value)
    assert TOKEN not in str(fault.value)


@pytest.mark.parametrize(
    "given", [{}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}, {"authorization": f"Bearer {TOKEN}0"}]
)
def test_requests_without_the_token(given):
    access = Access(TOKEN.encode())
    with pytest.raises(Refusal) as fault:
        access.check("/v1/models", Headers(given))
    assert fault.value.status == 401
    access.check("/healthz", Headers(given))
    access.check("/v1/models", Headers({"authorization": f"bearer {TOKEN}", "host": "example.org"}))


def test_a_server_with_a_token(tmp_path):
    options = ["--backend", "numpy", "--host", "0.0.0.0", "--token-file", token_file(tmp_path)]
    with serving(tmp_path, *options) as server:
        base = f"{server.address}/v1"
        with openai.OpenAI(base_url=base, api_key=TOKEN, max_retries=0) as client:
            assert client.models.retrieve("shapes").id == "shapes"
        with openai.OpenAI(base_url=base, api_key="another", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="has another token than this server's") as fault:
                client.embeddings.create(model="shapes", input="a star")
            assert fault.value.code == "invalid_api_key"
        answers = {path: server.client.get(path).status_code for path in ("/metrics", "/healthz", "/readyz")}
        assert answers == {"/metrics": 401, "/healthz": 200, "/readyz": 200}
        assert TOKEN not in server.log_file.read_text()


def test_a_model_that_cannot_be_loaded(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"no model")
    found = ended(process("serve", "--model", tmp_path / "model.h5", "--backend", "numpy", "--port", 0))
    assert found.code == 1
    first, last = found.err.splitlines()
    assert '"listening"' in first
    assert last.startswith(f"clip: {tmp_path / 'model.h5'}: the file is text")
