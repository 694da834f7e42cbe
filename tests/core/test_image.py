"""Opening a picture: whole files of every format, from every kind of source, with the pixels Pillow gives."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pytest
from PIL import Image

from clip_core import image as module
from clip_core.errors import ImageError
from clip_core.image import FORMATS, SUFFIXES, open_image

FRAMES = [Image.new("RGB", (20, 10), colour) for colour in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]


def noise(mode: str = "RGB", width: int = 33, height: int = 21) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_the_pixels_of_pillow(kind):
    data = encoded(noise("P" if kind == "GIF" else "RGB"), kind)
    expected = Image.open(io.BytesIO(data))
    found = open_image(data)
    assert found.mode == expected.mode
    assert found.size == (33, 21)
    assert found.tobytes() == expected.tobytes()
    if kind not in ("JPEG", "WEBP"):  # which lose a little
        assert found.convert("RGB").tobytes() == noise("P" if kind == "GIF" else "RGB").convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_keeps_its_mode(mode):
    image = noise(mode)
    found = open_image(encoded(image, "PNG"))
    assert found.mode == mode
    assert found.tobytes() == image.tobytes()


def deep_png(mode: str) -> bytes:
    """The noise in 16 bits per channel, as a PNG, which Pillow does not write in colour."""
    values = np.asarray(noise(mode)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 33, 21, 16, {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def grey_values() -> np.ndarray:
    """The values of a grey picture, in which 0 and 255 occur."""
    values = np.asarray(noise("L")).copy()
    values[0, :2] = 0, 255
    return values


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_16_bits_of_png_give_the_picture_of_8(mode):
    found = open_image(deep_png(mode))
    assert found.format == "PNG"
    assert found.convert("RGBA").tobytes() == noise(mode).convert("RGBA").tobytes()  # Pillow makes LA RGBA itself


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_16_bits_of_grey_give_the_picture_of_8(kind):
    values = grey_values().astype(np.uint16) * 257
    pgm = b"P5 33 21 65535\n" + values.astype(">u2").tobytes()
    found = open_image(pgm if kind == "PPM" else encoded(Image.fromarray(values), kind))
    assert np.array_equal(np.asarray(found), grey_values())


def test_a_pgm_of_12_bits_is_scaled_to_its_own_white():
    values = np.rint(grey_values() * (4095 / 255)).astype(">u2")
    found = np.asarray(open_image(b"P5 33 21 4095\n" + values.tobytes())).astype(int)
    assert (found.min(), found.max()) == (0, 255)
    assert np.abs(found - grey_values()).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "factor", "white"), [("i4", 257, 65535), ("i4", 1, 255), ("f4", 1 / 255, 1), ("f4", 1, 255)]
)
def test_32_bits_are_converted_by_the_range_they_fit_in_with_a_warning(dtype, factor, white, tmp_path):
    deep = Image.fromarray((grey_values().astype(float) * factor).astype(dtype))
    deep.save(tmp_path / "deep.tif")
    with pytest.warns(
        UserWarning, match=rf"deep\.tif has values from 0 to .*, of which {white} is taken to be white\."
    ):
        assert np.array_equal(np.asarray(open_image(tmp_path / "deep.tif")), grey_values())


def tiff(values: np.ndarray, black: int, kind: int) -> bytes:
    """A grey TIFF of one strip; ``black`` is 0 where 0 is white, and ``kind`` 1 unsigned, 2 signed or 3 floats."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    bits = 8 * values.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: black, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: kind}).items()]
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 10) + b"".join(entries) + bytes(4)


@pytest.mark.filterwarnings("ignore:.* has values from 0 to .* is taken to be white")
@pytest.mark.parametrize("black", [0, 1])
def test_a_tiff_in_which_0_is_white_gives_the_same_picture_with_any_number_of_bits(black):
    grey = grey_values()
    expected = grey if black else 255 - grey
    for values, kind in [(grey, 1), (grey.astype("u2") * 257, 1), ((grey / 255).astype("f4"), 3)]:
        found = open_image(tiff(values, black, kind))
        assert np.array_equal(np.asarray(found), expected)


def test_a_tiff_with_signed_values_is_refused():
    with pytest.raises(ImageError, match="signed values of 8 bits, and nothing says which is black; save it unsigned"):
        open_image(tiff(grey_values().astype("i1"), 1, 2))
    with pytest.raises(ImageError, match="has values from -128 to 127, and nothing says which of them is white"):
        open_image(tiff(grey_values().astype("i1").astype("i2"), 1, 2))


def test_suffixes_are_those_that_pillow_knows_for_the_formats():
    Image.init()
    assert set(SUFFIXES) == {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    data = encoded(noise(), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    stream = io.BytesIO(data)
    stream.seek(7)  # read from the beginning wherever it stands
    with open(path, "rb") as file:
        for source in (path, str(path), data, stream, file):
            assert open_image(source).tobytes() == noise().tobytes()


class Pipe(io.RawIOBase):
    """A stream that cannot seek; ``rest`` is what nobody has read yet."""

    def __init__(self, data: bytes):
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def test_streams_that_cannot_seek_are_read_from_where_they_are():
    assert open_image(io.BufferedReader(Pipe(encoded(noise(), "PNG")))).tobytes() == noise().tobytes()


def test_uploads_kept_in_memory_work():
    with SpooledTemporaryFile() as upload:
        upload.write(encoded(noise(), "PNG"))
        assert open_image(upload).tobytes() == noise().tobytes()


def test_streams_are_not_read_far_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    pipe = Pipe(bytes(10**6))
    with pytest.raises(ImageError, match="has more than 100 bytes, the limit; save it in a smaller size"):
        open_image(io.BufferedReader(pipe))
    assert len(pipe.rest) > 900_000


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_or_page_of_a_document_counts(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).convert("RGB").tobytes() == FRAMES[0].tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    assert open_image(data).tobytes() == open_image(encoded(noise(), "JPEG")).tobytes()


def test_content_decides_whatever_the_name_says(tmp_path):
    path = tmp_path / "picture.gif"
    path.write_bytes(encoded(noise(), "PNG"))
    found = open_image(path)
    assert found.format == "PNG"
    assert found.tobytes() == noise().tobytes()


def test_unicode_names_work(tmp_path):
    path = tmp_path / "снимок 猫 🐈.png"
    path.write_bytes(encoded(noise(), "PNG"))
    assert open_image(path).tobytes() == noise().tobytes()


def test_the_picture_does_not_keep_the_file_open(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(), "PNG"))
    image = open_image(path)
    path.write_bytes(b"")
    assert image.tobytes() == noise().tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_pixel_limit_counts_what_is_declared(kind, monkeypatch):
    data = encoded(noise("P" if kind == "GIF" else "RGB"), kind)
    monkeypatch.setattr(module, "MAX_PIXELS", 33 * 21)
    assert open_image(data).size == (33, 21)
    monkeypatch.setattr(module, "MAX_PIXELS", 33 * 21 - 1)
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert str(caught.value) == (
        "The picture given as bytes has 33 x 21 pixels; the limit is 692: save it in a smaller size."
    )


@pytest.mark.parametrize(
    ("layout", "options"),
    [(b"VP8 ", {}), (b"VP8L", {"lossless": True}), (b"VP8X", {"icc_profile": b"any"})],
)
def test_webp_of_each_layout_is_measured_before_it_is_opened(layout, options, monkeypatch):
    def opened_too_early(*arguments, **options):
        pytest.fail("Pillow's reader reserves the canvas on opening")

    data = encoded(Image.new("RGB", (1234, 567)), "WEBP", **options)
    assert data[12:16] == layout
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    monkeypatch.setattr(module.Image, "open", opened_too_early)
    with pytest.raises(ImageError, match="has 1234 x 567 pixels; the limit is 1000"):
        open_image(data)


def test_file_size_limit(tmp_path, monkeypatch):
    data = encoded(noise(), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", len(data))
    for source in (path, data, io.BytesIO(data)):
        assert open_image(source).size == (33, 21)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", len(data) - 1)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(ImageError, match=str(len(data) - 1)):
            open_image(source)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], np.zeros((4, 4, 3), np.uint8)])
def test_other_sources_are_refused_by_type(source):
    message = f"^A picture was given as {type(source).__name__}; give a path, bytes or a binary file.$"
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_text_and_closed_streams_are_refused():
    with pytest.raises(ImageError, match="was opened as text; open it in binary mode"):
        open_image(io.StringIO("picture"))  # type: ignore[arg-type]
    closed = io.BytesIO(b"picture")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read: I/O operation on closed file"):
        open_image(closed)


def test_missing_file_is_named():
    with pytest.raises(ImageError, match=r"missing/cat\.png.*: No such file or directory"):
        open_image(Path("missing/cat.png"))
