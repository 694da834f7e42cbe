"""Serve an exported model over HTTP: a picture and labels in, probabilities out. No framework is imported.

    pip install -e '.[onnx]'
    clip export shapes --image --text -o exported
    python examples/deploy/onnxruntime_server.py exported --port 8000
    curl --data-binary @picture.png 'http://127.0.0.1:8000/classify?label=a+red+circle&label=a+blue+circle'

The exported files say how pictures and texts become the inputs of their graphs.
"""

from __future__ import annotations

import argparse
import json
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime

from clip_core import similarity
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.pixels import Pixels
from clip_core.preprocess import preprocess
from clip_core.text.bpe import openai
from clip_core.text.loading import tokenizer_from

MAX_PICTURE_BYTES = 32 << 20
MAX_LABELS = 1000


class Classifier:
    """The two towers of an exported folder; the features of labels are computed once."""

    def __init__(self, folder: Path) -> None:
        for name in ("image.onnx", "text.onnx"):
            if not (folder / name).is_file():
                raise ClipError(f"{folder} has no {name}; write it with clip export --image --text.")
        self.image, self.text = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in ("image.onnx", "text.onnx")
        )
        told, of_text = (session.get_modelmeta().custom_metadata_map for session in (self.image, self.text))
        if told != of_text:
            raise ClipError(f"The files in {folder} are of two exports; write both with clip export --image --text.")
        metadata = {key.removeprefix("triclip."): json.loads(value) for key, value in told.items()}
        self.logit_scale, self.logit_bias = metadata["logit_scale"], metadata.get("logit_bias")
        self.pictures, self.texts = metadata["preprocessing"], metadata["tokenizer"]
        if self.pictures["in_graph"]:
            raise ClipError(f"{folder} was exported with --preprocessing, which this server does; export without it.")
        definition = self.texts["definition"]
        self.tokenizer = openai() if definition is None else tokenizer_from(definition)
        self.features = lru_cache(maxsize=100)(self._features)

    def _features(self, labels: tuple[str, ...]) -> np.ndarray:
        tokens = self.tokenizer.tokenize(labels, self.texts["context_length"])
        return self.text.run(None, {"text": tokens})[0]

    def __call__(self, picture: bytes, labels: tuple[str, ...]) -> dict[str, float]:
        """Label -> probability, of the bytes of a picture file.

        Raises:
            ClipError: the picture or a label cannot be used.
        """
        how = self.pictures
        wanted = Pixels(tuple(how["mean"]), tuple(how["deviation"]), how["interpolation"], how["resize"])
        pixels = preprocess(open_image(picture), how["resolution"], wanted)[None]
        image = self.image.run(None, {"image": pixels})[0]
        logits = similarity.logits(image, self.features(labels), self.logit_scale)
        if self.logit_bias is None:
            found = similarity.probabilities(logits)
        else:  # each label is judged by itself
            found = similarity.pair_probabilities(logits + self.logit_bias)
        return dict(zip(labels, found[0].tolist()))


class Handler(BaseHTTPRequestHandler):
    """``POST /classify?label=...&label=...`` with the picture as the body."""

    timeout = 30  # seconds without a byte, after which a client that sends nothing loses its connection
    classifier: Classifier

    def do_GET(self) -> None:
        self.answer(405, {"error": "Post a picture to /classify?label=...&label=...; nothing is there to get."})

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        labels = tuple(dict.fromkeys(parse_qs(address.query).get("label", [])))
        length = self.headers.get("Content-Length", "")
        if address.path != "/classify":
            self.answer(404, {"error": f"There is nothing at {address.path}; post to /classify."})
        elif not 0 < len(labels) <= MAX_LABELS:
            self.answer(400, {"error": f"There are {len(labels)} labels; give 1 to {MAX_LABELS} as label=..."})
        elif not length.isdecimal():
            what = f"Content-Length {length!r}" if length else "no Content-Length"
            self.answer(411, {"error": f"The request has {what}; say there how many bytes the picture has."})
        elif int(length) > MAX_PICTURE_BYTES:
            self.answer(413, {"error": f"The picture has {length} bytes, and at most {MAX_PICTURE_BYTES} are taken."})
        else:
            try:
                self.answer(200, self.classifier(self.rfile.read(int(length)), labels))
            except ClipError as error:
                self.answer(400, {"error": str(error)})

    def answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with image.onnx and text.onnx, as clip export writes it")
    parser.add_argument("--port", type=int, default=8000, help="on this machine only; 0 takes a free one")
    options = parser.parse_args()
    try:
        Handler.classifier = Classifier(options.folder)
    except ClipError as error:
        parser.exit(1, f"{error}\n")
    with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
        print(f"serving {options.folder} at http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
