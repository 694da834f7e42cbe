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
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import converters
from clip.api import weights_file
from clip_core.buffers import Tensor
from clip_core.initialize import random_weights
from clip_core.layouts import LAYOUTS
from clip_core.models import MODELS, OPENAI_VOCABULARY_SIZE
from clip_core.processor import choose_openblas_kernels
from clip_core.towers.vision_transformer import VisionTransformer

PACKAGES = (
    *("numpy", "pillow", "torch", "torchvision", "open_clip_torch", "transformers", "tokenizers", "paddlepaddle"),
    *(
        "nnabla",
        "onnxruntime",
        "openvino",
        "nncf",
        "instant-clip-tokenizer",
        "hf-processors-rs",
        "lancedb",
        "pyarrow",
        "faiss-cpu",
    ),
)
PEER_BATCH = 80  # the prompts of one class
CORES = len(os.sched_getaffinity(0))


def in_rounds(
    script: str, names: Sequence[str], rounds: int, threads: int, options: Mapping[str, object]
) -> dict[str, list[dict[str, Any]]]:
    """What each contender prints as its last line, JSON, in each round.

    All take turns, so that a busy machine is unfair to none.

    Args:
        script: is run with ``--contender NAME`` and the ``options``, in a process for each contender and round.
    """
    choose_openblas_kernels()  # as the `clip` command does
    given = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    environment |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
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


def base_parser(document: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    result = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--contenders", help="some of them, with commas between; by default all that are installed")
    result.add_argument("--json", type=Path, help="also write the figures here")
    result.add_argument("--contender", help=argparse.SUPPRESS)
    return result


def parser(document: str) -> argparse.ArgumentParser:
    """The options of a script whose contenders are timed in rounds."""
    result = base_parser(document)
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--calls", type=int, default=3, help="timed calls of each round, after one that is not")
    return result


def compare(
    script: str,
    names: Sequence[str],
    unit: str,
    arguments: argparse.Namespace,
    packages: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the contenders in rounds, and print for each kind of work how much of it is done in a second.

    A contender prints {kind: {"seconds": of each call, "amount": of a call, "peak_memory_mib": or not, "first": numbers
    to compare, or not}}. Ratios and differences are to the first contender.

    Args:
        packages: which a contender needs, and is left out without.

    Returns:
        {kind: {contender: figures}}, and for each of its "contenders left out", the package.
    """
    names, left_out = chosen(names, arguments.contenders, packages or {})
    own = ("json", "contender", "contenders", "rounds", "threads")
    options = {key.replace("_", "-"): value for key, value in vars(arguments).items() if key not in own}
    options = {key: value for key, value in options.items() if value is not None}
    found = in_rounds(script, names, arguments.rounds, arguments.threads, options)
    works = {kind: figures_of(kind, found) for kind in found[names[0]][0]}
    facts = machine()
    print(f"{facts['processor']}, {arguments.threads} threads")
    for name, package in left_out.items():
        print(f"{name} is left out: {package} is not installed")
    for kind, rows in works.items():
        heads = (f"{unit}/s best", "ratio", "median", "ratio", "difference", "peak MiB")
        print(f"\n{kind:22}" + "".join(f"{head:>16}" for head in heads))
        for name, row in rows.items():
            difference = f"{row['difference']:.1e}" if "difference" in row else ""
            peak = f"{row['peak_memory_mib']:.0f}" if "peak_memory_mib" in row else ""
            print(
                f"{name:22}{row['best']:16.3f}{row['ratio_of_best']:16.2f}{row['median']:16.3f}"
                f"{row['ratio_of_median']:16.2f}{difference:>16}{peak:>16}"
            )
    for name, seconds in compilations(works).items():
        print(f"\n{name} was compiled in {seconds:.0f} s, which do not count")
    settings = {key: value for key, value in options.items() if not isinstance(value, Path)}
    settings |= {"rounds": arguments.rounds, "threads": arguments.threads, "unit": unit}
    result = {"settings": settings, "machine": facts, "left_out": left_out, "works": works}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    return result


def chosen(names: Sequence[str], asked: str | None, packages: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The contenders to run, all or those asked for, and those left out with the package that each lacks."""
    wanted = list(names) if asked is None else asked.split(",")
    if unknown := set(wanted) - set(names):
        sys.exit(f"there are no contenders {', '.join(sorted(unknown))}; choose some of {', '.join(names)}")
    left_out = {name: packages[name] for name in wanted if name in packages and find_spec(packages[name]) is None}
    return [name for name in wanted if name not in left_out], left_out


def figures_of(kind: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of one kind of work, the figures of each contender that does it; ``found`` is of `in_rounds`."""
    rows: dict[str, dict[str, float]] = {}
    base = next(iter(found))
    for name, rounds in found.items():
        if kind not in rounds[0]:
            continue
        own = [each[kind] for each in rounds]
        seconds, amount = [second for each in own for second in each["seconds"]], own[0]["amount"]
        row = {"best": amount / min(seconds), "median": amount / statistics.median(seconds)}
        row |= {f"ratio_of_{figure}": row[figure] / rows.get(base, row)[figure] for figure in ("best", "median")}
        if "first" in own[0]:
            row["difference"] = float(np.abs(np.subtract(own[0]["first"], found[base][0][kind]["first"])).max())
        if "peak_memory_mib" in own[0]:
            row["peak_memory_mib"] = max(each["peak_memory_mib"] for each in own)
        if "compilation_seconds" in own[0]:
            row["compilation_seconds"] = min(each["compilation_seconds"] for each in own)
        rows[name] = row
    return rows


def compilations(works: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The seconds that contenders were compiled in, of those that were."""
    return {
        name: row["compilation_seconds"]
        for rows in works.values()
        for name, row in rows.items()
        if "compilation_seconds" in row
    }


def seconds_of(work: Callable[[], object], calls: int, before: int = 1) -> list[float]:
    """The seconds of each call, after some that are not timed."""
    for _ in range(before):
        work()
    seconds = []
    for _ in range(calls):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return seconds


def peak_memory_mib() -> float:
    """Of this process until now, what was resident at most."""
    return int(next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024


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
        "cores": CORES,
        "system": f"{platform.system()} {platform.machine()}",
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


def open_clip_model(name: str, weights: Mapping[str, np.ndarray], precision: str = "fp32"):
    """open_clip's model of this architecture, with weights under canonical names, which are its own."""
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_lp

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
    if precision == "bf16":
        convert_weights_to_lp(model, torch.bfloat16)
    return model.eval()


def transformers_model(name: str, weights: Mapping[str, np.ndarray], precision: str = "fp32"):
    """transformers' CLIPModel of this architecture, with weights under canonical names."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    architecture, layout = MODELS[name].architecture, LAYOUTS["huggingface"]
    model = CLIPModel(CLIPConfig(**layout.folder.describe(architecture, True)["config.json"]))
    stored = layout.store({name: Tensor(array, array.dtype) for name, array in weights.items()}, architecture)
    model.load_state_dict({name: torch.tensor(tensor.values()) for name, tensor in stored.items()})
    return model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision]).eval()


def transformers_encoders(model: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What makes features of pixels, and of tokens cut to the longest text, which ``padding=True`` gives."""

    def text(tokens: Any) -> Any:
        longest = int(tokens.argmax(dim=-1).max()) + 1
        return model.get_text_features(input_ids=tokens[:, :longest]).pooler_output

    return lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output, text


def encoder(method: Callable[[Any], Any], precision: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A method of a peer's model on PyTorch as a function of arrays: at most `PEER_BATCH` inputs go in at once."""
    import torch

    dtype = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def encode(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [method(part.to(dtype)) for part in torch.from_numpy(inputs).split(PEER_BATCH)]
            return torch.cat(parts).float().numpy()

    return encode


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
