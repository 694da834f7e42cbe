"""Bytes or a path -> a decoded PIL image, with limits: the only place that opens a picture.

A picture is refused on the size it declares before anything of that size is reserved, only the formats of `FORMATS` are
tried, and every fault is an `ImageError`.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from clip_core.errors import ClipError, ImageError
from clip_core.files import read_regular

# What is inside decides, not the file's name. No format here can start another program or hold a drawing to execute.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

MAX_FILE_BYTES = 64 * 2**20  # Pillow's lists of a TIFF's strips can take 13 times the file's size
MAX_PIXELS = 64 * 2**20  # 256 MiB decoded as RGB, which Pillow keeps in four bytes; below Pillow's own limit


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Open and decode a picture, whole or not at all.

    The first frame of an animation and the first page of a document count. The pixels are as stored: an EXIF
    orientation is not applied, because OpenAI's transform does not apply it (in a TIFF, Pillow itself does). Damaged
    metadata does not stop a picture whose pixels are whole, but text or colour profiles beyond Pillow's limits do.

    Args:
        source: a path, the content of a file as bytes, or a binary file, which is read from its beginning.

    Returns:
        The decoded image in the mode of the file; `clip_core.preprocess` takes any mode.

    Raises:
        ImageError: nothing there to read, not a regular file, more than `MAX_FILE_BYTES`, not one of `FORMATS`, more
            than `MAX_PIXELS` pixels declared, or cut short or damaged (unless the program has set Pillow's
            ``ImageFile.LOAD_TRUNCATED_IMAGES``, which is respected).
    """
    name, data = _read(source)
    if not data:
        raise ImageError(f"{name} is empty; give a picture ({', '.join(FORMATS)}).")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_size(name, *_webp_size(data))
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        what = (
            "is text, perhaps a saved web page or an SVG drawing" if data.lstrip()[:1] == b"<" else "is not a picture"
        )
        raise ImageError(f"{name} {what}, or its header is damaged; give one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # the header of a damaged file can make a reader raise anything
        raise _damaged(name, error) from error
    _check_size(name, *image.size)
    try:
        image.load()
    except Exception as error:  # so can its pixels
        raise _damaged(name, error) from error
    return image


def _read(source: str | Path | bytes | BinaryIO) -> tuple[str, bytes]:
    """What to call the picture in a sentence, and its bytes."""
    if isinstance(source, bytes):
        name, data = "The picture given as bytes", source
    elif isinstance(source, (str, os.PathLike)):
        try:
            return str(source), read_regular(source, MAX_FILE_BYTES)
        except ClipError as error:
            raise ImageError(str(error)) from error
    elif hasattr(source, "read"):
        name = f"The picture in {getattr(source, 'name', 'the given file')}"
        try:
            with suppress(AttributeError, OSError):  # a pipe cannot seek and is read from where it is
                source.seek(0)
            data = source.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name} cannot be read: {error}.") from error
        if not isinstance(data, bytes):
            raise ImageError(f"{name} was opened as text; open it in binary mode.")
    else:
        raise ImageError(f"A picture was given as {type(source).__name__}; give a path, bytes or a binary file.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} has more than {MAX_FILE_BYTES} bytes, the limit; save it in a smaller size.")
    return name, data


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {MAX_PIXELS}: save it in a smaller size.")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP file, before Pillow's reader reserves the canvas twice on opening.

    The layout is that of RFC 9649; for any other first chunk the reader refuses the file.
    """
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _damaged(name: str, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(f"{name} cannot be decoded whole: {reason}; it is cut short or damaged, get the file again.")
