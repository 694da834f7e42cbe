"""The example server answers as the model does, without a framework, and refuses in a sentence."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import torch

from clip import samples
from clip.api import open_model
from clip.export import export
from clip.zero_shot import Classifier
from clip_core.image import open_image
from tests.siglip import siglip_folder

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "examples" / "deploy" / "onnxruntime_server.py"
CIRCLE = samples.pictures()["a large solid red circle"]
LABELS = ["a red circle", "a blue circle", "a red star"]
WITHOUT_FRAMEWORKS = """
import runpy, sys
for name in ("torch", "paddle", "nnabla", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served") / "exported"
    export("shapes", folder, parts=["image", "text"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_FRAMEWORKS, str(SERVER), str(folder), "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        line = server.stdout.readline()
        assert line.startswith(f"serving {folder} at http://127.0.0.1:")
        yield line.split()[-1]
        server.terminate()


def post(address: str, body: bytes | None) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_probabilities_are_those_of_the_model(address):
    status, found = post(f"{address}/classify?{urlencode({'label': LABELS}, doseq=True)}", CIRCLE.read_bytes())
    loaded = open_model("shapes", backend="numpy")
    pixels = loaded.preprocess.pixels(open_image(CIRCLE))[None]
    expected = Classifier(loaded, LABELS, "{}").score(pixels).probabilities[0]
    assert status == 200
    assert list(found) == LABELS
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert found["a red circle"] > 0.9


def test_each_label_of_siglip_has_a_probability_of_its_own(tmp_path):
    torch.manual_seed(0)
    folder, labels = siglip_folder(tmp_path / "folder"), ("red", "of a circle")
    export(folder, tmp_path / "exported", parts=["image", "text"])
    found = runpy.run_path(str(SERVER))["Classifier"](tmp_path / "exported")(CIRCLE.read_bytes(), labels)
    loaded = open_model(folder, backend="numpy")
    pixels = loaded.preprocess.pixels(open_image(CIRCLE))[None]
    expected = Classifier(loaded, labels, "{}").score(pixels).probabilities[0]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4)
    assert abs(sum(found.values()) - 1) > 0.01


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/classify?label=a", b"no picture", 400, "picture"),
        ("/classify?label=" + "+a" * 100, CIRCLE.read_bytes(), 400, "is too long for context length 77"),
        ("/classify", CIRCLE.read_bytes(), 400, "There are 0 labels; give 1 to 1000"),
        ("/other?label=a", b"", 404, "There is nothing at /other; post to /classify."),
        ("/", None, 405, "Post a picture to /classify?label="),
    ],
)
def test_what_it_refuses(address, path, body, status, sentence):
    found, answer = post(address + path, body)
    assert found == status
    assert sentence in answer["error"]


@pytest.mark.parametrize(
    ("length", "status", "sentence"),
    [
        (None, 411, "The request has no Content-Length; say there how many bytes the picture has."),
        ("ten", 411, "The request has Content-Length 'ten'; say there how many bytes the picture has."),
        ("99999999", 413, "The picture has 99999999 bytes, and at most 33554432 are taken."),
    ],
)
def test_lengths_that_it_refuses(address, length, status, sentence):
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest("POST", "/classify?label=a")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]) == (status, sentence)
    connection.close()


def test_folders_that_it_cannot_serve(tmp_path):
    export("shapes", tmp_path / "decoded", parts=["image", "text"], preprocessing=True)
    export("shapes", tmp_path / "mixed", parts=["image", "text"], precision="fp16")
    shutil.copy(tmp_path / "decoded" / "text.onnx", tmp_path / "mixed")
    for folder, sentence in (
        (tmp_path, f"{tmp_path} has no image.onnx; write it with clip export --image --text.\n"),
        (
            tmp_path / "decoded",
            f"{tmp_path / 'decoded'} was exported with --preprocessing, which this server does; export",
        ),
        (tmp_path / "mixed", f"The files in {tmp_path / 'mixed'} are of two exports; write both with clip export"),
    ):
        command = [sys.executable, str(SERVER), str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith(sentence)
