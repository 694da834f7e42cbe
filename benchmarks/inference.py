"""Speed and memory of encoding pictures and texts in every backend and runtime, side by side with open_clip's model.

    python benchmarks/inference.py --model ViT-B/32 --batches 64,16,1
    python benchmarks/inference.py --contenders open_clip,torch,onnxruntime --rounds 5 --json figures.json

Every contender runs in a process of its own with the same weights, inputs and threads, alternating in rounds so that a
busy machine is unfair to none. Reported are pictures and texts per second, by the best and by the median of the timed
calls of all rounds, their ratios to open_clip, how far the first embeddings of length 1 are from those of open_clip,
which shows that all do the same work, and the peak of resident memory up to then. What is compiled is compiled anew in
each round, in time that does not count. Nothing is downloaded: the weights are random.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from clip_core.initialize import random_weights
from clip_core.models import MODELS
from clip_core.similarity import normalize

OF_BACKENDS = {
    "torch": "torch",
    "torch compiled": "torch",
    "paddle": "paddle",
    "nnabla": "nnabla",
    "numpy": "numpy",
    "onnxruntime": "onnx",
    "openvino": "openvino",
}
CONTENDERS = ("open_clip", "transformers", *OF_BACKENDS, "onnxruntime int8", "openvino int8", "torchscript")
PACKAGES = {"transformers": "transformers", "nnabla": "nnabla", "openvino": "openvino", "openvino int8": "nncf"}
IN_BF16 = ("open_clip", "transformers", "torch", "torch compiled")
KINDS = ("image", "text")

Encode = Callable[[np.ndarray], np.ndarray]  # pixels or tokens -> features [n, d]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.add_argument("--batches", default="8", help="numbers of pictures or texts of a call, with commas between")
    parser.add_argument("--kinds", default=",".join(KINDS), help="image, text or both")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.set_defaults(rounds=3, calls=5, threads=harness.CORES)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        names = CONTENDERS if arguments.precision == "fp32" else IN_BF16
        harness.compare(__file__, names, "inputs", arguments, PACKAGES)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each kind of input and size of batch: seconds of each call, the first embedding, and the peak of memory."""
    sizes = [int(size) for size in arguments.batches.split(",")]
    inputs = dict(zip(KINDS, harness.batch(arguments.model, max(sizes))))
    once: dict[str, float] = {}
    encoders = dict(zip(KINDS, make(arguments, inputs, once)))
    found: dict[str, Any] = {}
    for kind in arguments.kinds.split(","):
        for size in sizes:
            batch = inputs[kind][:size]
            first = normalize(encoders[kind](batch))[0]
            found[f"{kind}, batch {size}"] = {
                # TorchScript is compiled in its second call.
                "seconds": harness.seconds_of(lambda: encoders[kind](batch), arguments.calls),  # noqa: B023
                "amount": size,
                "first": first.tolist(),
                "peak_memory_mib": harness.peak_memory_mib(),
            } | once
    return found


def make(arguments: argparse.Namespace, inputs: dict[str, np.ndarray], once: dict[str, float]) -> tuple[Encode, Encode]:
    """What a contender makes features of pictures and of texts with.

    Args:
        once: gets the seconds of what is done once, before the timed calls.
    """
    name, model, architecture = arguments.contender, arguments.model, MODELS[arguments.model].architecture
    if name in (*IN_BF16, "torchscript"):
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if name == "open_clip":
        peer = harness.open_clip_model(model, random_weights(architecture, 0), arguments.precision)
        return harness.encoder(peer.encode_image, arguments.precision), harness.encoder(peer.encode_text)
    if name == "transformers":
        peer = harness.transformers_model(model, random_weights(architecture, 0), arguments.precision)
        image, text = harness.transformers_encoders(peer)
        return harness.encoder(image, arguments.precision), harness.encoder(text)
    if name in OF_BACKENDS:
        backend = importlib.import_module("backends").get(OF_BACKENDS[name])
        weights = random_weights(architecture, 0)
        clip = backend.CLIP(architecture, weights, device="cpu", precision=arguments.precision)
        if name == "torch compiled":
            importlib.import_module("torch._inductor.config").force_disable_caches = True
            once["compilation_seconds"] = harness.seconds_of(lambda: backend.compile(clip), calls=1, before=0)[0]
        return clip.embed_image, clip.embed_text
    with tempfile.TemporaryDirectory() as folder:
        return make_exported(name, model, inputs, Path(folder))


def make_exported(name: str, model: str, inputs: dict[str, np.ndarray], folder: Path) -> tuple[Encode, Encode]:
    """Files as `clip export` writes them; int8 is calibrated on the very inputs, which is enough to tell its speed."""
    from exporters.onnx import storage
    from exporters.onnx.graph import DEFAULT_OPSET
    from exporters.onnx.model import write

    architecture = MODELS[model].architecture
    weights = random_weights(architecture, 0)
    sessions = []
    for kind in KINDS:
        graph, path = folder / f"exact-{kind}.onnx", folder / f"{kind}.onnx"
        if name == "torchscript":
            from backends.torch import CLIP
            from backends.torch.exported import Session, save

            path = folder / f"{kind}.pt"
            save(CLIP(architecture, weights, device="cpu"), kind, path, inputs, {})
        else:
            storage.save(write(architecture, weights, kind), graph, DEFAULT_OPSET, {})
            batches = [{kind: inputs[kind]}]
            if name == "openvino int8":
                from backends.openvino.session import Session
                from exporters.openvino.storage import save

                path = folder / f"{kind}.xml"
                save(graph, path, {}, batches)
            else:
                from backends.onnx.session import Session
                from exporters.onnx.quantization import quantize

                quantize(graph, path, batches)
        sessions.append(Session(path))
    image, text = sessions
    return (
        lambda pixels: image({"image": pixels})["image_features"],
        lambda tokens: text({"text": tokens})["text_features"],
    )


if __name__ == "__main__":
    main()
