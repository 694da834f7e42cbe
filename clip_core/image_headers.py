"""What the bytes of a picture say before a decoder sees them: which format, how large, and how much work.

Decoders go wherever a file sends them, so a small file can ask for hours and gigabytes. What it asks for is added up
here first, by arithmetic on its headers, and the parts that no pixel depends on (texts, profiles, EXIF, later frames)
are left out, so that nobody has to decode them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

import numpy as np

MAX_SCANS = 20  # over as many pixels as a picture may have, where encoders make 12; over fewer pixels, more of them
MAX_PIECES = 1 << 16  # strips or tiles of a TIFF

# Other formats, by their first bytes, so that a sound picture is refused by its name.
OTHER_FORMATS = {
    "a JPEG 2000 picture": rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\x00\x00\x00\x0cJXL \r\n\x87\n|\xff\x0a",
    "an AVIF picture": rb".{4}ftypavi[fs]",
    "a HEIC picture": rb".{4}ftyphe[iv][cxms]",
    "a HEIF picture": rb".{4}ftypm[is]f1",
    "a BigTIFF picture in big-endian order": rb"MM\x00\+",
    "a video": rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI ",
    "an icon (ICO)": rb"\x00\x00\x01\x00[^\x00]",
    "a cursor (CUR)": rb"\x00\x00\x02\x00[^\x00]\x00",
    "an Apple icon (ICNS)": rb"icns",
    "a Photoshop document": rb"8BPS",
    "a PostScript drawing": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PDF document": rb"%PDF",
    "an SVG drawing": rb"(?=\s{0,64}<[?!s])(?!.{0,1024}<html).{0,1024}?<svg\b",
    "a Windows metafile": rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF",
    "a DirectDraw surface (DDS)": rb"DDS ",
    "an OpenEXR picture": rb"v/1\x01",
    "a FITS picture": rb"SIMPLE  =",
    "a QOI picture": rb"qoif",
    "a PCX picture": rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]",
    "a gzip archive": rb"\x1f\x8b",
    "a zip archive": rb"PK\x03\x04",
    "a NumPy file": rb"\x93NUMPY",
    "a TGA picture": rb".[\x00\x01][\x01-\x03\x09-\x0b].{9}(?!\x00\x00)..(?!\x00\x00)..[\x08\x0f\x10\x18 ][\x00-\x3f]",
}


class Refusal(Exception):
    """Why a picture is not decoded, as the rest of a sentence that begins with its name."""


def prepared(data: bytes, most_pixels: int) -> bytes:
    """The same picture without what its first frame's pixels do not depend on.

    What cannot be followed is left to the decoder, which finds the fault; what a decoder would follow has been counted.

    Raises:
        Refusal: it is of one of `OTHER_FORMATS`; more than ``most_pixels`` are declared, or so many passes over them,
            or pieces that overlap, that a decoder would be kept busy or run out of memory; or a TIFF points outside of
            its file.
    """
    for signature, prepare in _FORMATS.items():
        if re.match(signature, data, re.DOTALL):
            try:
                return prepare(data, most_pixels)
            except (struct.error, IndexError):  # its header is cut short
                return data
    for name, signature in OTHER_FORMATS.items():
        if re.match(signature, data, re.DOTALL):
            raise Refusal(f"is {name}, which is not read here; save it as PNG or JPEG")
    return data


def check_size(
    width: int, height: int, most_pixels: int, kind: str = "", remedy: str = "save it in a smaller size"
) -> None:
    """Refuse a picture of too many pixels; ``kind`` says for which the limit holds."""
    if width * height > most_pixels:
        raise Refusal(f"has {width} x {height} pixels; the limit{kind} is {most_pixels}: {remedy}")


def _png(data: bytes, most_pixels: int) -> bytes:
    """The chunks that the pixels depend on: the critical ones, and the transparency."""
    width, height = struct.unpack_from(">II", data, 16)
    check_size(width, height, most_pixels)
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not kind[0] & 0x20 or kind == b"tRNS":
            kept.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept)


_MARKER = re.compile(rb"\xff[^\x00\xff]")


def _jpeg(data: bytes, most_pixels: int) -> bytes:
    """The segments without comments and those of applications, but for the two that say how colours are stored.

    A progressive JPEG goes over all its coefficients in each scan, and a scan may have hardly any bytes.
    """
    kept, done, scans, width, height = [], 0, 0, 0, 0
    for code, start, end in _segments(data):
        if code == 0xDA:
            scans += 1
        elif 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            declared = struct.unpack_from(">HH", data, start + 5)
            height, width = max((height, width), declared, key=lambda size: size[0] * size[1])
        elif not scans and (code == 0xFE or (0xE1 <= code <= 0xEF and code != 0xEE)):
            kept.append(data[done:start])
            done = end
    check_size(width, height, most_pixels)
    _check_scans(scans, width, height, most_pixels)
    return b"".join([*kept, data[done:]])


def _check_scans(scans: int, width: int, height: int, most_pixels: int) -> None:
    if scans * width * height > MAX_SCANS * most_pixels:
        raise Refusal(f"goes over {width} x {height} pixels in {scans} scans, too many to decode; save it as PNG")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Every marker that a decoder can come to: its code, and where its segment begins and ends."""
    at = 2
    while (found := _MARKER.search(data, at)) and (code := data[found.start() + 1]) != 0xD9:
        start, at = found.span()
        if code >= 0xC0 and not 0xD0 <= code <= 0xD8:  # the others have no length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        yield code, start, at


def _gif(data: bytes, most_pixels: int) -> bytes:
    """The screen, and the first picture with what controls it."""
    width, height = struct.unpack_from("<HH", data, 6)
    at = 13 + _colours(data[10])
    kept = [data[:at]]
    while at < len(data) and data[at] != 0x3B:
        start, at = at, at + 1
        if data[start] == 0x21:
            at = _after_blocks(data, start + 2)
            if data[start + 1] == 0xF9:
                kept.append(data[start:at])
        elif data[start] == 0x2C:
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at)
            check_size(max(width, left + wide), max(height, top + high), most_pixels)
            kept.append(data[start : _after_blocks(data, start + 11 + _colours(flags))])
            break
    check_size(width, height, most_pixels)
    return b"".join(kept) + b";"


def _colours(flags: int) -> int:
    """The bytes of a table of colours that flags announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Where a sequence of blocks that begins at ``at`` has ended."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _webp(data: bytes, most_pixels: int) -> bytes:
    """All of it: Pillow's reader reserves the canvas twice on opening. The layout is that of RFC 9649."""
    if data[12:16] == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    check_size(width, height, most_pixels)
    return data


def _bmp(data: bytes, most_pixels: int) -> bytes:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    check_size(abs(width), abs(height), most_pixels)
    (compression,) = (0,) if header == 12 else struct.unpack_from("<I", data, 30)
    if compression in (1, 2) and 255 * abs(width) > most_pixels:  # run lengths, where 4 bytes can skip 255 rows
        raise Refusal(f"has run lengths in rows of {abs(width)} pixels, more than is decoded; save it as PNG")
    return data


_PPM_SIZE = re.compile(rb"P\S{1,5}" + rb"(?:\s|#[^\r\n]*)+(\d{1,10})" * 2)


def _ppm(data: bytes, most_pixels: int) -> bytes:
    """The same without comments if it is plain text, where Pillow copies all of it for each of them."""
    if data[1:2] in b"123":
        data = re.sub(rb"#[^\r\n]*[\r\n]?", b"", data)
    if found := _PPM_SIZE.match(data):
        check_size(int(found[1]), int(found[2]), most_pixels)
    return data


_WIDTH, _HEIGHT, _COMPRESSION, _STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 278, 322, 323
_OFFSETS, _BYTE_COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS and interoperability, which Pillow reads as well
_JPEG = (6, 7)  # kinds of compression
_MOST_DIRECTORIES = 8
_TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8", 18: "u8"}  # whole numbers
_TIFF_BYTES = {**dict.fromkeys((2, 6, 7), 1), 11: 4, 5: 8, 10: 8, 12: 8} | {
    kind: int(name[1]) for kind, name in _TIFF_TYPES.items()
}


def _tiff(data: bytes, most_pixels: int) -> bytes:
    """All of it, if what its directories point to is in the file, hardly overlaps, and is not in too many pieces."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    directories, pointed = [start], 0
    found: dict[int, list[np.ndarray]] = {}  # where a tag stands twice, readers differ in which one counts
    for directory in directories:  # which grows
        for tag, values, size in _entries(data, order, big, directory, strict=directory == start):
            pointed += size
            if pointed > 4 * len(data):
                raise Refusal("has a directory whose entries overlap; save it as PNG")
            if tag in _DIRECTORIES and len(values):
                directories.append(int(values[0]))
            elif directory == start:
                found.setdefault(tag, []).append(values)
        if len(directories) > _MOST_DIRECTORIES:
            raise Refusal(f"has {len(directories)} directories; save it as PNG")

    def numbers(tag: int) -> np.ndarray:
        return np.concatenate([np.zeros(0), *found.get(tag, ())])

    def largest(tag: int) -> int:
        return int(numbers(tag).max(initial=0))

    width, height = largest(_WIDTH), largest(_HEIGHT)
    tile_width, tile_height = largest(_TILE_WIDTH), largest(_TILE_HEIGHT)
    check_size(width, height, most_pixels)
    check_size(tile_width, tile_height, most_pixels)
    pieces = max(len(numbers(tag)) for tag in _OFFSETS)
    if pieces > MAX_PIECES:
        raise Refusal(f"is in {pieces} strips or tiles, and at most {MAX_PIECES} are read; save it as PNG")
    if largest(_COMPRESSION) > 1 and max(numbers(tag).sum() for tag in _BYTE_COUNTS) > 4 * len(data):
        raise Refusal("has strips or tiles that overlap; save it as PNG")
    if np.isin(numbers(_COMPRESSION), _JPEG).any():  # each strip or tile is one
        strip_height = min(largest(_STRIP_HEIGHT) or height, height)
        _check_scans(data.count(b"\xff\xda"), tile_width or width, tile_height or strip_height, most_pixels)
    return data


def _entries(data: bytes, order: str, big: bool, directory: int, strict: bool) -> Iterator[tuple[int, np.ndarray, int]]:
    """The entries of a directory: tag, whole numbers if they are such, and bytes that lie outside of the directory.

    Raises:
        Refusal: when ``strict``, the directory or an entry that pixels depend on is not inside of the file.
    """
    entry, count_bytes, inside = (order + "HHQ8s", 8, 8) if big else (order + "HHI4s", 2, 4)
    count = int.from_bytes(data[directory : directory + count_bytes], "little" if order == "<" else "big")
    at = directory + count_bytes
    if strict and at + count * struct.calcsize(entry) > len(data):
        raise Refusal("cannot be decoded whole: its directory is cut short or damaged; get the file again")
    for place in range(at, min(at + count * struct.calcsize(entry), len(data)), struct.calcsize(entry)):
        if place + struct.calcsize(entry) > len(data):
            return
        tag, kind, number, stored = struct.unpack_from(entry, data, place)
        size = number * _TIFF_BYTES.get(kind, 0)
        if size > inside:
            (start,) = struct.unpack(order + ("Q" if big else "I"), stored)
            if start + size > len(data):
                if strict and tag < 1 << 15:  # private ones have the higher numbers
                    raise Refusal(
                        f"cannot be decoded whole: its tag {tag} lies outside of the file; get the file again"
                    )
                continue
            stored = data[start : start + size]
        values = np.frombuffer(stored[:size], order + _TIFF_TYPES[kind]) if kind in _TIFF_TYPES else np.empty(0)
        yield tag, values, size if size > inside else 0


_FORMATS: dict[bytes, Callable[[bytes, int], bytes]] = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"RIFF.{4}WEBP": _webp,
    rb"GIF8[79]a": _gif,
    rb"BM": _bmp,
    rb"II\*\0|MM\0\*|MM\*\0|II\0\*|II\+\0": _tiff,
    rb"P[0-6fy]": _ppm,
}
