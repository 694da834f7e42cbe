"""Bytes or a path -> a decoded PIL image, with limits: the only place that opens a picture.

A picture is refused on the size and the work that it declares before anything of that size is reserved, only the
formats of `FORMATS` are tried, and every fault is an `ImageError`.

Pictures of more than 8 bits per channel become such of 8 bits, since everything after this takes values from 0 to 255:

- Of 16 bits (grey ones; Pillow reads coloured ones as 8 bits by the same rule) the higher byte is taken, so that 65535
  is white. Of the 12 bits that some TIFF files have, the highest 8.
- Of 32-bit integers and of floats nobody says which value is white, so it is taken to be the smallest of 1 (floats
  only), 255 and 65535 that no pixel exceeds, with a warning; values below 0, above 65535 or not finite are refused.
- When a picture of 16 bits is dark because it uses none of the highest 4, a warning says so.
- Where a TIFF says that 0 is white, its values are turned round, as Pillow does with 8 bits. One with whole numbers
  below 0 in 8 bits is refused, as nothing says which value is black.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from clip_core.errors import ClipError, ImageError
from clip_core.files import read_regular
from clip_core.image_headers import Refusal, check_size, prepared

# What is inside decides, not the file's name. No format here can start another program or hold a drawing to execute,
# and every Pillow from 10.3 on reads them alike.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
"""Of the names of files in `FORMATS`, in lower case: what a reader of folders takes for a picture."""

MAX_FILE_BYTES = 64 * 2**20  # Pillow's lists of a TIFF's strips can take 13 times the file's size
MAX_PIXELS = 64 * 2**20  # 256 MiB decoded as RGB, which Pillow keeps in four bytes; below Pillow's own limit
MAX_SLOW_PIXELS = 4 * 2**20  # of what Pillow decodes pixel by pixel in Python: plain text, odd ranges, run lengths
_SLOW_DECODERS = ("ppm", "ppm_plain", "bmp_rle")


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Open and decode a picture, whole or not at all.

    The first frame of an animation and the first page of a document count. The pixels are as stored: an EXIF
    orientation is not applied, because OpenAI's transform does not apply it (in a TIFF, Pillow itself does). Texts,
    profiles and other metadata are not read (but for a TIFF's), so their damage does not stop a picture.

    Args:
        source: a path, the content of a file as bytes, or a binary file, which is read from its beginning.

    Returns:
        The decoded image in the mode of the file, but for more than 8 bits per channel (see above), which become ``L``.

    Raises:
        ImageError: nothing there to read, an address, not a regular file, more than `MAX_FILE_BYTES`, not one of
            `FORMATS`, more than `MAX_PIXELS` pixels declared, or so much work for them that decoding could take
            minutes, values whose range is unknown, or cut short or damaged (unless the program has set Pillow's
            ``ImageFile.LOAD_TRUNCATED_IMAGES``, which is respected).
    """
    name, data = _read(source)
    with _one_sentence(name, data):
        image = _undecoded(name, data)
        image.load()
    return in_eight_bits(image, name)


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """Width and height of a picture, as its header states them; what comes after the header may be damaged.

    Raises:
        ImageError: as `open_image` does before it decodes.
    """
    name, data = _read(source)
    with _one_sentence(name, data):
        return _undecoded(name, data).size


def _undecoded(name: str, data: bytes) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty; give a picture ({', '.join(FORMATS)}).")
    image = Image.open(io.BytesIO(prepared(data, MAX_PIXELS)), formats=FORMATS)
    check_size(*image.size, MAX_PIXELS)
    if image.tile and image.tile[0][0] in _SLOW_DECODERS:
        check_size(*image.size, MAX_SLOW_PIXELS, " of such a BMP or PNM file", "save it as PNG")
    return image


@contextmanager
def _one_sentence(name: str, data: bytes) -> Iterator[None]:
    """Turn whatever the decoders raise for the picture into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Refusal as error:
        raise ImageError(f"{name} {error}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a limit that the program has set
        raise ImageError(
            f"{name} has more pixels than Pillow is allowed to open: {error} Save it in a smaller size."
        ) from error
    except UnidentifiedImageError as error:
        what = "is text, perhaps a saved web page" if data.lstrip()[:1] == b"<" else "is not a picture"
        raise ImageError(f"{name} {what}, or its header is damaged; give one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # a damaged file can make a reader raise anything
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{name} cannot be decoded whole: {reason}; it is cut short or damaged, get the file again."
        ) from error


def in_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The picture itself, or one of mode ``L`` when it is of 16 bits, of 32-bit integers or of floats.

    The rule is at the top of this file. That a picture of mode ``I`` has 16 bits is seen by the format it is from.

    Args:
        name: what to call the picture in a sentence.

    Raises:
        ImageError: values whose range is unknown.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 258 bits, 262 what 0 stands for, 339 kind of number
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        if 2 in tags.get(339, ()):
            raise ImageError(f"{name} has signed values of 8 bits, and nothing says which is black; save it unsigned.")
        return image
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode not in ("I", "F") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        white = 4095 if tags.get(258) == (12,) else 65535
        if tags.get(262) == 0:
            values = white - values
            highest = white - lowest
        if highest <= white >> 4:
            _warn(f"{name} has values up to {highest} of {white}, so it is nearly black; scale it to its whole range")
    else:
        ranges = (255, 65535) if image.mode == "I" else (1, 255, 65535)
        white = next((white for white in ranges if lowest >= 0 and highest <= white), 0)
        if not white:
            raise ImageError(
                f"{name} has values from {lowest:g} to {highest:g}, and nothing says which of them is white; save it "
                "with 8 bits per channel."
            )
        _warn(f"{name} has values from {lowest:g} to {highest:g}, of which {white} is taken to be white")
        if tags.get(262) == 0:
            values = white - values
    if image.mode == "F":
        eight_bits = np.rint(values * np.float32(255 / white))
    else:
        eight_bits = values // ((white + 1) // 256)
    converted = Image.fromarray(eight_bits.astype(np.uint8))
    converted.format = image.format
    return converted


def _warn(sentence: str) -> None:
    warnings.warn(f"{sentence}.", stacklevel=3)


def _read(source: str | Path | bytes | BinaryIO) -> tuple[str, bytes]:
    """What to call the picture in a sentence, and its bytes."""
    if isinstance(source, bytes):
        name, data = "The picture given as bytes", source
    elif isinstance(source, (str, os.PathLike)):
        if address := re.match(r"(https?|ftp|s3|gs):/+", str(source)):  # a Path has one slash left
            rest = str(source)[address.end() :]
            raise ImageError(
                f"{address[1]}://{rest} is an address, which is not fetched here; download it, and give the path."
            )
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
