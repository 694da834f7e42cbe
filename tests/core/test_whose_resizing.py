"""The ways to resize that `clip whose` knows, beside the libraries that resize like this."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms.v2 import functional
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clip_core.preprocess import preprocess, resized_size
from clip_core.whose.resizing import _resize_as_pillow_13
from clip_core.whose.variants import RESIZINGS, SCALINGS, scaled

SIDE = 48
BY_NAME = {resizing.name: resizing for resizing in RESIZINGS}
SIZES = ((50, 211), (97, 61), (130, 331), (203, 202), (48, 48), (31, 75))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Random colours."""
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(values)


COLOURED = [picture(*size) for size in SIZES]
PICTURES = [*COLOURED, picture(75, 130, "RGBA"), picture(75, 130).convert("P")]


def called(image: Image.Image) -> str:
    return f"{image.width}x{image.height}-{image.mode}"


def of_transformers(processor: type, image: Image.Image) -> np.ndarray:
    crop = {"height": SIDE, "width": SIDE}
    plain = processor(size={"shortest_edge": SIDE}, crop_size=crop, do_rescale=False, do_normalize=False)
    return np.asarray(plain(image)["pixel_values"][0]).transpose(1, 2, 0)


# Versions of transformers differ in what they make of a transparent picture.
@pytest.mark.parametrize("image", [*COLOURED, PICTURES[-1]], ids=called)
def test_transformers(image):
    assert np.array_equal(BY_NAME["transformers 5"](image, SIDE), of_transformers(CLIPImageProcessor, image))
    assert np.array_equal(BY_NAME["transformers 4"](image, SIDE), of_transformers(CLIPImageProcessorPil, image))


@pytest.mark.parametrize("image", PICTURES, ids=called)
def test_open_clip(image):
    for name, mode in (("OpenAI", "shortest"), ("squash", "squash")):
        expected = image_transform(SIDE, is_train=False, resize_mode=mode)(image).numpy()
        found = scaled(BY_NAME[name](image, SIDE)[None], SCALINGS["CLIP"], "RGB")[0]
        assert found == pytest.approx(expected, abs=1e-6)
    expected = image_transform(SIDE, is_train=False, interpolation="bilinear")(image).numpy()
    found = scaled(BY_NAME["bilinear"](image, SIDE)[None], SCALINGS["CLIP"], "RGB")[0]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("image", PICTURES, ids=called)
def test_our_own_preprocessing_is_openai(image):
    squares = BY_NAME["OpenAI"](image, SIDE)[None]
    assert np.array_equal(scaled(squares, SCALINGS["CLIP"], "RGB")[0], preprocess(image, SIDE))


@pytest.mark.parametrize("image", COLOURED, ids=called)
def test_tensors_of_torchvision(image):
    """Whole numbers on a CPU, and floats that are rounded at the end, as on a GPU."""
    width, height = resized_size(image.size, SIDE)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    bicubic = functional.InterpolationMode.BICUBIC
    resized = functional.resize(whole, [height, width], bicubic, antialias=True)
    expected = functional.center_crop(resized, [SIDE, SIDE]).permute(1, 2, 0).numpy()
    assert np.array_equal(BY_NAME["torchvision tensors"](image, SIDE), expected)
    resized = functional.resize(whole.double(), [height, width], bicubic, antialias=True).round().clip(0, 255)
    expected = functional.center_crop(resized, [SIDE, SIDE]).permute(1, 2, 0).numpy()
    assert np.array_equal(BY_NAME["torchvision tensors, GPU"](image, SIDE), expected)


@pytest.mark.parametrize("image", COLOURED, ids=called)
def test_samples_are_those_of_opencv(image):
    """PyTorch takes the same two values without antialiasing."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(values, (SIDE, SIDE), mode="bilinear", antialias=False)[0]
    differences = np.abs(BY_NAME["OpenCV"](image, SIDE) - expected.round().permute(1, 2, 0).numpy())
    assert differences.max() <= 1  # where a half is rounded, and the sums differ in their last bit
    assert np.count_nonzero(differences) < 0.01 * differences.size


@pytest.mark.parametrize(
    ("size", "target", "rows_first"),
    [  # of Pillow 13.0.0
        ((397, 433), (16, 17), False),
        ((80, 86), (16, 16), False),
        ((202, 520), (55, 183), True),
        ((155, 211), (394, 172), True),
        ((251, 29), (553, 64), False),
        ((105, 462), (224, 224), True),
    ],
)
def test_pillow_13_begins_with_the_rows_where_they_lose_more_than_twice_as_much(size, target, rows_first):
    image = picture(*size)
    bicubic = Image.Resampling.BICUBIC
    orders = {
        True: image.resize((size[0], target[1]), bicubic).resize(target, bicubic),
        False: image.resize((target[0], size[1]), bicubic).resize(target, bicubic),
    }
    found = np.asarray(_resize_as_pillow_13(image, target, bicubic))
    assert np.array_equal(found, np.asarray(orders[rows_first]))
    assert not np.array_equal(found, np.asarray(orders[not rows_first]))
