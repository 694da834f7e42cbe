"""Peak memory of loading a model in each backend from each format, and of converting it, beside its weights in float32.

    python benchmarks/memory.py --model ViT-L/14
    python benchmarks/memory.py --contenders "torch .safetensors,.pt to .h5" --json figures.json

Each work runs in a process of its own, which has loaded the embedded model in the same backend before: what the imports
take does not count. The peak is that of resident memory, which Linux tells (`VmHWM`). The files, whose weights are
random, are made in a temporary folder and need four times the size of the weights there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import harness

import converters
from clip.api import open_model
from clip_core.models import MODELS
from clip_core.naming import count

SUFFIXES = (".safetensors", ".pt", ".h5", ".pdparams")
LOADED = tuple(f"{backend} {suffix}" for backend in ("torch", "paddle", "nnabla", "numpy") for suffix in SUFFIXES)
CONVERTED = (".pt to .h5", ".pt to .pdparams", ".pt to .safetensors")
STATUS = Path("/proc/self/status")


def main() -> None:
    parser = harness.base_parser(__doc__)
    parser.add_argument("--model", default="ViT-L/14", choices=[name for name in MODELS if name != "shapes"])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(threads=harness.CORES)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments.contender, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run every work once, and print its peak in MiB and as a share of the weights."""
    packages = {name: "nnabla" for name in LOADED if name.startswith("nnabla")}
    names, left_out = harness.chosen((*LOADED, *CONVERTED), arguments.contenders, packages)
    harness.save_model(arguments.model, folder / "model.safetensors")
    for suffix in SUFFIXES[1:]:
        converters.convert(folder / "model.safetensors", folder / f"model{suffix}")
    found = harness.in_rounds(__file__, names, 1, arguments.threads, {"model": arguments.model, "folder": folder})
    weights = 4 * count(MODELS[arguments.model].architecture) / 2**20
    facts = harness.machine()
    print(f"{arguments.model}, {weights:.0f} MiB in float32, {facts['processor']}")
    print(f"{'work':24}{'peak MiB':>10}{'ratio':>8}{'kept MiB':>10}")
    rows = {name: rounds[0] | {"ratio": rounds[0]["peak_mib"] / weights} for name, rounds in found.items()}
    for name, row in rows.items():
        print(f"{name:24}{row['peak_mib']:10.0f}{row['ratio']:8.2f}{row['kept_mib']:10.0f}")
    if arguments.json:
        settings = {"model": arguments.model, "threads": arguments.threads}
        figures = {"settings": settings, "machine": facts, "left_out": left_out, "works": rows}
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(work: str, folder: Path) -> dict[str, Any]:
    """By how many MiB resident memory grows at most, and how much of it stays."""
    first, _, last = work.partition(" ")
    loads = work in LOADED
    if loads:
        open_model("shapes", backend=first)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    if loads:
        kept = open_model(folder / f"model{last}", backend=first)
    else:
        kept = converters.convert(folder / f"model{first}", folder / f"converted{last.removeprefix('to ')}")
    result = {"peak_mib": resident("VmHWM") - before, "kept_mib": resident("VmRSS") - before}
    del kept
    return result


def resident(key: str) -> float:
    """MiB of this process's memory, or of the most it had."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
