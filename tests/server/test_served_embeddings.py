"""`clip serve` as clients see it: OpenAI's own package, and any other over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest

from clip import samples
from clip.api import LoadedModel, open_model
from clip.embedding import embed_into
from clip.search import Index
from clip.zero_shot import Classifier
from clip_core.image import open_image
from clip_core.similarity import normalize
from tests.server.running import Running, serving

TEXTS = ["a red circle", "two small blue squares left of a green star", "a star"]
LABELS = ["a red circle", "a blue circle", "a red star"]
CIRCLE = samples.pictures()["a large solid red circle"]
URI = f"data:image/png;base64,{base64.b64encode(CIRCLE.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    embed_into(folder / "embeddings", list(map(str, samples.pictures().values())), backend="numpy", workers=0)
    return Index.build(folder / "embeddings", folder / "index.lance", backend="numpy")


@pytest.fixture(scope="module")
def server(index, tmp_path_factory) -> Iterator[Running]:
    options = ["--backend", "numpy", "--index", index.store.folder]
    with serving(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none is needed", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return open_model("shapes", backend="numpy")


def text_features(loaded: LoadedModel, *texts: str) -> np.ndarray:
    model = loaded.model
    return np.concatenate([model.embed_text(model.tokenizer.tokenize(text)) for text in texts])


def picture_features(loaded: LoadedModel, *files: Path) -> np.ndarray:
    pixels = [loaded.preprocess.pixels(open_image(file)) for file in files]
    return np.concatenate([loaded.model.embed_image(each[None]) for each in pixels])


@pytest.mark.parametrize("form", ["float", "base64"])
def test_texts_by_the_client_of_openai(client, loaded, form):
    as_they_are = {"normalize": False}
    answer = client.embeddings.create(model="shapes", input=TEXTS, encoding_format=form, extra_body=as_they_are)
    if form == "base64":  # asked for by name, it is not decoded by the client
        found = [np.frombuffer(base64.b64decode(each.embedding), "<f4") for each in answer.data]
    else:
        found = [each.embedding for each in answer.data]
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert np.array(found) == pytest.approx(text_features(loaded, *TEXTS), abs=1e-5)
    assert answer.model == "shapes"
    tokens = sum(len(loaded.model.tokenizer.encode(text)) + 2 for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_what_the_client_asks_for_by_default(client, loaded):
    answer = client.embeddings.create(model="shapes", input=TEXTS[0], user="somebody", dimensions=128)
    expected = normalize(text_features(loaded, TEXTS[0]))[0]
    assert np.array(answer.data[0].embedding) == pytest.approx(expected, abs=1e-6)


def test_pictures_as_uris_and_as_base64(client, loaded):
    files = list(samples.pictures().values())[:2]
    coded = [base64.b64encode(file.read_bytes()).decode() for file in files]
    given = [f"data:image/png;base64,{coded[0]}", coded[1]]
    answer = client.embeddings.create(model="shapes", input=given, extra_body={"modality": "image"})
    found = np.array([each.embedding for each in answer.data])
    assert found == pytest.approx(normalize(picture_features(loaded, *files)), abs=1e-6)
    assert answer.usage.total_tokens == 0


def test_models(client):
    assert [model.id for model in client.models.list()] == ["shapes"]
    assert client.models.retrieve("shapes").owned_by == "triclip"
    with pytest.raises(openai.NotFoundError, match="of this server is shapes, and not ViT-B/32") as fault:
        client.embeddings.create(model="ViT-B/32", input="a star")
    assert fault.value.code == "model_not_found"
    assert fault.value.param == "model"


def test_answers_do_not_depend_on_other_clients(server, loaded):
    expected = normalize(text_features(loaded, *TEXTS))

    def ask(number: int) -> float:
        places = [(number + place) % 3 for place in range(1 + number % 3)]
        data = server.embed(*(TEXTS[place] for place in places)).json()["data"]
        return float(np.abs(np.array([each["embedding"] for each in data]) - expected[places]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(40))) < 1e-5


def test_labels_of_an_upload_and_of_json(server, loaded):
    expected = Classifier(loaded, LABELS, "{}").score(loaded.preprocess.pixels(open_image(CIRCLE))[None])
    form = server.client.post(
        "/classify",
        data={"labels": LABELS},
        files={"image": ("any name", CIRCLE.read_bytes(), "image/png")},
    )
    for answer in (form, server.client.post("/classify", json={"image": URI, "labels": LABELS, "template": "{}"})):
        found = answer.json()
        assert list(found["probabilities"].values()) == pytest.approx(expected.probabilities[0], abs=1e-5)
        assert list(found["logits"].values()) == pytest.approx(expected.logits[0], abs=1e-3)
        assert list(found["logits"]) == LABELS
    other = server.client.post("/classify", json={"image": URI, "labels": LABELS, "template": "two small {}"}).json()
    assert other["logits"] != found["logits"]


@pytest.mark.parametrize(
    ("asked", "searched", "best"),
    [
        ({"text": "a red circle", "top": 3}, {"text": "a red circle", "count": 3}, "a-large-solid-red-circle.png"),
        ({"image": URI}, {"image": CIRCLE}, "a-large-solid-red-circle.png"),
        ({"text": "blue", "image": URI}, {"text": "blue", "image": CIRCLE}, "a-large-solid-blue-circle.png"),
    ],
)
def test_search(server, index, asked, searched, best):
    found = server.client.post("/search", json=asked).json()["results"]
    expected = index.search(**searched)
    assert [{**hit, "score": pytest.approx(hit["score"], abs=1e-5)} for hit in found] == [
        {"score": hit.score, **hit.row} for hit in expected
    ]
    assert Path(found[0]["path"]).name == best


def test_search_by_an_upload(server):
    form = {"data": {"top": "1"}, "files": {"image": CIRCLE.read_bytes()}}
    (found,) = server.client.post("/search", **form).json()["results"]
    assert Path(found["path"]) == CIRCLE
    assert found["score"] == pytest.approx(1, abs=1e-3)


def test_the_kind_of_a_body_may_be_in_capitals(server):
    asked = server.client.build_request(
        "POST", "/search", data={"text": "a star"}, files={"image": CIRCLE.read_bytes()}
    )
    asked.headers["Content-Type"] = asked.headers["Content-Type"].replace("multipart/form", "Multipart/Form")
    assert len(server.client.send(asked).json()["results"]) == 8


def declaring(width: int, height: int) -> str:
    """The header of a picture without pixels, in base64."""
    return base64.b64encode(f"P6 {width} {height} 255\n".encode()).decode()


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v1/embeddings", b"", 400, "The body is not a JSON object with the keys input, model, modality, "),
        ("/v1/embeddings", b'{"model": "shapes", "input": "a"', 400, "The body is not a JSON object"),
        ("/v1/embeddings", b"[" * 100_000, 400, "The body is not a JSON object"),
        ("/v1/embeddings", b'{"model": "shapes", "input": "\xff"}', 400, "The body is not a JSON object"),
        ("/v1/embeddings", [], 400, "it is another value."),
        ("/v1/embeddings", {"model": "shapes"}, 400, "The body has no 'input'."),
        ("/v1/embeddings", {"input": "a star"}, 400, "The body has no 'model'."),
        ("/v1/embeddings", {"model": "shapes", "input": "a", "size": 1}, 400, "There is no key 'size'; the keys are "),
        ("/v1/embeddings", {"model": "shapes", "input": []}, 400, "'input' cannot be used: give a text or a list of"),
        ("/v1/embeddings", {"model": "shapes", "input": [320, 736]}, 400, "it holds tokens, whose numbers depend on"),
        ("/v1/embeddings", {"model": "shapes", "input": [[320], [9]]}, 400, "it holds tokens, whose numbers depend on"),
        ("/v1/embeddings", {"model": "shapes", "input": ["a", None]}, 400, "input 1 is not a text."),
        (
            "/v1/embeddings",
            {"model": "shapes", "input": ["a", "b " * 99]},
            400,
            "text 1 cannot be used: the text is",
        ),
        ("/v1/embeddings", {"model": "shapes", "input": "\ud800"}, 400, "The body is not a JSON object"),
        ("/v1/embeddings", {"model": "shapes", "input": "<|endoftext|>"}, 400, "the text has <|endoftext|> in it"),
        (
            "/v1/embeddings",
            {"model": "shapes", "input": ["a"] * 1025},
            413,
            "and at most 1024 are taken; send",
        ),
        ("/v1/embeddings", {"model": "shapes", "input": "a", "dimensions": 8}, 400, "The model gives 128 dimensions"),
        ("/v1/embeddings", {"model": "shapes", "input": "a", "encoding_format": "hex"}, 400, "'float' or 'base64'."),
        ("/v1/embeddings", {"model": "shapes", "input": "a", "modality": "audio"}, 400, "'text' or 'image'."),
        ("/classify", {"image": "AAAA", "labels": ["a"]}, 400, "the picture: The picture given as bytes is not a "),
        ("/classify", {"image": "", "labels": ["a"]}, 400, "the picture: The picture given as bytes is empty"),
        ("/classify", {"image": "/etc/passwd", "labels": ["a"]}, 400, "the picture: "),
        ("/classify", {"image": "../model.h5", "labels": ["a"]}, 400, "the picture: it is not base64"),
        ("/classify", {"image": "data:image/png;base64", "labels": ["a"]}, 400, "has no comma"),
        ("/classify", {"image": "data:,%3Csvg", "labels": ["a"]}, 400, "is an SVG drawing, which is not read"),
        (
            "/classify",
            {"image": "https://example.org/a.png", "labels": ["a"]},
            400,
            "this server fetches none",
        ),
        ("/classify", {"image": "file:///etc/passwd", "labels": ["a"]}, 400, "it is an address"),
        (
            "/classify",
            {"image": declaring(6000, 6000), "labels": ["a"]},
            400,
            "6000 x 6000 pixels; at most 33554432",
        ),
        ("/classify", {"image": declaring(60000, 60000), "labels": ["a"]}, 400, "60000 x 60000 pixels"),
        ("/classify", {"image": URI, "labels": []}, 400, "'labels' cannot be used"),
        ("/classify", {"image": URI, "labels": ["a", "a"]}, 400, "The label 'a' occurs more than once"),
        ("/classify", {"image": URI, "labels": ["a"], "template": "x"}, 400, "has 0 places for the label"),
        ("/classify", {"image": URI, "labels": list(map(str, range(1001)))}, 400, "'labels' cannot be used"),
        ("/search", {}, 400, "There is nothing to search for; give a text, an image, or both."),
        ("/search", {"text": "a star", "top": 0}, 400, "'top' cannot be used"),
        (
            "/search",
            {"text": "a star", "where": "1 = 1"},
            400,
            "There is no key 'where'; the keys are text",
        ),
        ("/search", {"text": "a " * 99}, 400, "the text is too long"),
        ("/v1/other", {}, 404, "There is nothing at this path; /openapi.json lists all"),
        ("/../../etc/passwd", {}, 404, "There is nothing at this path"),
        ("/readyz", {}, 405, "This path is asked by another method"),
    ],
)
def test_what_is_refused(server, path, body, status, sentence):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.client.post(path, content=content)
    error = answer.json()["error"]
    message = error["message"] if path.startswith("/v1/") else error
    assert answer.status_code == status, message
    assert sentence in message
    assert message.endswith(".")
    assert "\n" not in message
    assert answer.headers["x-request-id"]


def test_forms_that_are_refused(server):
    for content, kind, sentence in (
        (b"no form", "multipart/form-data", "The form cannot be read: Missing boundary in multipart."),
        (b"--b\r\nno form", "multipart/form-data; boundary=b", "The form cannot be read"),
    ):
        answer = server.client.post("/classify", content=content, headers={"Content-Type": kind})
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text
    files = [("image", CIRCLE.read_bytes()), ("labels", b"a")]
    answer = server.client.post("/classify", files=files)
    assert answer.status_code == 400


def test_pages_of_other_sites_are_refused(server):
    for headers, sentence in (
        ({"Origin": "https://example.org"}, "The request comes from a web page of another site"),
        ({"Origin": "null"}, "The request comes from a web page of another site"),
        ({"Host": "example.org"}, "The request is for another host; without a token file this server answers to"),
        ({"Content-Encoding": "gzip"}, "The body is compressed"),
    ):
        answer = server.client.post("/classify", content=b"{}", headers=headers)
        assert sentence in answer.json()["error"]
        assert answer.status_code in (403, 415)
    own = {"Origin": "http://localhost:3000", "Host": "localhost"}
    assert server.client.get("/v1/models", headers=own).status_code == 200


def test_health_metrics_and_logs(server):
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.head("/readyz").status_code == 200
    secret = "a text that nobody else should see"
    server.client.post(f"/{secret}?{secret}", json={"model": secret, "input": secret})
    server.embed(secret + " " + 99 * "long ")
    server.embed("a star")
    metrics = server.client.get("/metrics").text
    assert 'clip_requests_total{route="/v1/embeddings",status="200"}' in metrics
    assert 'clip_model{backend="numpy",model="shapes"} 1.0' in metrics
    assert server.metric("clip_inputs_accepted") == server.metric("clip_inputs_waiting") == 0
    assert server.metric("clip_body_bytes") == 0
    assert (server.metric("clip_index_rows"), server.metric("clip_index_held_bytes")) == (8, 8 * 128 * 4)
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/v1/models", "/classify", "/healthz", "/readyz", "/metrics"} <= paths.keys()
    assert secret not in server.log_file.read_text()
    requests = [line for line in server.log if line["event"] == "request"]
    assert [line for line in server.log if line["level"] != "info"] == []
    assert {"id", "method", "route", "status", "seconds", "bytes", "inputs"} <= requests[-1].keys()
    assert [(line["route"], line["status"]) for line in requests if line["inputs"]][-1] == ("/v1/embeddings", 200)
