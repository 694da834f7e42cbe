"""The engine: what is broken or hostile is a fault, and memory does not grow with the number of pictures."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clip_core.embedding import engine
from clip_core.embedding.engine import Decode, Plan
from clip_core.embedding.parts import Parts
from clip_core.embedding.sources import open_pictures
from clip_core.embedding.stamp import Stamp, pixels_of
from clip_core.errors import ClipError
from clip_core.models import SHAPES

STAMP = Stamp("", "none", SHAPES.to_dict(), None, pixels_of(SHAPES), "fp32", "float16", False, "numpy", {})


def model(resolution: int, scale: float = 1.0) -> SimpleNamespace:
    """A model whose embedding is the mean of each channel."""
    image = replace(SHAPES.image, resolution=resolution)
    return SimpleNamespace(
        architecture=replace(SHAPES, image=image),
        embed_image=lambda pixels: (pixels.mean(axis=(2, 3)) + 10) * scale,
        source="means",
    )


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 9)).save(data, "PNG")
    return data.getvalue()


def test_what_is_broken_or_hostile_is_a_fault(tmp_path):
    """A pipe, a link to nowhere, a picture of 30 GB, and a text: none of them ends the run or makes it wait."""
    (tmp_path / "a.png").write_bytes(png(1))
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("nowhere")
    (tmp_path / "d.ppm").write_bytes(b"P6 100000 100000 255\n")
    (tmp_path / "e.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "f.png").write_bytes(png(2))
    decoded = Decode(open_pictures([str(tmp_path)]), 8, SHAPES.image.pixels)(range(6))
    assert [os.path.basename(path) for path in decoded.columns["path"]] == ["a.png", "f.png"]
    assert len(decoded.pixels) == 2
    assert [fault.number for fault in decoded.faults] == [1, 2, 3, 4]
    for fault, words in zip(decoded.faults, ("not a regular file", "cannot be read", "pixels", "is text")):
        assert words in fault.sentence
        assert os.path.basename(fault.name) in fault.sentence


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    path = tmp_path / "bomb.parquet"
    table = pyarrow.table({"image": [bytes(100 << 20)]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ClipError, match="more than 50 times its own bytes"):
        open_pictures([str(path)])


def test_numbers_that_the_type_cannot_hold_are_refused():
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(ClipError, match="too large for float16; keep them in float32"):
        engine.embedded(model(8, scale=1e6), pixels, STAMP)  # type: ignore[arg-type]
    assert engine.embedded(model(8), pixels, STAMP).dtype == np.float16  # type: ignore[arg-type]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """100,000 pictures in ten shards."""
    for shard in range(10):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(10_000):
                member = tarfile.TarInfo(f"{number:05}.png")
                data = png(10_000 * shard + number)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pictures = open_pictures([str(tmp_path)])
    plan = Plan(len(pictures), pictures.fingerprint())
    sizes: list[int] = []
    with engine.run_in(tmp_path / "out", plan, STAMP) as run:
        for part in engine.picture_parts(model(8), pictures, STAMP, plan, run.faults, workers=2):  # type: ignore[arg-type]
            run.write(part)
            sizes.append(_resident())
    assert max(sizes[5:]) - sizes[4] < 8 << 20
    found = Parts(tmp_path / "out")
    assert len(found) == 100_000
    means = found.embeddings()[:, 0].astype(np.float32)
    expected = (np.arange(100_000) % 256 / 255 - SHAPES.image.pixels.mean[0]) / SHAPES.image.pixels.deviation[0] + 10
    np.testing.assert_allclose(means, expected, atol=0.01)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
