"""Augmentations: what each does to the pixels, and that it does no more."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clip_core.data.augmentation import Augmentation
from clip_core.errors import ClipError
from clip_core.pixels import DEVIATION, MEAN, Pixels
from clip_core.preprocess import RandomResizedCrop, preprocess
from clip_core.training.recipe import Recipe

R = 16


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def wide(mode: str = "RGB") -> Image.Image:
    """64 x 32 pixels: red grows to the right, green downwards."""
    y, x = np.mgrid[:32, :64]
    return Image.fromarray(np.stack([4 * x, 8 * y, 0 * x + 90], -1).astype(np.uint8)).convert(mode)


def test_none_is_the_official_preprocessing():
    assert np.array_equal(Augmentation()(wide(), R, generator()), preprocess(wide(), R))


def test_16_bits_give_the_pixels_of_8():
    deep = Image.fromarray(np.asarray(wide("L")).astype(np.uint16) * 257)
    for crop in (Augmentation(crop="random"), Augmentation(crop="resized")):
        assert np.array_equal(crop(deep, R, generator()), crop(wide("L"), R, generator()))


def test_a_random_crop_is_a_square_of_the_shorter_side_at_every_place():
    crop = Augmentation(crop="random")
    lefts = set()
    for seed in range(200):
        found = crop(wide(), R, generator(seed))
        left = int(generator(seed).integers(32, endpoint=True))
        expected = wide().crop((left, 0, left + 32, 32)).resize((R, R), Image.Resampling.BICUBIC)
        assert np.array_equal(found, preprocess(expected, R))
        lefts.add(left)
    assert {0, 32} <= lefts
    tall = crop(wide().transpose(Image.Transpose.TRANSPOSE), R, generator(3))
    assert tall.shape == (3, R, R)


def test_the_pixels_are_those_that_the_model_wants():
    wanted = Pixels((0.5,) * 3, (0.25,) * 3, "bilinear", "squash")
    expected = preprocess(wide(), R, wanted)
    assert np.array_equal(Augmentation()(wide(), R, generator(), wanted), expected)
    assert np.array_equal(Augmentation(flip=1)(wide(), R, generator(), wanted), expected[:, :, ::-1])
    cropped = Augmentation(crop="random", interpolation="bilinear")(wide(), R, generator(), wanted)
    official = Augmentation(crop="random", interpolation="bilinear")(wide(), R, generator())
    np.testing.assert_allclose(
        0.25 * cropped + 0.5, official * np.reshape(DEVIATION, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1)), atol=1e-6
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_resized_crop_is_that_of_the_preprocessing_module(interpolation):
    crop = Augmentation(crop="resized", scale=(0.75, 1), ratio=(1, 1), interpolation=interpolation)
    twin = RandomResizedCrop((0.75, 1), (1, 1), Image.Resampling[interpolation.upper()])
    for seed in range(20):
        assert np.array_equal(crop(wide(), R, generator(seed)), twin(wide(), R, generator(seed)))


def test_flipping_mirrors_as_often_as_asked():
    square = wide().crop((0, 0, 32, 32))
    plain, always = Augmentation(crop="random"), Augmentation(crop="random", flip=1.0)
    expected = plain(square, R, generator())
    assert np.array_equal(always(square, R, generator()), expected[:, :, ::-1])
    sometimes = Augmentation(crop="random", flip=0.25)
    mirrored = sum(not np.array_equal(sometimes(square, R, generator(seed)), expected) for seed in range(400))
    assert 70 < mirrored < 130


def levels(pixels: np.ndarray) -> np.ndarray:
    return (pixels.transpose(1, 2, 0) * DEVIATION + MEAN) * 255


def test_brightness_multiplies_within_its_range():
    plain = Image.new("RGB", (R, R), (100, 60, 20))
    factors = [
        levels(Augmentation(brightness=0.4)(plain, R, generator(seed)))[0, 0] / (100, 60, 20) for seed in range(300)
    ]
    red = np.array(factors)[:, 0]
    assert 0.59 < red.min() < 0.62
    assert 1.38 < red.max() < 1.41
    assert np.abs(np.array(factors) - red[:, None]).max() < 0.06  # rounding of 20


def test_contrast_keeps_the_mean_and_saturation_the_grey():
    halves = Image.fromarray(np.repeat([[60] * 8 + [140] * 8], R, axis=0).astype(np.uint8)).convert("RGB")
    for seed in range(20):
        found = levels(Augmentation(contrast=0.5)(halves, R, generator(seed)))
        assert found.mean() == pytest.approx(100, abs=1)
        factor = generator(seed).uniform(0.5, 1.5)
        assert found[0, -1, 0] - found[0, 0, 0] == pytest.approx(80 * factor, abs=1.5)
        assert np.allclose(
            levels(Augmentation(saturation=0.9)(halves, R, generator(seed))), levels(preprocess(halves, R))
        )


def test_hue_turns_red_towards_its_neighbours_and_back():
    red = Image.new("RGB", (R, R), (200, 0, 0))
    found = np.array([levels(Augmentation(hue=1 / 6)(red, R, generator(seed)))[0, 0] for seed in range(200)])
    assert found[:, 0].min() > 195  # a sixth of a turn either way is yellow or magenta, both with all the red
    assert (np.minimum(found[:, 1], found[:, 2]) < 3).all()
    assert found[:, 1].max() > 180
    assert found[:, 2].max() > 180


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_mode_can_be_augmented(mode):
    augmentation = Augmentation(crop="resized", scale=(0.5, 1), flip=0.5, brightness=0.2, saturation=0.2, hue=0.1)
    found = augmentation(wide(mode), R, generator())
    assert found.shape == (3, R, R)
    assert np.isfinite(found).all()


def data(**changes):
    return {"model": {"architecture": "shapes"}, "training": {"steps": 1}, "data": {"augmentation": changes}}


def test_a_recipe_sets_the_augmentation():
    recipe = Recipe.parse(data(crop="resized", scale=[0.75, 1], ratio=[1, 1], interpolation="bilinear"))
    assert recipe.data.augmentation == Augmentation(
        crop="resized", scale=(0.75, 1.0), ratio=(1.0, 1.0), interpolation="bilinear"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flipp": 1}, "there is no key data.augmentation.flipp; did you mean data.augmentation.flip?"),
        ({"flip": 2}, "data.augmentation.flip is 2: input should be less than or equal to 1"),
        ({"scale": [0.5, 0.1]}, "The scale of a random crop is (0.5, 0.1)"),
        ({"ratio": [0, 1]}, "The ratio of a random crop is (0.0, 1.0)"),
        ({"crop": "five"}, "data.augmentation.crop is 'five'"),
    ],
)
def test_a_faulty_augmentation_is_named(changes, message):
    with pytest.raises(ClipError) as caught:
        Recipe.parse(data(**changes), "r.yaml")
    assert message in str(caught.value)
