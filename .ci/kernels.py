"""Run the tests of numbers with each kind of kernels that this processor can run, and say which it cannot.

NumPy, PyTorch, oneDNN, MKL and OpenBLAS choose their kernels by the processor, and each kind adds numbers up in another
order. A bound that holds for one kind alone would be a bound for one machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).parents[1]
TESTS = (
    *("tests/test_towers.py", "tests/backends", "tests/parity"),
    *("tests/core/test_initialize.py", "tests/core/test_similarity.py"),
    *(f"tests/training/test_{name}.py" for name in ("evaluation", "evaluation_during_training", "loss_scaling")),
    *(
        f"tests/training/test_{name}.py"
        for name in ("memory", "moving_average", "sharding", "torch_trainer", "trainers")
    ),
    *(
        f"tests/clip/test_{name}.py"
        for name in ("api", "nnabla_scope", "paddle_wrapper", "torch_train", "train_anywhere")
    ),
)


class Kernels(NamedTuple):
    features: tuple[str, ...]  # that the processor must have, in NumPy's names, each with all before it
    openblas: str
    torch: str
    onednn: str
    mkl: str


SSE = ("SSE", "SSE2", "SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42")
AVX2 = (*SSE, "AVX", "F16C", "FMA3", "AVX2")
KINDS = {
    "SSE4.2": Kernels(SSE, "Nehalem", "default", "SSE41", "SSE4_2"),
    "AVX2": Kernels(AVX2, "Haswell", "avx2", "AVX2", "AVX2"),
    "AVX-512": Kernels((*AVX2, "AVX512F", "AVX512CD", "AVX512_SKX"), "SkylakeX", "avx512", "AVX512_CORE", "AVX512"),
}


def passes(kernels: Kernels) -> bool:
    """Whether the tests pass with these kernels."""
    above = [name for name in __cpu_dispatch__ if __cpu_features__[name] and name not in kernels.features]
    environment = os.environ | {
        "OPENBLAS_CORETYPE": kernels.openblas,
        "ATEN_CPU_CAPABILITY": kernels.torch,
        "ONEDNN_MAX_CPU_ISA": kernels.onednn,
        "MKL_ENABLE_INSTRUCTIONS": kernels.mkl,
        "NPY_DISABLE_CPU_FEATURES": " ".join(above),
    }
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", *TESTS, *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode == 0


def main() -> None:
    verdicts = {}
    for kind, kernels in KINDS.items():
        missing = [name for name in kernels.features if not __cpu_features__[name]]
        if missing:
            verdicts[kind] = f"left out, since this processor has no {missing[0]}"
            continue
        print(f"kernels: {kind}", flush=True)
        start = perf_counter()
        passed = passes(kernels)
        verdicts[kind] = f"{'passed' if passed else 'FAILED'} in {perf_counter() - start:.0f} s"
    for kind, verdict in verdicts.items():
        print(f"kernels: {kind} {verdict}")
    if any("FAILED" in verdict for verdict in verdicts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
