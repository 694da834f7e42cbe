"""What of this machine and its Python matters to TriCLIP: what is there, what is missing, and what is broken.

Each library is imported in a process of its own: one that ends its process, or cannot live beside another, is told of
like any other.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import backends
import clip
from clip_core import chunks
from clip_core.download import cache_folder
from clip_core.errors import ClipError
from clip_core.installation import requirement
from clip_core.text.vocabulary import vocabulary_at_hand

REQUIRED = ("numpy", "PIL", "regex", "ftfy", "h5py", "yaml", "pydantic", "typer", "rich", "platformdirs")
"""What TriCLIP cannot do without."""

EXTRAS = {
    "torch": ("torch",),
    "paddle": ("paddle",),
    "nnabla": ("nnabla",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "nncf": ("nncf",),
    "train": ("grain", "matplotlib"),
    "data": ("pyarrow",),
    "probe": ("sklearn",),
    "search": ("lancedb", "pyarrow", "sklearn", "matplotlib"),
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "python_multipart"),
    "web": ("gradio",),
    "tokenizers": ("tokenizers",),
    "mpi": ("mpi4py",),
}
"""The modules that each extra of setup.cfg brings."""

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CLIP_BACKEND", "CLIP_CACHE")
SECONDS = 120.0  # that importing one library may take

_IMPORT = """
import importlib, json, sys, warnings
from contextlib import suppress
from importlib import metadata
warnings.simplefilter("ignore")
import backends
if sys.argv[1] in backends.OLDEST:
    backends.get(sys.argv[1])
told = []
for name in sys.argv[1:]:
    told.append(name)
    module = importlib.import_module(name)
    with suppress(metadata.PackageNotFoundError):  # neither says it
        told.append(getattr(module, "__version__", None) or metadata.version(name))
print(json.dumps(" ".join(told)))
"""


@dataclass(frozen=True)
class Finding:
    name: str  # of a fact, or of an extra
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str | None = None  # a command, or what to do


def examine() -> list[Finding]:
    """Facts of the machine first, then what is required, then each extra."""
    groups = {"required": REQUIRED} | EXTRAS
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        libraries = list(pool.map(_library, groups, groups.values()))
    return [*_facts(), *libraries]


def _facts() -> Iterator[Finding]:
    yield Finding("triclip", "ok", f"{clip.__version__} in {Path(clip.__file__).parents[1]}")
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", "ok", platform.platform())
    yield Finding("processor", "ok", f"{_processor()}; {' '.join(_features())}")
    variables = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield Finding("threads", "ok", ", ".join([f"{chunks.threads()} to compute with on the CPU", *variables]))
    yield Finding("GPU", "ok", _gpus())
    yield _cache()
    yield _vocabulary()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def _features() -> list[str]:
    """The vector instructions that NumPy finds, by NumPy's names."""
    core = "numpy._core" if find_spec("numpy._core") else "numpy.core"  # older than NumPy 1.26
    features = importlib.import_module(f"{core}._multiarray_umath").__cpu_features__
    return [name for name, there in features.items() if there]


def _gpus() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none of NVIDIA's: there is no nvidia-smi"
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    return "; ".join((done.stdout if done.returncode == 0 else done.stderr or done.stdout).split("\n")).strip("; ")


def _cache() -> Finding:
    folder = cache_folder()
    if not folder.exists():
        return Finding("cache", "ok", f"{folder}, which is made when something is fetched")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding("cache", "broken", f"{folder} is no folder to write to", "set $CLIP_CACHE to another folder")
    return Finding("cache", "ok", f"{folder}, {sum(path.is_file() for path in folder.rglob('*'))} files")


def _vocabulary() -> Finding:
    try:
        return Finding("vocabulary", "ok", f"OpenAI's, {vocabulary_at_hand()}")
    except ClipError as error:
        state: Literal["missing", "broken"] = "broken" if "CLIP_VOCABULARY" in os.environ else "missing"
        return Finding("vocabulary", state, str(error), "pip install --no-deps open_clip_torch")


def _library(name: str, modules: tuple[str, ...]) -> Finding:
    """The modules of one extra, imported in a process of their own."""
    remedy = f"pip install {requirement(name if name in EXTRAS else '')}"
    if name == "nnabla" and sys.version_info >= (3, 11):
        remedy = backends.remedy(name)
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        state: Literal["missing", "broken"] = "missing" if name in EXTRAS else "broken"
        return Finding(name, state, f"there is no {' and no '.join(missing)}", remedy)
    fault, told = _run([sys.executable, "-c", _IMPORT, *modules])
    return Finding(name, "broken", fault, remedy) if fault else Finding(name, "ok", told)


def _run(command: list[str]) -> tuple[str, str]:
    """The fault of a process that imports, or else what it tells."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"importing it takes more than {SECONDS:.0f} seconds", ""
    if done.returncode < 0:
        return f"importing it ends Python by {signal.Signals(-done.returncode).name}", ""
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"importing it ends Python with {done.returncode}"])[-1], ""
    return "", json.loads(done.stdout.splitlines()[-1])
