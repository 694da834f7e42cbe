"""Time and cost of embedding many pictures on a cluster, from what one thread of this machine decodes and embeds.

    python benchmarks/cluster.py --machines 100 --cpus 16 --price 0.5
    python benchmarks/cluster.py --machines 10 --cpus 32 --gpus 4 --embed 3000

The stages are those of `clip embed`, on JPEG pictures of 640 x 480 pixels, in seconds of one CPU, whatever else runs.
Without GPUs they share the CPUs, so a picture costs a CPU 1 / decode + 1 / embed seconds; with GPUs the slower stage
decides. A GPU's rate is given with --embed. The price is that of a machine for an hour, in any currency.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import harness
import numpy as np
from PIL import Image

from clip.embedding import open_stamped
from clip_core.embedding.engine import Decode, embedded
from clip_core.embedding.sources import open_pictures
from clip_core.preprocess import resize

BATCH = 64
SIZE = (640, 480)
DIGITS_BYTES = 2  # of a number in float16
ROW_BYTES = 200  # of a path, a digest and the rest of a row, about


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--pictures", type=float, default=1e9)
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--cpus", type=int, default=16, help="of a machine")
    parser.add_argument("--gpus", type=int, default=0, help="of a machine")
    parser.add_argument("--decode", type=float, help="pictures a second of one CPU; by default measured")
    parser.add_argument("--embed", type=float, help="pictures a second of one GPU or CPU; by default measured on a CPU")
    parser.add_argument("--price", type=float, help="of a machine for an hour")
    parser.set_defaults(rounds=2)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measured(arguments)))
        return
    if arguments.gpus and arguments.embed is None:
        parser.error("give what one GPU embeds in a second with --embed")
    rates = {"decode": arguments.decode, "embed": arguments.embed}
    if None in rates.values():
        options = {name: getattr(arguments, name) for name in ("model", "backend", "calls")}
        found = harness.in_rounds(__file__, ["clip"], arguments.rounds, 1, options)
        best = {stage: harness.figures_of(stage, found)["clip"]["best"] for stage in rates}
        rates = {stage: best[stage] if rate is None else rate for stage, rate in rates.items()}
    result = {"settings": plain(arguments), "machine": harness.machine(), "works": estimate(arguments, **rates)}
    for name, value in result["works"].items():
        print(f"{name:36}{value:16,.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The seconds of each stage for a batch."""
    with tempfile.TemporaryDirectory() as folder:
        weights, pictures = Path(folder) / "model.safetensors", Path(folder) / "pictures"
        pictures.mkdir()
        for number in range(BATCH):
            noise = np.random.default_rng(number).integers(0, 255, (60, 80, 3)).astype(np.uint8)
            resize(Image.fromarray(noise), SIZE).save(pictures / f"{number}.jpg", quality=90)
        harness.save_model(arguments.model, weights)
        loaded, stamp = open_stamped(weights, backend=arguments.backend, device="cpu", dtype="float16")
        tower = loaded.model.architecture.image
        decode = Decode(open_pictures([str(pictures)]), tower.resolution, tower.pixels)
        pixels = decode(range(BATCH)).pixels
        works = {
            "decode": lambda: decode(range(BATCH)),
            "embed": lambda: embedded(loaded.model, pixels, stamp),
        }
        return {
            name: {"seconds": [cpu_seconds_of(work) for _ in range(arguments.calls)], "amount": BATCH}
            for name, work in works.items()
        }


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """What a call takes of this process's CPU, which has one thread for it."""
    started = process_time()
    work()
    return process_time() - started


def estimate(arguments: argparse.Namespace, decode: float, embed: float) -> dict[str, float]:
    """The figures of a cluster, by what they are called.

    Args:
        decode: pictures a second of one CPU.
        embed: pictures a second of one GPU, or of one CPU where there are no GPUs.
    """
    if arguments.gpus:
        rate = min(arguments.cpus * decode, arguments.gpus * embed)
    else:
        rate = arguments.cpus / (1 / decode + 1 / embed)
    hours = arguments.pictures / (arguments.machines * rate) / 3600
    dimension = harness.MODELS[arguments.model].architecture.embed_dim
    result = {
        "decoded by a CPU, pictures/s": decode,
        f"embedded by a {'GPU' if arguments.gpus else 'CPU'}, pictures/s": embed,
        "embedded by a machine, pictures/s": rate,
        "hours of the cluster": hours,
        "hours of machines": hours * arguments.machines,
        "GB of parts": arguments.pictures * (dimension * DIGITS_BYTES + ROW_BYTES) / 1e9,
    }
    if arguments.price is not None:
        result["cost"] = hours * arguments.machines * arguments.price
    return result


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data for JSON."""
    return {name: value for name, value in vars(arguments).items() if name not in ("json", "contender", "contenders")}


if __name__ == "__main__":
    main()
