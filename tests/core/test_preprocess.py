"""Preprocessing is byte for byte that of OpenAI's torchvision transform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms.functional import normalize, resized_crop, to_tensor

from clip_core import preprocess as module
from clip_core.data.augmentation import Augmentation
from clip_core.errors import ClipError, ImageError
from clip_core.pixels import DEVIATION, MEAN, Pixels
from clip_core.preprocess import RandomResizedCrop, pixels, preprocess, resize

MODES = (
    *("RGB", "RGBA", "RGBX", "LA", "L", "P", "P transparent by index", "P transparent by table", "PA", "1"),
    *("CMYK", "YCbCr", "LAB", "HSV"),
)


def official(resolution: int) -> Compose:
    return Compose(
        [
            Resize(resolution, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(resolution),
            lambda image: image.convert("RGB"),
            ToTensor(),
            Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )


@contextmanager
def pillow(first: str) -> Iterator[None]:
    """Pillow filters along this axis first, ``width`` as up to version 12 or ``height`` as version 13 may."""
    one_axis = Image.Image.resize

    def both_axes(self: Image.Image, size: Any, resample: Any = Image.Resampling.BICUBIC, *rest: Any) -> Image.Image:
        assert not any(rest), "only whole pictures are resized here"
        size, mode = tuple(size), self.mode
        if size == self.size:
            return self.copy()
        if mode in ("LA", "RGBA") and resample != Image.Resampling.NEAREST:
            return both_axes(self.convert({"LA": "La", "RGBA": "RGBa"}[mode]), size, resample).convert(mode)
        between = (size[0], self.height) if first == "width" else (self.width, size[1])
        return one_axis(one_axis(self, between, resample), size, resample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", both_axes)
        yield


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """A picture of smooth waves on the left and noise on the right, which overshoot the range when resized."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = 127.5 + 127.5 * np.sin(np.stack([rows / 7, columns / 5, (rows + columns) / 9, rows / 3], axis=-1) + seed)
    noise = generator.integers(0, 256, (height, width, 4))
    bytes_ = np.where((columns < width / 2)[..., None], waves, noise).astype(np.uint8)
    grey = bytes_[..., 0]
    if mode.startswith("P") and mode != "PA":
        image = Image.fromarray(grey).convert("P")
        image.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
        if mode.endswith("index"):
            image.info["transparency"] = 3
        if mode.endswith("table"):
            image.info["transparency"] = generator.integers(0, 256, 256, dtype=np.uint8).tobytes()
        return image
    if mode == "PA":
        image = Image.new("PA", (width, height))
        image.putdata(list(zip(grey.ravel().tolist(), bytes_[..., 1].ravel().tolist())))
        image.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "1":
        return Image.fromarray(grey).convert("1")
    channels = len(Image.new(mode, (1, 1)).getbands())
    raw = bytes_[..., :channels] if channels > 1 else grey
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(raw).tobytes())


def odd_sizes() -> list[tuple[int, int]]:
    """200 sizes: every shape around the resolution, single rows and columns, and the rest drawn once for all."""
    chosen = [(1, 1), (1, 7), (9, 1), (2, 3), (63, 64), (64, 63), (64, 64), (65, 64), (64, 65), (67, 64), (3, 300)]
    generator = np.random.default_rng(20260101)
    return chosen + [tuple(size) for size in generator.integers(1, 260, (200 - len(chosen), 2)).tolist()]


def assert_equal(image: Image.Image, resolution: int) -> None:
    with pillow("width"):
        expected = official(resolution)(image.copy()).numpy()
    found = preprocess(image, resolution)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.shape == (3, resolution, resolution)
    assert found.tobytes() == expected.tobytes(), (image.mode, image.size, np.abs(found - expected).max())


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, in the official transform
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_official_transform(mode):
    for resolution, (width, height) in [
        *((32, size) for size in [(1, 1), (31, 33), (32, 32), (33, 32), (47, 90), (211, 40), (3, 400)]),
        (64, (150, 97)),
        (224, (223, 224)),
    ]:
        assert_equal(picture(mode, width, height, seed=width), resolution)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_200_odd_sizes_equal_the_official_transform(mode):
    for place, (width, height) in enumerate(odd_sizes()):
        assert_equal(picture(mode, width, height, seed=place), (32, 64)[place % 2])


@pytest.mark.parametrize(("width", "height"), [(640, 480), (223, 224), (225, 224), (224, 224), (100, 60), (1201, 399)])
def test_photograph_sizes_at_224_equal_the_official_transform(width, height):
    assert_equal(picture("RGB", width, height, seed=1), 224)


@pytest.mark.parametrize("mode", MODES)
def test_pillow_filters_along_the_axes_as_these_tests_assume(mode):
    """Its own result is that of one of both orders, and up to version 12 always that of the width first."""
    image = picture(mode, 40, 190, seed=2)
    orders = ("width",) if int(PIL.__version__.split(".")[0]) < 13 else ("width", "height")
    for size in [(32, 32), (32, 152), (40, 32), (20, 190), (40, 190), (90, 210)]:
        for resampling in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST):
            expected = []
            for first in orders:
                with pillow(first):
                    expected.append(attempt(Image.Image.resize, image, size, resampling))
            assert attempt(Image.Image.resize, image, size, resampling) in expected
            assert attempt(resize, image, size, resampling) == expected[0]


def attempt(resizing: Any, image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Any:
    """The resized picture's mode, palette and bytes, or the kind of the error."""
    try:
        found = resizing(image, size, resampling)
    except (ValueError, OSError) as error:
        return type(error)
    return found.mode, found.size, found.getpalette(), found.info, found.tobytes()


@pytest.mark.parametrize("first", ["width", "height"])
@pytest.mark.parametrize(("width", "height"), [(1080, 2340), (1170, 2532), (600, 1300), (97, 301)])
def test_pixels_do_not_depend_on_the_axis_that_pillow_takes_first(width, height, first):
    image = picture("RGB", width, height, seed=6)
    crops = RandomResizedCrop((0.3, 0.9), (0.2, 0.5)), Augmentation(crop="resized", scale=(0.3, 0.9), ratio=(0.2, 0.5))

    def one_step(size: tuple[int, int]) -> bytes:
        return image.resize(size, Image.Resampling.BICUBIC).tobytes()

    def found() -> list[bytes]:
        drawn = [crop(image, 32, np.random.default_rng(3)).tobytes() for crop in crops]
        return [preprocess(image, 224).tobytes(), resize(image, (64, 64)).tobytes(), *drawn]

    with pillow("width"):
        expected = [official(224)(image).numpy().tobytes(), one_step((64, 64)), *found()[2:]]
    with pillow(first):
        assert found() == expected
        assert (one_step((64, 64)) == expected[1]) is (first == "width")  # the order is seen in these pictures


def test_crop_rounds_half_pixels_to_even_offsets():
    # The longer side exceeds the crop by 1, 3, 5 and 7 pixels: offsets of 0.5, 1.5, 2.5 and 3.5 become 0, 2, 2 and 4.
    ramp = np.arange(40, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(3, 2)
    for height, offset in [(33, 0), (35, 2), (37, 2), (39, 4)]:
        found = preprocess(Image.fromarray(ramp[:height]), 32)
        assert np.rint((found[0, 0, 0] * DEVIATION[0] + MEAN[0]) * 255) == offset
        assert_equal(Image.fromarray(ramp[:height]), 32)


def test_colours_are_blended_before_the_conversion_to_rgb():
    """A transparent red pixel beside an opaque blue one leaves no red: converting first would."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (32, 0, 64, 64))
    first = preprocess(image.convert("RGB"), 32)
    last = preprocess(image, 32)
    assert_equal(image, 32)
    assert (first[0, 16, 15] - last[0, 16, 15]) > 0.1


def test_any_of_the_256_values_is_the_official_float():
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(256, 0).repeat(3, 2)
    assert_equal(Image.fromarray(ramp), 256)


@pytest.mark.filterwarnings("ignore:The picture has values from 0 to .* is taken to be white")
@pytest.mark.parametrize(
    ("mode", "dtype", "factor"),
    [
        *(("I;16", "<u2", 257), ("I;16B", ">u2", 257), ("I", "i4", 257), ("I", "i4", 1)),
        *(("F", "f4", 1 / 255), ("F", "f4", 1), ("F", "f4", 257)),
    ],
)
def test_more_than_8_bits_give_the_pixels_of_8(mode, dtype, factor):
    grey = picture("L", 47, 90, seed=1)
    values = np.asarray(grey).copy()
    values[0, :2] = 0, 255  # so that the whole range occurs
    grey = Image.fromarray(values)
    deep = Image.frombytes(mode, (47, 90), (values.astype(float) * factor).astype(dtype).tobytes())
    assert preprocess(deep, 32).tobytes() == preprocess(grey, 32).tobytes()
    crop = RandomResizedCrop((0.3, 0.9))
    of_both = [crop(image, 32, np.random.default_rng(0)).tobytes() for image in (deep, grey)]
    assert of_both[0] == of_both[1]


def test_a_guessed_or_hardly_used_range_is_said():
    for mode, dtype, values, message in [
        ("I", "i4", (0, 300), "^The picture has values from 0 to 300, of which 65535 is taken to be white"),
        ("F", "f4", (0, 0.5), "^The picture has values from 0 to 0.5, of which 1 is taken to be white"),
        ("I;16", "<u2", (0, 4095), "^The picture has values up to 4095 of 65535, so it is nearly black; scale it"),
    ]:
        deep = Image.frombytes(mode, (2, 1), np.array(values, dtype).tobytes())
        with pytest.warns(UserWarning, match=message):
            preprocess(deep, 8)
    preprocess(Image.frombytes("I;16", (2, 1), np.array((0, 4096), "<u2").tobytes()), 8)  # without a warning
    for mode, dtype, values in [("I", "i4", (-1, 9)), ("I", "i4", (0, 65536)), ("F", "f4", (0, np.nan))]:
        deep = Image.frombytes(mode, (2, 1), np.array(values, dtype).tobytes())
        with pytest.raises(
            ImageError, match=r"^The picture has values from .* and nothing says which of them is white;"
        ):
            preprocess(deep, 8)


def test_picture_is_left_as_it_was():
    image = picture("P transparent by table", 40, 50, seed=3)
    before, transparency = image.tobytes(), image.info["transparency"]
    first = preprocess(image, 32)
    assert image.tobytes() == before
    assert image.info["transparency"] == transparency
    assert np.array_equal(preprocess(image, 32), first)


def test_pixels_stacks_pictures_of_different_modes_and_sizes():
    images = [picture("RGB", 70, 50, 1), picture("L", 33, 90, 2), picture("RGBA", 64, 64, 3)]
    found = pixels(images, 64)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.stack([preprocess(image, 64) for image in images]))
    assert pixels([], 64).shape == (0, 3, 64, 64)


def test_pixels_names_the_picture_at_fault():
    with pytest.raises(ImageError, match=r"^Picture 1 of 2 \(counted from 0\): A picture was given as str; give a PIL"):
        pixels([picture("RGB", 5, 5, 1), "cat.png"], 32)  # type: ignore[list-item]


def test_refuses_what_the_official_transform_refuses():
    for image in (Image.new("La", (40, 40)), Image.new("RGB", (0, 5)), Image.new("RGB", (5, 0))):
        with pytest.raises((ValueError, ZeroDivisionError)):
            official(32)(image)
        with pytest.raises(ImageError):
            preprocess(image, 32)
    with pytest.raises(
        ImageError, match=r"^A picture of mode La and 40 x 40 pixels cannot be .*; give it in mode RGB\.$"
    ):
        preprocess(Image.new("La", (40, 40)), 32)


def test_long_and_narrow_pictures_are_bounded_by_their_resized_size(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 32 * 320)
    for size in [(10, 100), (100, 10)]:
        assert_equal(Image.new("RGB", size, (1, 200, 90)), 32)  # 32 x 320 is just allowed
    for size in [(10, 101), (101, 10)]:
        message = (
            rf"A picture of {size[0]} x {size[1]} pixels is too long and narrow: resized to 32 along its shorter side "
            r"it has 10336 pixels, and the limit is 10240; crop it first\."
        )
        with pytest.raises(ImageError, match=message):
            preprocess(Image.new("RGB", size), 32)


@pytest.mark.parametrize("resampling", ["BILINEAR", "BICUBIC"])
def test_random_crop_is_the_resized_part_it_says(resampling):
    augment = RandomResizedCrop((0.3, 0.9), resampling=Image.Resampling[resampling])
    image = picture("RGB", 97, 61, seed=4)
    for seed in range(20):
        left, top, right, bottom = augment.box(97, 61, np.random.default_rng(seed))
        with pillow("width"):
            part = resized_crop(image, top, left, bottom - top, right - left, [32, 32], InterpolationMode[resampling])
        expected = normalize(to_tensor(part), MEAN, DEVIATION).numpy()
        assert augment(image, 32, np.random.default_rng(seed)).tobytes() == expected.tobytes()


def test_random_crop_draws_within_its_bounds_and_all_over_the_picture():
    augment = RandomResizedCrop((0.2, 0.5), (0.5, 2.0))
    generator = np.random.default_rng(5)
    boxes = np.array([augment.box(400, 300, generator) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() == 0
    assert right.max() == 400
    assert top.min() == 0
    assert bottom.max() == 300
    share = (right - left) * (bottom - top) / (400 * 300)
    ratio = (right - left) / (bottom - top)
    assert 0.198 < share.min() < 0.205
    assert 0.45 < share.max() < 0.502
    assert 0.34 < share.mean() < 0.36  # evenly over the shares
    assert 0.49 < ratio.min() < 0.52
    assert 1.9 < ratio.max() < 2.02
    assert abs(np.log(ratio).mean()) < 0.02  # evenly over the logarithm


def test_random_crop_falls_back_to_the_centre_when_no_draw_fits():
    augment = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))
    generator = np.random.default_rng(0)
    assert augment.box(100, 40, generator) == (30, 0, 70, 40)
    assert augment.box(40, 100, generator) == (0, 30, 40, 70)
    assert augment.box(50, 50, generator) == (0, 0, 50, 50)
    assert RandomResizedCrop((1.0, 1.0), (2.0, 3.0)).box(1, 1, generator) == (0, 0, 1, 1)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (float("nan"), 1.0)])
def test_random_crop_refuses_impossible_shares(scale):
    with pytest.raises(ClipError, match="give two rising shares, above 0 and up to 1"):
        RandomResizedCrop(scale)


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_random_crop_refuses_impossible_ratios(ratio):
    with pytest.raises(ClipError, match="give two rising numbers above 0"):
        RandomResizedCrop((0.5, 1.0), ratio)


def test_random_crop_refuses_what_is_no_usable_picture():
    augment, generator = RandomResizedCrop((0.5, 1.0)), np.random.default_rng(0)
    with pytest.raises(ImageError, match="given as ndarray"):
        augment(np.zeros((4, 4, 3), np.uint8), 32, generator)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="mode La"):
        augment(Image.new("La", (40, 40)), 32, generator)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_what_a_model_wants_instead(interpolation, resize_mode):
    """Another filter, mean and deviation, and both sides stretched, as torchvision does them."""
    wanted = Pixels((0.5, 0.25, 0.75), (0.5, 0.25, 1.0), interpolation, resize_mode)
    mode = InterpolationMode(interpolation)
    reshaped = [Resize((32, 32), interpolation=mode)]
    if resize_mode == "shortest":
        reshaped = [Resize(32, interpolation=mode), CenterCrop(32)]
    image = picture("RGB", 90, 50, 0)
    with pillow("width"):
        expected = Compose([*reshaped, ToTensor(), Normalize(wanted.mean, wanted.deviation)])(image).numpy()
    assert preprocess(image, 32, wanted).tobytes() == expected.tobytes()
    assert pixels([image], 32, wanted).tobytes() == expected.tobytes()
    assert np.abs(preprocess(image, 32) - expected).max() > 0.1
