"""`clip web` as a process: it answers, refuses what strangers try, and ends without a trace."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from clip import samples
from clip.command.web import run
from clip_core.errors import ClipError
from clip_core.installation import requirement
from tests.clip.running import assert_refused
from tests.web import Web, file, serving_page

CIRCLE = samples.pictures()["a large solid red circle"].read_bytes()
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
QUESTION = ("", "red circle\nblue circle", "{}", "shapes", "numpy")  # but for its picture


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Iterator[Web]:
    with serving_page(tmp_path_factory.mktemp("web"), "--backend", "numpy") as found:
        yield found


def test_a_picture_is_classified(web):
    label, table = web.ask("classify", web.upload(CIRCLE), *QUESTION)
    assert label["label"] == "red circle"
    assert [row[0] for row in table["data"]] == ["red circle", "blue circle"]
    assert float(table["data"][0][1]) == pytest.approx(label["confidences"][0]["confidence"], abs=1e-6)


def test_a_terminal_shows_that_the_page_is_being_made(monkeypatch):
    def failing(answers: object) -> None:
        raise ClipError("No further.")

    shown = io.StringIO()
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("clip.command.web.errors", Console(file=shown, force_terminal=True))
    monkeypatch.setattr("clip.web.page.page", failing)
    with pytest.raises(ClipError, match=r"^No further\.$"):
        run(port=0)
    assert "Making the page" in shown.getvalue()


@pytest.mark.parametrize(
    ("picture", "question", "sentence"),
    [
        (None, QUESTION, "There is no picture; upload or paste one, or give its address."),
        (None, ("http://localhost:1/a.png", *QUESTION[1:]), "The address is not one of the public internet; upload"),
        (CIRCLE, ("", "a\n" * 10_000, *QUESTION[2:]), "There are 10000 lines; write at most 1000, one category"),
        (CIRCLE, ("", "<img src=x>\n<img src=x>", *QUESTION[2:]), "&lt;img src=x&gt;"),
        (CIRCLE, ("", ["a"], *QUESTION[2:]), "A field for a text was given something else; write a text."),
        (CIRCLE, ("", "a", "{}" * 600, *QUESTION[3:]), "A text has 1200 characters; write at most 1000."),
        (SVG, QUESTION, "is an SVG drawing, which is not read here; save it as PNG or JPEG."),
        (b"\x89PNG\r\n\x1a\n", QUESTION, "The picture given as bytes"),
    ],
)
def test_faults_are_sentences(web, picture, question, sentence):
    given = None if picture is None else web.upload(picture)
    answer = web.ask("classify", given, *question)
    assert sentence in answer
    assert str(web.folder) not in answer


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "{folder}/../../../../../../../../etc/passwd",
        "\\\\server\\share\\a.png",
        "http://169.254.169.254/latest/meta-data",
        "https://huggingface.co/a.png",
        "data:image/png;base64,AAAA",
        1,
        {},
    ],
)
def test_files_that_were_not_uploaded_are_refused(web, path):
    (folder,) = web.folder.iterdir()
    path = path.replace("{folder}", str(folder)) if isinstance(path, str) else path
    sentence = "The question names a file that was not uploaded to this page."
    assert web.ask("classify", file(path), *QUESTION) == sentence
    assert web.ask("similarity", [file(path)], "a\nb", "shapes", "numpy") == sentence
    question = {"data": [file(path), *QUESTION], "fn_index": 0, "session_hash": "a"}
    assert web.client.post("/gradio_api/queue/join", json=question).status_code == 403
    if isinstance(path, str):
        assert web.client.get(f"/gradio_api/file={path}").status_code in (403, 404)  # the latter of what is no path


def test_gradio_refuses_such_files_as_well(web):
    """By a name that a symbolic link leads out of the folder with, which the guard does not follow."""
    (folder,) = web.folder.iterdir()
    (folder / "link.png").symlink_to(samples.pictures()["a large solid red circle"])
    assert web.ask("classify", file(str(folder / "link.png")), *QUESTION) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("POST", "/gradio_api/run/classify"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/startup-events"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/login_check"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(web, method, path):
    answer = web.client.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"error": "There is nothing at this address."})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "example.org"}, 403),
        ({"host": "example.org", "x-forwarded-host": "example.org", "origin": "https://example.org"}, 403),
        ({"x-forwarded-host": "example.org", "origin": "https://example.org"}, 200),  # a proxy's
        ({"x-forwarded-host": "example.org", "origin": "https://example.com"}, 403),
    ],
)
def test_other_sites_are_refused(web, headers, status):
    question = {"data": [None, *QUESTION]}
    assert web.client.post("/gradio_api/call/classify", json=question, headers=headers).status_code == status


def test_uploads_have_limits(web):
    large = web.client.post("/gradio_api/upload", files={"files": ("a.png", bytes((20 << 20) + 1))})
    assert large.status_code == 413
    larger = web.client.post("/gradio_api/upload", content=iter([bytes(1 << 20)] * 65))
    assert larger.status_code == 413
    assert larger.json() == {"error": "The body has more than 67108864 bytes; send less in each request."}
    question = {"data": [None, "", "a" * (1 << 20), *QUESTION[2:]]}
    assert web.client.post("/gradio_api/call/classify", json=question).status_code == 413
    deep = web.client.post("/gradio_api/call/classify", content=b"[" * 100_000)
    assert (deep.status_code, deep.json()) == (400, {"error": "The question is not JSON."})


def test_drawings_that_run_scripts_are_not_shown(web):
    path = web.upload(SVG, "drawing.svg")["path"]
    answer = web.client.get(f"/gradio_api/file={path}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in web.client.get("/").headers["content-security-policy"]


def test_questions_wait_for_their_turn(web):
    picture = web.upload(CIRCLE)
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda _: web.ask("classify", picture, *QUESTION), range(48)))
    assert {answer[0]["label"] for answer in answers} == {"red circle"}


def test_it_ends_without_a_trace(tmp_path):
    with serving_page(tmp_path, "--backend", "numpy") as web:
        web.upload(CIRCLE)
        with web.client.stream("GET", "/gradio_api/heartbeat/abc") as open_page:  # which would go on for ever
            assert next(open_page.iter_lines()) == "data: ALIVE"
            assert [path.name[:9] for path in web.folder.iterdir()] == ["clip-web-"]
            assert web.end() == 0
    assert list(web.folder.iterdir()) == []
    assert list((tmp_path / "work").iterdir()) == []
    assert web.errors.read_text() == ""


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("web", "--port", port), f"Port {port} of 127.0.0.1 is in use by another program")


def test_without_gradio(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_refused(run("web"), f"The page needs Gradio, which is not installed; run: pip install {requirement('web')}.")


def test_an_index_that_is_none(run, tmp_path):
    assert_refused(run("web", "--port", 0, "--index", tmp_path), f"{tmp_path} is no index")
