"""Speed and memory of encoding pictures and texts in every backend and runtime, side by side with open_clip's model.

    python benchmarks/inference.py --model ViT-B/32 --batch 8
    python benchmarks/inference.py --contenders open_clip,torch,onnxruntime --rounds 5 --json figures.json

Every contender runs in a process of its own with the same weights, inputs and threads, alternating in rounds so that a
busy machine is unfair to none. Reported are pictures and texts per second, by the best and by the median of the timed
calls of all rounds, their ratios to open_clip, peak resident memory, and how far embeddings of length 1 are from those
of open_clip, which shows that all do the same work. Nothing is downloaded: the weights are random.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import harness
import numpy as np

from clip_core.initialize import random_weights
from clip_core.models import MODELS
from clip_core.similarity import normalize

OF_BACKENDS = {
    "torch": "torch",
    "paddle": "paddle",
    "nnabla": "nnabla",
    "numpy": "numpy",
    "onnxruntime": "onnx",
    "openvino": "openvino",
}
CONTENDERS = ("open_clip", *OF_BACKENDS, "onnxruntime int8", "openvino int8", "torchscript")
KINDS = ("image", "text")

Encode = Callable[[np.ndarray], np.ndarray]  # pixels or tokens -> features [n, d]


def main() -> None:
    arguments = parse()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        compare(arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5, help="timed calls of each round, after two that are not")
    parser.add_argument("--rounds", type=int, default=3)
    return harness.parsed(parser, CONTENDERS)


def compare(arguments: argparse.Namespace) -> None:
    """Run every contender in turn, round by round, and print a table for pictures and one for texts."""
    names = arguments.contenders.split(",")
    options = {key: getattr(arguments, key) for key in ("model", "batch", "calls")}
    found = harness.in_rounds(__file__, names, arguments.rounds, arguments.threads, options)
    base = "open_clip" if "open_clip" in names else names[0]
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    for kind in KINDS:
        for name, rounds in found.items():
            seconds = [second for each in rounds for second in each[kind]["seconds"]]
            rows[name][kind] = {
                "best": arguments.batch / min(seconds),
                "median": arguments.batch / statistics.median(seconds),
                "difference": difference(rounds[0][kind], found[base][0][kind]),
            }
    for name, row in rows.items():
        row["peak_memory_mib"] = max(each["peak_memory_mib"] for each in found[name])
        for kind in KINDS:
            for figure in ("best", "median"):
                row[kind][f"ratio_of_{figure}"] = row[kind][figure] / rows[base][kind][figure]
    facts = harness.machine()
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.threads} threads, {facts['processor']}")
    for kind in KINDS:
        heads = (f"{kind}s/s best", "ratio", "median", "ratio", "difference", "peak MiB")
        print(f"{'contender':18}" + "".join(f"{head:>15}" for head in heads))
        for name, row in rows.items():
            own = row[kind]
            print(
                f"{name:18}{own['best']:15.1f}{own['ratio_of_best']:15.2f}{own['median']:15.1f}"
                f"{own['ratio_of_median']:15.2f}{own['difference']:15.1e}{row['peak_memory_mib']:15.0f}"
            )
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "contender")}
        arguments.json.write_text(json.dumps({"settings": settings, "machine": facts, "contenders": rows}, indent=2))


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of the first embeddings of two contenders."""
    return float(np.abs(np.subtract(found["first_embedding"], expected["first_embedding"])).max())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each call but the first two, the first embedding, and the peak memory of this process."""
    inputs = dict(zip(KINDS, harness.batch(arguments.model, arguments.batch)))
    found: dict[str, Any] = {}
    for kind, encode in zip(KINDS, make(arguments, inputs)):
        first = normalize(encode(inputs[kind]))[0]
        encode(inputs[kind])  # TorchScript is compiled in its second call
        seconds = []
        for _ in range(arguments.calls):
            started = perf_counter()
            encode(inputs[kind])
            seconds.append(perf_counter() - started)
        found[kind] = {"seconds": seconds, "first_embedding": first.tolist()}
    return found | {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def make(arguments: argparse.Namespace, inputs: dict[str, np.ndarray]) -> tuple[Encode, Encode]:
    """What a contender makes features of pictures and of texts with."""
    name = arguments.contender
    if name in ("open_clip", "torch", "torchscript"):
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if name == "open_clip":
        return make_open_clip(arguments.model)
    if name in OF_BACKENDS:
        backend = importlib.import_module("backends").get(OF_BACKENDS[name])
        architecture = MODELS[arguments.model].architecture
        clip = backend.CLIP(architecture, random_weights(architecture, 0), device="cpu")
        return clip.embed_image, clip.embed_text
    with tempfile.TemporaryDirectory() as folder:
        return make_exported(name, arguments.model, inputs, Path(folder))


def make_open_clip(model: str) -> tuple[Encode, Encode]:
    """open_clip's model, called as its documentation calls it."""
    import torch

    peer = harness.open_clip_model(model, random_weights(MODELS[model].architecture, 0)).eval()

    def encode(method: Callable[[Any], Any], array: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return method(torch.from_numpy(array)).numpy()

    return lambda pixels: encode(peer.encode_image, pixels), lambda tokens: encode(peer.encode_text, tokens)


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
