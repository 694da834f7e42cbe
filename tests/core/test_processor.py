"""What libraries of linear algebra are told of a processor."""

from __future__ import annotations

import os

import pytest

from clip_core import processor
from clip_core.processor import choose_mkl_kernels, choose_openblas_kernels

AVX512 = "fpu avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl"


def cpuinfo(vendor: str, flags: str) -> str:
    core = f"processor\t: {{}}\nvendor_id\t: {vendor}\ncpu family\t: 26\nflags\t\t: {flags}\nbugs\t\t:\n\n"
    return core.format(0) + core.format(1)


@pytest.mark.parametrize(
    ("text", "given", "mkl", "openblas"),
    [
        (cpuinfo("AuthenticAMD", AVX512), None, "7", "SkylakeX"),
        (cpuinfo("AuthenticAMD", "fpu avx avx2 avx512f"), None, "5", None),
        (cpuinfo("AuthenticAMD", "fpu avx"), None, None, None),
        (cpuinfo("GenuineIntel", AVX512), None, None, None),
        (cpuinfo("AuthenticAMD", AVX512), "4", "4", "4"),
        (None, None, None, None),
    ],
)
def test_libraries_are_told_of_amds_instructions(monkeypatch, tmp_path, text, given, mkl, openblas):
    for variable in ("MKL_DEBUG_CPU_TYPE", "OPENBLAS_CORETYPE"):
        monkeypatch.setenv(variable, given or "to be put back")
        if given is None:
            monkeypatch.delenv(variable)
    monkeypatch.setattr(processor, "PROCESSOR", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    choose_mkl_kernels()
    choose_openblas_kernels()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == mkl
    assert os.environ.get("OPENBLAS_CORETYPE") == openblas
