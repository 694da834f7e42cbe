"""Time of `clip --help` and of `clip classify` of one picture as whole processes, beside loading and one forward pass.

    python benchmarks/startup.py --model ViT-B/32 --backend torch

The peer is a script that imports this package, loads the same file, and encodes the same picture and labels once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

from clip.samples import pictures
from clip_core.models import MODELS

PEER = """
import sys, clip
from PIL import Image
_, backend, path, picture = sys.argv
model, preprocess = clip.load(path, backend=backend)
model.embed_image(preprocess.pixels(Image.open(picture))[None])
model.embed_text(model.tokenize(["circle", "square"]))
"""


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.add_argument("--backend", default="torch")
    parser.set_defaults(calls=2)
    arguments = parser.parse_args()
    if not arguments.contender:
        harness.compare(__file__, ["loading", "clip classify", "clip --help"], "runs", arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        path, picture = Path(folder) / "model.safetensors", next(iter(pictures().values()))
        harness.save_model(arguments.model, path)
        options = ["--model", path, "--backend", arguments.backend, "--labels", "circle,square"]
        command = {
            "loading": ["-c", PEER, arguments.backend, path, picture],
            "clip classify": ["-m", "clip", "classify", picture, *options],
            "clip --help": ["-m", "clip", "--help"],
        }[arguments.contender]

        def run() -> None:
            subprocess.run([sys.executable, *command], check=True, capture_output=True)

        print(json.dumps({arguments.model: {"seconds": harness.seconds_of(run, arguments.calls), "amount": 1}}))


if __name__ == "__main__":
    main()
