"""How time grows with the batch, the resolution, the number of texts and the size of a file.

    python benchmarks/growth.py --contenders torch,numpy

For each work, the seconds at a few sizes are measured, the best of all rounds is taken, and a line is fitted through
their logarithms: its slope is the power of the size by which the time grows, so that 1 is linear. Batches and
resolutions are of pictures (ViT-B/32; the work of a resolution is its number of patches), texts are distinct short
captions, and files are .safetensors that are converted to .h5 in the same process.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np

import converters
from clip_core.batching import embed_texts
from clip_core.initialize import random_weights
from clip_core.models import MODELS

CONTENDERS = ("torch", "paddle", "nnabla", "numpy", "files")
PACKAGES = {"nnabla": "nnabla"}
BATCHES = (1, 4, 16, 64)
GRIDS = (4, 7, 10, 14)  # patches along a side
TEXTS = (16, 64, 256)
LAYERS = (1, 3, 6, 12)  # of both towers of the models whose files are converted


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=["shapes", "ViT-B/32"])
    parser.set_defaults(rounds=2, calls=2, threads=harness.CORES)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
        return
    names, left_out = harness.chosen(CONTENDERS, arguments.contenders, PACKAGES)
    options = {"model": arguments.model, "calls": arguments.calls}
    found = harness.in_rounds(__file__, names, arguments.rounds, arguments.threads, options)
    works: dict[str, dict[str, Any]] = {}
    for name, rounds in found.items():
        for kind in rounds[0]:
            works.setdefault(kind, {})[name] = growth_of([each[kind] for each in rounds])
    for kind, rows in works.items():
        for name, row in rows.items():
            times = ", ".join(f"{size:g}: {seconds:.3f} s" for size, seconds in zip(row["sizes"], row["seconds"]))
            print(f"{kind:14}{name:10}slope {row['slope']:5.2f}   {times}")
    settings = options | {"rounds": arguments.rounds, "threads": arguments.threads}
    if arguments.json:
        result = {"settings": settings, "machine": harness.machine(), "left_out": left_out, "works": works}
        arguments.json.write_text(json.dumps(result, indent=2))


def growth_of(rounds: list[Mapping[str, list[float]]]) -> dict[str, Any]:
    """The sizes, the best seconds at each, and the slope of the logarithm of these over that of the sizes."""
    sizes = [float(size) for size in rounds[0]]
    seconds = [min(second for each in rounds for second in each[size]) for size in rounds[0]]
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return {"sizes": sizes, "seconds": seconds, "slope": float(slope)}


def measure(arguments: Any) -> dict[str, dict[float, list[float]]]:
    """{kind of work: {size: the seconds of each call}}"""
    works = of_files(arguments) if arguments.contender == "files" else of_model(arguments)
    found: dict[str, dict[float, list[float]]] = {}
    for kind, size, work in works:
        found.setdefault(kind, {})[size] = harness.seconds_of(work, arguments.calls)
    return found


def of_model(arguments: Any) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """Kinds of work in one backend, their sizes, and what does them."""
    name, architecture = arguments.contender, MODELS[arguments.model].architecture
    if name == "torch":
        importlib.import_module("torch").set_num_threads(arguments.threads)
    backend = importlib.import_module("backends").get(name)
    model = converters.ModelFile(random_weights(architecture, 0), architecture)
    clip = backend.CLIP(architecture, model.weights, device="cpu")
    pixels, _ = harness.batch(arguments.model, max(BATCHES))
    for batch in BATCHES:
        yield "batch", batch, lambda batch=batch: clip.embed_image(pixels[:batch])
    tokens = distinct_texts(arguments.model, max(TEXTS))
    for texts in TEXTS:
        yield "texts", texts, lambda texts=texts: embed_texts(clip, tokens[:texts])
    for grid in GRIDS:
        resized = model.at_resolution(grid * architecture.image.patch)
        clip = backend.CLIP(resized.architecture, resized.weights, device="cpu")
        images = np.zeros((4, 3, resized.architecture.image.resolution, resized.architecture.image.resolution), "f4")
        yield "patches", grid**2, lambda clip=clip, images=images: clip.embed_image(images)


def of_files(arguments: Any) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """The conversion of files of several sizes, in MB."""
    whole = MODELS[arguments.model].architecture
    with tempfile.TemporaryDirectory() as folder:
        for layers in sorted({min(layers, whole.image.layers) for layers in LAYERS}):
            architecture = replace(
                whole, image=replace(whole.image, layers=layers), text=replace(whole.text, layers=layers)
            )
            source, target = Path(folder) / f"{layers}.safetensors", Path(folder) / "target.h5"
            converters.write(converters.ModelFile(random_weights(architecture, 0), architecture), source)
            size = source.stat().st_size / 1e6
            yield "file, MB", size, lambda source=source: converters.convert(source, target, force=True)  # noqa: B023


def distinct_texts(model: str, count: int) -> np.ndarray:
    """Tokens int64 [n, context] of ``count`` short texts, no two of which are equal or start with the same words."""
    text = MODELS[model].architecture.text
    end = text.vocabulary_size - 1
    tokens = np.zeros((count, text.context_length), np.int64)
    tokens[:, 0], tokens[:, 9] = end - 1, end
    tokens[:, 1:9] = np.random.default_rng(0).integers(1, end - 1, (count, 8))
    tokens[:, 1] = 1 + np.arange(count)
    return tokens


if __name__ == "__main__":
    main()
