"""What the benchmarks share: contenders in processes of their own, in alternating rounds, with equal inputs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import converters
from clip.api import weights_file
from clip_core.initialize import random_weights
from clip_core.models import MODELS, OPENAI_VOCABULARY_SIZE
from clip_core.towers.vision_transformer import VisionTransformer

PACKAGES = ("numpy", "torch", "open_clip_torch", "paddlepaddle", "nnabla", "onnxruntime", "openvino", "nncf")


def in_rounds(
    script: str, names: Sequence[str], rounds: int, threads: int, options: Mapping[str, object]
) -> dict[str, list[dict[str, Any]]]:
    """What each contender prints as its last line, JSON, in each round.

    All take turns, so that a busy machine is unfair to none.

    Args:
        script: is run with ``--contender NAME`` and the ``options``, in a process for each contender and round.
    """
    given = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names:
            print(f"round {round_ + 1} of {rounds}: {name}", file=sys.stderr)
            command = [sys.executable, script, *given, "--threads", str(threads), "--contender", name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def parsed(parser: argparse.ArgumentParser, contenders: Sequence[str]) -> argparse.Namespace:
    """The arguments of a script whose contenders `in_rounds` runs, with the options that all such scripts have."""
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contenders", default=",".join(contenders))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.contenders.split(",")) - set(contenders):
        parser.error(f"there are no contenders {', '.join(sorted(unknown))}; choose some of {', '.join(contenders)}")
    return arguments


def parser(document: str) -> argparse.ArgumentParser:
    """The options of a script whose contenders are compared by `compare`."""
    result = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--calls", type=int, default=3, help="timed calls of each round, after one that is not")
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--json", type=Path, help="also write the figures here")
    result.add_argument("--contender", help=argparse.SUPPRESS)
    return result


def compare(script: str, names: Sequence[str], unit: str, arguments: argparse.Namespace) -> None:
    """Run every contender in rounds, and print for each kind of work how much of it is done in a second.

    A contender prints {kind: {"seconds": of each call, "amount": of a call, "peak_memory_mib": or not}}. Ratios are
    to the first contender.
    """
    options = {key: value for key, value in vars(arguments).items() if key not in ("json", "contender", "rounds")}
    found = in_rounds(script, names, arguments.rounds, options.pop("threads"), options)
    facts = machine()
    print(facts["processor"])
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for kind in found[names[0]][0]:
        print(f"\n{kind:22}{f'{unit}/s best':>18}{'ratio':>8}{'median':>12}{'ratio':>8}{'peak MiB':>10}")
        rows[kind] = {}
        for name in names:
            rounds = [each[kind] for each in found[name]]
            seconds = [second for each in rounds for second in each["seconds"]]
            amount = rounds[0]["amount"]
            row = {"best": amount / min(seconds), "median": amount / statistics.median(seconds)}
            base = rows[kind].get(names[0], row)
            row |= {f"ratio_of_{figure}": row[figure] / base[figure] for figure in ("best", "median")}
            row["peak_memory_mib"] = max(each.get("peak_memory_mib", 0) for each in rounds)
            rows[kind][name] = row
            print(
                f"{name:22}{row['best']:18.3f}{row['ratio_of_best']:8.2f}{row['median']:12.3f}"
                f"{row['ratio_of_median']:8.2f}{row['peak_memory_mib']:10.0f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": options, "machine": facts, "works": rows}, indent=2))


def seconds_of(work: Callable[[], object], calls: int) -> list[float]:
    """The seconds of each call, after one that is not timed."""
    work()
    seconds = []
    for _ in range(calls):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return seconds


def save_model(name: str, path: Path) -> None:
    """Write a model's file with random weights; of the embedded model, whose vocabulary is its own, a copy."""
    architecture = MODELS[name].architecture
    if architecture.text.vocabulary_size == OPENAI_VOCABULARY_SIZE:
        model = converters.ModelFile(random_weights(architecture, 0), architecture)
    else:
        model = converters.read(weights_file(name)[0])
    converters.write(model, path)


def machine() -> dict[str, Any]:
    """What figures depend on beside the code: processor, system, and versions of packages."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    processors = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": processors[0].partition(": ")[2] if processors else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def batch(model: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeded pixels, and captions as long as those of the web: about 12 tokens, at most 40."""
    architecture = MODELS[model].architecture
    generator = np.random.default_rng(0)
    resolution = architecture.image.resolution
    tokens = np.zeros((size, architecture.text.context_length), np.int64)
    end = architecture.text.vocabulary_size - 1
    for row in tokens:
        length = int(np.clip(generator.normal(12, 5), 4, 40))
        row[1:length] = generator.integers(1, end - 1, length - 1)
        row[0], row[length] = end - 1, end
    return generator.standard_normal((size, 3, resolution, resolution), dtype=np.float32), tokens


def open_clip_model(name: str, weights: Mapping[str, np.ndarray]):
    """open_clip's model of this architecture, with weights under canonical names, which are its own."""
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    architecture = MODELS[name].architecture
    image, text = architecture.image, architecture.text
    layers = image.layers if isinstance(image, VisionTransformer) else list(image.blocks)
    patch = getattr(image, "patch", None)
    model = CLIP(
        architecture.embed_dim,
        CLIPVisionCfg(layers=layers, width=image.width, image_size=image.resolution, patch_size=patch),
        CLIPTextCfg(
            context_length=text.context_length,
            vocab_size=text.vocabulary_size,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
        ),
        quick_gelu=True,
    )
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return model


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
