"""Pictures that are damaged, oversized, disguised or not pictures: one `ImageError` each, in bounded memory.

Every bad file is built here, so that a reader sees what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import clip_core
from clip_core.errors import ImageError
from clip_core.image import MAX_PIXELS, open_image
from clip_core.inputs import check_pixels
from clip_core.pixels import DEVIATION, MEAN
from clip_core.preprocess import preprocess
from tests.hostile.image_attacks import chunk, encoded, png, tiff, waves, webp

WHOLE = {
    "png": encoded(waves(), "PNG"),
    "png-palette": encoded(waves("P"), "PNG", transparency=3),
    "jpeg": encoded(waves(), "JPEG"),
    "jpeg-progressive": encoded(waves(), "JPEG", progressive=True),
    "webp": encoded(waves(), "WEBP"),
    "webp-lossless": encoded(waves("RGBA"), "WEBP", lossless=True),
    "gif": encoded(waves("P"), "GIF"),
    "bmp": encoded(waves(), "BMP"),
    "tiff": encoded(waves(), "TIFF"),
    "tiff-lzw": encoded(waves(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encoded(waves(), "TIFF", compression="tiff_adobe_deflate"),
    "ppm": encoded(waves(), "PPM"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_gives_the_whole_picture_or_an_error(name):
    data = WHOLE[name]
    whole = open_image(data).tobytes()
    refused, sentences = 0, set()
    for length in range(len(data)):
        try:
            with warnings.catch_warnings(record=True) as said:  # else they are errors, which would be refusals
                warnings.simplefilter("always")
                image = open_image(data[:length])
        except ImageError as error:
            refused += 1
            sentences.add(str(error))
        else:
            assert image.tobytes() == whole, f"cut after {length} of {len(data)} bytes"
        assert not said, f"cut after {length} of {len(data)} bytes: {said[0].message}"
    assert all(sentence.startswith("The picture given as bytes ") for sentence in sentences)
    assert refused >= 0.8 * len(data) - 200  # what may be missing is a trailer: the end mark, the table of a TIFF


@pytest.mark.parametrize("name", WHOLE)
def test_a_changed_byte_anywhere_gives_a_picture_or_an_error(name):
    data = WHOLE[name]
    refused = 0
    for place in range(len(data)):
        try:
            pixels = preprocess(open_image(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]), 8)
        except ImageError:
            refused += 1
        else:
            assert np.isfinite(pixels).all()
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.png", b"", r"is empty; give a picture \(PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM\)\."),
        (
            "page.jpg",
            b"\n<!DOCTYPE html><html><title>404 Not Found</title><svg></svg></html>",
            r"is text, perhaps a saved web page, or its header is damaged; give one of PNG, JPEG, .*\.",
        ),
        (
            "signature.png",
            b"\x89PNG\r\n\x1a\n",
            "is not a picture, or its header is damaged; give one of PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM.",
        ),
        (
            "half.jpg",
            WHOLE["jpeg"][:-40],
            r"cannot be decoded whole: image file is truncated \(\d+ bytes not processed\); it is cut short or "
            r"damaged, get the file again\.",
        ),
    ],
)
def test_the_sentence_names_the_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"^{re.escape(str(path))} {message}$"):
        open_image(path)


# Formats that are often given, and that can start a program, run a script, are fragile, or are not in every Pillow.
OTHER_FORMATS = {
    "eps": encoded(waves(), "EPS"),
    "pdf": encoded(waves(), "PDF"),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 9, 9, 8, 3) + b"\0" * 12 + struct.pack(">H", 0) + b"\0" * 243,
    "fits": b"".join(
        f"{key:8}= {value:20}".encode().ljust(80)
        for key, value in [("SIMPLE", "T"), ("BITPIX", "8"), ("NAXIS", "2"), ("NAXIS1", "9"), ("NAXIS2", "9")]
    )
    + b"END".ljust(2480)
    + b"\0" * 81,
    "wmf": b"\xd7\xcd\xc6\x9a\0\0"
    + struct.pack("<hhhhHIH", 0, 0, 90, 90, 90, 0, 0)
    + b"\x01\0\x09\0"
    + struct.pack("<HIHIH", 0x300, 9, 0, 3, 0),
    "ico": encoded(waves(width=16, height=16), "ICO"),
    "icns": encoded(waves(width=16, height=16), "ICNS"),
    "jpeg2000": encoded(waves(), "JPEG2000"),
    "j2k": encoded(waves(), "JPEG2000", no_jp2=True),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf",
    "tga": encoded(waves(), "TGA", compression="tga_rle"),
    "tga-grey": encoded(waves("L"), "TGA")[: -len("TRUEVISION-XFILE. ")],  # an old one has no such mark at its end
    "tga-palette": encoded(waves("P"), "TGA"),
    "pcx": encoded(waves(), "PCX"),
    "dds": encoded(waves(), "DDS"),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "jxl": b"\xff\x0a\xfa\x1f",
    "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0",
    "svg-bare": b"<!-- by hand -->\n<svg/>",
    "svgz": gzip.compress(b"<svg/>"),
    "zip": b"PK\3\4\x14\0\0\0",
    "npy": b"\x93NUMPY\1\0",
    "bigtiff": b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10",
}
SAID = {
    "eps": "a PostScript drawing",
    "pdf": "a PDF document",
    "svg": "an SVG drawing",
    "psd": "a Photoshop document",
    "fits": "a FITS picture",
    "wmf": "a Windows metafile",
    "ico": "an icon (ICO)",
    "icns": "an Apple icon (ICNS)",
    "jpeg2000": "a JPEG 2000 picture",
    "j2k": "a JPEG 2000 picture",
    "avif": "an AVIF picture",
    "tga": "a TGA picture",
    "tga-grey": "a TGA picture",
    "tga-palette": "a TGA picture",
    "pcx": "a PCX picture",
    "dds": "a DirectDraw surface (DDS)",
    "heic": "a HEIC picture",
    "jxl": "a JPEG XL picture",
    "mp4": "a video",
    "svg-bare": "an SVG drawing",
    "svgz": "a gzip archive",
    "zip": "a zip archive",
    "npy": "a NumPy file",
    "bigtiff": "a BigTIFF picture in big-endian order",
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_other_formats_are_refused_by_their_name_whatever_the_files(tmp_path, kind):
    path = tmp_path / "picture.png"
    path.write_bytes(OTHER_FORMATS[kind])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value) == f"{path} is {SAID[kind]}, which is not read here; save it as PNG or JPEG."


BOMBS = {
    "400-megapixels.png": png(20000, 20000, pixels=b""),
    "100-megapixels.png": png(10000, 10000, pixels=b""),
    "100-megapixels.gif": b"GIF89a" + struct.pack("<HH", 10000, 10000) + WHOLE["gif"][10:],
    "100-megapixels-in-a-frame.gif": WHOLE["gif"].replace(
        b"," + struct.pack("<HHHH", 0, 0, 19, 14), b"," + struct.pack("<HHHH", 0, 0, 10000, 10000)
    ),
    "100-megapixels.bmp": WHOLE["bmp"].replace(struct.pack("<ii", 19, 14), struct.pack("<ii", 10000, -10000)),
    "100-megapixels.ppm": b"P6 # a comment\n10000 10000 255\n" + b"\0" * 100,
    "100-megapixels.tiff": tiff(10000, 10000),
    "100-megapixels.jpg": WHOLE["jpeg"].replace(struct.pack(">HH", 14, 19), struct.pack(">HH", 10000, 10000)),
    "just-above.png": png(8192, 8193, pixels=b""),
    "large.jpg": WHOLE["jpeg"].replace(struct.pack(">HH", 14, 19), b"\xff\xff\xff\xff"),
    "large.gif": b"GIF89a" + b"\xff\xff\xff\xff" + WHOLE["gif"][10:],
    "large.bmp": WHOLE["bmp"].replace(struct.pack("<ii", 19, 14), struct.pack("<ii", 40000, 40000)),
    "large.ppm": b"P6 40000 40000 255\n" + b"\0" * 100,
    "large.tiff": tiff(40000, 40000),
    "canvas.webp": webp(b"VP8X", b"\0\0\0\0" + b"\xff\xff\x00" * 2) + WHOLE["webp"][12:],
    "lossless.webp": webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + b"\0" * 8),
    "lossy.webp": webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + b"\0" * 8),
}
LONG_AND_NARROW = {"column.png": png(1, 60000), "row.png": png(60000, 1)}
METADATA_BOMBS = {
    "text.png": png(9, 9, *[chunk(b"tEXt", b"key\0" + b"x" * 2**20)] * 60),
    "many-texts.png": png(9, 9, *[chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 2**20))] * 65),
    "compressed-text.png": png(9, 9, chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 2**26))),
    "international-text.png": png(9, 9, chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * 2**26))),
    "profile.png": png(9, 9, chunk(b"iCCP", b"key\0\0" + zlib.compress(b"x" * 2**26))),
}

OPEN_IN_LITTLE_MEMORY = """
import json, resource, sys, warnings
from pathlib import Path
from clip_core.errors import ImageError
from clip_core.image import open_image
from clip_core.preprocess import preprocess
from PIL import Image

Image.init()
warnings.simplefilter("ignore")
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 192 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
said = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        preprocess(open_image(path), 224)
        said[path.name] = "decoded"
    except ImageError as error:
        said[path.name] = str(error)
print(json.dumps(said))
"""


def test_bombs_are_refused_in_little_memory(tmp_path):
    """192 MiB more than the interpreter has: less than any of these pictures needs."""
    files = {**BOMBS, **LONG_AND_NARROW, **METADATA_BOMBS, "good.png": WHOLE["png"]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", OPEN_IN_LITTLE_MEMORY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(clip_core.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    assert said.keys() == files.keys()
    assert said["good.png"] == "decoded"
    for name in BOMBS:
        assert said[name].startswith(f"{tmp_path / name} "), said[name]
        assert f"; the limit is {MAX_PIXELS}: save it in" in said[name], said[name]
    for name in LONG_AND_NARROW:
        assert "resized to 224 along its shorter side it has 3010560000 pixels" in said[name], said[name]
    for name in METADATA_BOMBS:
        assert said[name] == "decoded", said[name]


@pytest.mark.parametrize("name", [name for name in BOMBS if name.startswith("100")])
def test_a_large_picture_is_refused_before_pillow_warns_of_it(name):
    with pytest.raises(ImageError, match="has 10000 x 10000 pixels"):  # the warning would be another error
        open_image(BOMBS[name])


def test_a_lower_limit_of_pillows_is_respected_and_said(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ImageError, match=r"has more pixels than Pillow is allowed to open: .*\. Save it in a smaller size"
    ):
        open_image(WHOLE["png"])


def test_damaged_metadata_does_not_stop_a_whole_picture():
    plain = open_image(WHOLE["jpeg"]).tobytes()
    bad_profile = open_image(encoded(waves(), "JPEG", icc_profile=b"not a profile"))
    assert bad_profile.tobytes() == plain
    # An EXIF table of 9999 entries, of which none is there, in a file without a resolution, where Pillow looks for one.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x0f\x27"
    start = WHOLE["jpeg"].index(b"\xff\xdb")
    broken = WHOLE["jpeg"][:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + WHOLE["jpeg"][start:]
    assert open_image(broken).tobytes() == plain
    for extra in (
        chunk(b"iCCP", b"key\0\0not compressed"),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        chunk(b"teXt", b"?"),
    ):
        assert open_image(png(5, 4, extra)).tobytes() == bytes(20)


def official(image: Image.Image) -> np.ndarray:
    steps = [Resize(16, interpolation=InterpolationMode.BICUBIC), CenterCrop(16), lambda image: image.convert("RGB")]
    return Compose([*steps, ToTensor(), Normalize(MEAN, DEVIATION)])(image).numpy()


UNUSUAL = {
    "1-bit.png": encoded(waves("1"), "PNG"),
    "grey.jpg": encoded(waves("L"), "JPEG"),
    "grey-alpha.png": encoded(waves("LA"), "PNG"),
    "palette-index.png": encoded(waves("P"), "PNG", transparency=3),
    "palette-table.png": encoded(waves("P"), "PNG", transparency=bytes(range(256))),
    "transparent-colour.png": encoded(waves(), "PNG", transparency=(1, 2, 3)),
    "nothing-but-alpha.png": encoded(Image.new("RGBA", (19, 14), (200, 100, 50, 0)), "PNG"),
    "cmyk.jpg": encoded(waves("CMYK"), "JPEG"),
    "cmyk.tiff": encoded(waves("CMYK"), "TIFF"),
    "lab.tiff": encoded(waves("LAB"), "TIFF"),
    "animation.gif": encoded(waves("P"), "GIF", save_all=True, append_images=[waves("L")]),
    "animation.webp": encoded(waves(), "WEBP", save_all=True, append_images=[waves("L").convert("RGB")]),
    "animation.png": encoded(waves(), "PNG", save_all=True, append_images=[waves("L").convert("RGB")]),
    "pages.tiff": encoded(waves(), "TIFF", save_all=True, append_images=[waves("L")]),
    "turned.tiff": encoded(waves(), "TIFF", tiffinfo={0x112: 6}),
    "one-pixel.png": encoded(waves(width=1, height=1), "PNG"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, in the official transform
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_give_the_pixels_of_the_official_transform(name):
    found = preprocess(open_image(UNUSUAL[name]), 16)
    assert found.tobytes() == official(Image.open(io.BytesIO(UNUSUAL[name]))).tobytes()


def test_paths_that_are_not_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    for path, message in [
        (tmp_path / "pipe.png", r"pipe\.png is not a regular file; give the name of a file\.$"),
        (tmp_path / "folder.png", r"folder\.png is not a regular file; give the name of a file\.$"),
        (tmp_path / "loop.png", r"loop\.png.*: Too many levels of symbolic links"),
        (Path("/dev/zero"), r"^/dev/zero is not a regular file; give the name of a file\.$"),
        ("cat\0.png", r"cat.*\.png.* cannot be read: "),
        ("x" * 300, r"x{300}.*: File name too long"),
        ("", "No such file or directory"),
        ("cat\udcff.png", "No such file or directory"),
        (
            Path("https://example.com/cat.png"),
            r"^https://example\.com/cat\.png is an address, which is not fetched here",
        ),
        ("http://example.com/cat.png", r"^http://example\.com/cat\.png is an address, which is not fetched here; down"),
    ]:
        with pytest.raises(ImageError, match=message):
            open_image(path)


def normalised(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(dtype)


def with_value(value: float) -> np.ndarray:
    array = normalised()
    array[1, 2, 3, 4] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[1.0]], "The pixels were given as list; give a float32 array."),
        (
            np.zeros((2, 3, 8, 8), np.uint8),
            "The pixels have dtype uint8, expected float32, float16 or float64; pass the pictures through preprocess.",
        ),
        (
            normalised().astype(np.int64),
            "The pixels have dtype int64, expected float32, float16 or float64; convert them to float32.",
        ),
        (
            normalised().astype(np.complex64),
            "The pixels have dtype complex64, expected float32, float16 or float64; convert them to float32.",
        ),
        (
            normalised().transpose(0, 2, 3, 1),
            "The pixels have shape (2, 8, 8, 3), expected (n, 3, 8, 8); the colour channels come first.",
        ),
        (normalised()[0], "The pixels have shape (3, 8, 8), expected (n, 3, 8, 8); add a batch axis in front."),
        (normalised()[:, :, :7], "The pixels have shape (2, 3, 7, 8), expected (n, 3, 8, 8)."),
        (normalised()[:, :1], "The pixels have shape (2, 1, 8, 8), expected (n, 3, 8, 8)."),
        (
            with_value(np.nan),
            "The pixels of picture 1 (counted from 0) are not all finite float32 numbers; find out where the NaN or "
            "infinity comes from.",
        ),
        (
            with_value(-np.inf),
            "The pixels of picture 1 (counted from 0) are not all finite float32 numbers; find out where the NaN or "
            "infinity comes from.",
        ),
        (
            with_value(255),
            "The pixels reach 255, expected normalised ones from -2 to 2.5; if they run from 0 to 255, pass the "
            "pictures through preprocess.",
        ),
    ],
)
def test_arrays_that_are_not_pixels_are_refused(array, message):
    with pytest.raises(ImageError) as caught:
        check_pixels(array, 8)
    assert str(caught.value) == message


def test_arrays_in_any_memory_layout_work_and_are_not_written_to():
    strided = np.repeat(normalised(), 2, axis=3)[..., ::2]
    reversed_ = np.ascontiguousarray(normalised()[:, :, ::-1])[:, :, ::-1]
    read_only = normalised()
    read_only.flags.writeable = False
    big_endian = normalised().astype(">f4")
    for array in (strided, reversed_, np.asfortranarray(normalised()), read_only, big_endian):
        found = check_pixels(array, 8)
        assert np.array_equal(found, normalised())
        assert found.flags.c_contiguous
        assert found.dtype == np.dtype("=f4")
