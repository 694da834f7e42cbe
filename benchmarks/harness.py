"""What the benchmarks share: contenders in processes of their own, in alternating rounds, with equal inputs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.models import MODELS
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
