"""Small pictures that ask for hours or gigabytes: each is read or refused at once.

Every bad file is built here, in at most a megabyte, so that a reader sees what it asks for.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from PIL import Image

import clip_core
from tests.hostile.image_attacks import chunk, encoded, png, tiff

MEGABYTE = 1_000_000
LARGE = 8192  # pixels along each side, as many as are allowed


def scans(progressive: bool, before: bytes = b"", times: int | None = None, side: int = LARGE) -> bytes:
    """A JPEG whose last scan, which is for 16 x 16 pixels only, stands there again and again."""
    whole = encoded(Image.new("L", (16, 16)), "JPEG", progressive=progressive)
    start = whole.rindex(b"\xff\xda")
    head, scan = whole[:start].replace(struct.pack(">HH", 16, 16), struct.pack(">HH", side, side)), whole[start:-2]
    return head + (before + scan) * (times or MEGABYTE // len(before + scan)) + b"\xff\xd9"


def bmp(width: int, height: int, data: bytes) -> bytes:
    """A BMP of 8 bits in run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(header + data), 0, 0, 14 + len(header)) + header + data


def gif(*after_palette: bytes) -> bytes:
    whole = encoded(Image.new("P", (9, 9)), "GIF")
    end = 13 + (6 << (whole[10] & 7) if whole[10] & 0x80 else 0)
    return whole[:end] + b"".join(after_palette) + whole[end:]


def overlapping(count: int) -> list[tuple[int, int, int, int]]:
    """Entries that each take nearly the whole file."""
    return [(1000 + number, 7, MEGABYTE - 1000, 8) for number in range(count)]


def directory(entries: list[tuple[int, int, int, int]]) -> bytes:
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)


FRAMES = [Image.new("RGB", (16, 16), (red, 0, 0)) for red in range(256)]
BLACK = zlib.compress(bytes(100), 9)
STRIPS = MEGABYTE // 16


def pictures() -> dict[str, tuple[bytes, str]]:
    """What is asked for -> the bytes, and the sentence, or that it is read."""
    of_strip = scans(progressive=True, times=80)
    return {
        "scans.jpg": (scans(progressive=True), "scans, too many to decode; save it as PNG"),
        "scans-without-end.jpg": (scans(progressive=True)[:-2], "scans, too many to decode; save it as PNG"),
        "whole-scans.jpg": (scans(progressive=False), "scans, too many to decode; save it as PNG"),
        # A decoder passes over such a marker alone, not over the bytes that a length after it would name.
        "hidden-scans.jpg": (scans(progressive=True, before=b"\xff\x02"), "scans, too many to decode; save it as PNG"),
        "12-scans.jpg": (scans(progressive=True, times=12), "decoded"),
        "many-scans-of-little.jpg": (scans(progressive=True, times=400, side=16), "decoded"),
        "profiles.png": (png(9, 9, *[chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**20), 9))] * 900), "decoded"),
        "chunks.png": (png(9, 9, *[chunk(b"tEXt", b"k\0")] * 70_000), "decoded"),
        "more-than-its-pixels.png": (png(9, 9, pixels=zlib.compress(bytes(10**8), 9)), "decoded"),
        "comments.gif": (gif(b"\x21\xfe\1a\0" * (MEGABYTE // 5)), "decoded"),
        "controls.gif": (gif(b"\x21\xf9\4\0\0\0\0\0" * (MEGABYTE // 8)), "decoded"),
        "large.webp": (encoded(Image.new("RGB", (LARGE, LARGE)), "WEBP", lossless=True, method=0), "decoded"),
        "frames.webp": (
            encoded(Image.new("RGB", (16, 16)), "WEBP", save_all=True, append_images=FRAMES * (MEGABYTE // 100_000)),
            "decoded",
        ),
        "entries.tiff": (
            tiff(9, 9, (273, 4, 1, 8), *overlapping(30_000)).ljust(MEGABYTE, b"\0"),
            "has a directory whose entries overlap; save it as PNG",
        ),
        "entries-of-exif.tiff": (
            tiff(
                9,
                9,
                (273, 4, 1, 8),
                (34665, 4, 1, 400),
                rest=directory(overlapping(30_000)).ljust(MEGABYTE - 400, b"\0"),
            ),
            "has a directory whose entries overlap; save it as PNG",
        ),
        "scans.tiff": (
            tiff(LARGE, LARGE, (273, 4, 1, 400), (279, 4, 1, len(of_strip)), compression=7, rest=of_strip),
            "goes over 8192 x 8192 pixels in 8",
        ),
        "directories.tiff": (tiff(9, 9, *[(34665, 4, 1, 8)] * 20), "has 21 directories; save it as PNG"),
        "strips.tiff": (
            tiff(1, MEGABYTE // 2, (273, 3, MEGABYTE // 2, 400), (278, 4, 1, 1), rest=b"\x08\0" * (MEGABYTE // 2)),
            "is in 500000 strips or tiles, and at most 65536 are read; save it as PNG",
        ),
        "overlapping-strips.tiff": (
            tiff(
                *(100, STRIPS, (273, 4, STRIPS, 400), (278, 4, 1, 1), (279, 4, STRIPS, 400 + 4 * STRIPS)),
                compression=8,
                rest=struct.pack("<I", 400 + 8 * STRIPS) * STRIPS
                + struct.pack("<I", MEGABYTE // 2) * STRIPS
                + BLACK.ljust(MEGABYTE // 2, b"\0"),
            ),
            "has strips or tiles that overlap; save it as PNG",
        ),
        "tile.tiff": (
            tiff(
                *(9, 9, (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 400), (325, 4, 1, len(BLACK))),
                compression=8,
                rest=BLACK,
            ),
            "has 30000 x 30000 pixels; the limit is 67108864: save it in a smaller size",
        ),
        "rows.bmp": (
            bmp(LARGE, LARGE, b"\1\0\0\0" * (MEGABYTE // 4)),
            "the limit of such a BMP or PNM file is 4194304",
        ),
        "skips.bmp": (
            bmp(2**22, 1, b"\0\2\xff\xff"),
            "has run lengths in rows of 4194304 pixels, more than is decoded",
        ),
        "small-skips.bmp": (bmp(2**18, 1, b"\0\2\xff\xff" * (MEGABYTE // 4)), "decoded"),
        "numbers.ppm": (
            b"P3 8192 8192 255\n" + b"1 " * (MEGABYTE // 2),
            "the limit of such a BMP or PNM file is 4194304",
        ),
        "comments.ppm": (
            b"P3 40 40 255\n" + b"#\n" * (MEGABYTE // 2),
            "cannot be decoded whole: not enough image data",
        ),
        "range.pgm": (b"P5 8192 8192 254\n" + bytes(MEGABYTE), "the limit of such a BMP or PNM file is 4194304"),
    }


OPEN_EACH = """
import json, resource, sys, time
from pathlib import Path
from clip_core.errors import ImageError
from clip_core.image import open_image

in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 3 * 2**30,) * 2)
said = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        open_image(path)
        sentence = "decoded"
    except ImageError as error:
        sentence = str(error)
    # Not ru_maxrss, which begins at that of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    said[path.name] = sentence, time.process_time() - start, int(peak.split()[1])
print(json.dumps(said))
"""


def test_a_megabyte_is_read_or_refused_at_once(tmp_path):
    asked = pictures()
    for name, (data, _) in asked.items():
        assert len(data) < 1.05 * MEGABYTE
        (tmp_path / name).write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", OPEN_EACH, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(clip_core.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert not child.stderr
    said = json.loads(child.stdout)
    for name, (_, expected) in asked.items():
        sentence, seconds, kibibytes = said[name]
        assert expected in sentence, (name, sentence)
        assert sentence == "decoded" or sentence.startswith(f"{tmp_path / name} "), sentence
        assert seconds < 10, name
        assert kibibytes < 3 * 2**20, name
