"""Pictures, and the parts of their files that attacks are built of."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def waves(mode: str = "RGB", width: int = 19, height: int = 14) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = 127.5 + 120 * np.sin(np.stack([rows / 3, columns / 2, (rows * columns) / 9], axis=-1))
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *before_pixels: bytes, pixels: bytes | None = None) -> bytes:
    """A greyscale PNG, black unless ``pixels`` says otherwise, with extra chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * (width + 1) * height if pixels is None else pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before_pixels) + body + chunk(b"IEND", b"")


def tiff(
    width: int, height: int, *entries: tuple[int, int, int, int], rest: bytes = b"", compression: int = 1
) -> bytes:
    """A greyscale TIFF with further entries (tag, type, number, value or place); ``rest`` begins at byte 400."""
    own = [(0x100, 4, 1, width), (0x101, 4, 1, height), (0x102, 3, 1, 8), (0x103, 3, 1, compression), (0x106, 3, 1, 1)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted([*own, *entries]))
    head = b"II*\0" + struct.pack("<IH", 8, len(own) + len(entries)) + table + bytes(4)
    return head.ljust(400, b"\0") + rest


def webp(kind: bytes, payload: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body
