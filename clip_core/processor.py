"""The processor's instructions, for libraries of linear algebra that know too little of AMD's processors.

The MKL in Paddle's wheels takes AMD's processors for the oldest ones, and older versions of OpenBLAS take those of 2024
for ones without AVX-512. Both compute at half of their speed or less there, until environment variables tell them.
"""

from __future__ import annotations

import os
from pathlib import Path

PROCESSOR = Path("/proc/cpuinfo")
AVX512 = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})  # what these libraries use


def choose_mkl_kernels() -> None:
    """Tell MKL, which looks at its first matrix product, of AMD's instructions; what the user has chosen stays."""
    features = amd_features()
    if "avx2" in features:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "7" if features >= AVX512 else "5")


def choose_openblas_kernels() -> None:
    """Tell OpenBLAS, which looks when NumPy is imported, of AMD's AVX-512; what the user has chosen stays."""
    if amd_features() >= AVX512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def amd_features() -> frozenset[str]:
    """The features of a processor of AMD's, as Linux names them; none of another one's, or where Linux does not run."""
    lines = PROCESSOR.read_text().splitlines() if PROCESSOR.is_file() else []
    of_first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return frozenset(of_first.get("flags", "").split() if of_first.get("vendor_id") == "AuthenticAMD" else ())
