"""Resizing and cropping, against Pillow's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.loading.resample import enlarged, nearest_places, resized

SIZES = [(45, 60), (60, 45), (61, 61), (34, 116), (120, 40), (12, 9), (1, 1), (3, 41)]
RECORDS = [
    Preprocessing(size=28, resize=32),
    Preprocessing(size=29, resize=33),
    Preprocessing(size=31, crop="squash"),
    Preprocessing(size=22, crop="squash"),  # torch's kernel alone is two levels off, on (34, 116)
    Preprocessing(size=48, resize=73),
    Preprocessing(size=60),
]


def pictures(height, width):
    """Pictures that put many values half way between two grey levels, and one of noise."""
    rows, columns = np.mgrid[:height, :width]
    generator = np.random.default_rng(height * 1000 + width)
    yield np.stack([rows * 7, columns * 5, (rows + columns) * 3], axis=2)
    yield np.stack([rows * 3 + columns * 5, rows + columns**2, rows * 7 + columns], axis=2)
    stripes, squares = columns // 5 % 2 * 255, (rows // 3 + columns // 3) % 2 * 255
    yield np.stack([rows // 8 % 2 * 200 + columns % 37, stripes, squares], axis=2)
    yield generator.integers(0, 256, (1, width, 3)) + (rows % 2)[..., None]
    yield generator.integers(0, 256, (height, 1, 3)) + (columns % 3)[..., None]
    yield generator.integers(0, 2, (height, width, 3)) * 255
    yield generator.integers(0, 256, (height, width, 3))


def pillow(pixels, record):
    return record.pixels(Image.fromarray(pixels)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("sides", SIZES)
def test_it_is_within_one_grey_level_of_pillow(sides, interpolation):
    for record, picture in itertools.product(RECORDS, pictures(*sides)):
        record = Preprocessing(record.size, record.resize, crop=record.crop, interpolation=interpolation)
        pixels = np.ascontiguousarray(picture % 256, dtype=np.uint8)
        before = pixels.copy()
        result = resized(pixels, record)
        assert result.shape == (record.size, record.size, 3)
        assert result.dtype == np.uint8
        difference = np.abs(result.astype(int) - pillow(pixels, record)).max()
        assert difference <= (1 if interpolation == "bilinear" else 0), record
        assert np.array_equal(pixels, before)


@pytest.mark.parametrize("side", range(1, 64, 3))
def test_enlarging_to_a_power_of_two_is_exact(side):
    for record in (Preprocessing(size=56, resize=64), Preprocessing(size=128)):
        for picture in pictures(side, side):
            pixels = np.ascontiguousarray(picture % 256, dtype=np.uint8)
            assert np.array_equal(resized(pixels, record), pillow(pixels, record)), record


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(12, 9), (9, 12), (20, 20), (1, 1), (28, 19), (32, 32)])
def test_enlarging_a_batch_is_pillow_to_the_bit(sides, interpolation, device):
    for crop, (size, resize) in itertools.product(("center", "squash"), [(32, 32), (33, 40), (64, 73)]):
        record = Preprocessing(size, resize, crop=crop, interpolation=interpolation)
        batch = np.stack([picture % 256 for picture in pictures(*sides)]).astype(np.uint8)
        result = enlarged(torch.from_numpy(batch).to(device), record)
        assert result.device.type == device.type
        for row, pixels in zip(result.cpu().numpy(), batch, strict=True):
            assert np.array_equal(row, pillow(pixels, record)), record


@pytest.mark.parametrize("new", [1, 2, 7, 64, 97, 224])
def test_nearest_takes_the_pixels_that_pillow_takes(new):
    for old in range(1, 300):
        line = Image.fromarray(np.arange(old, dtype=np.int32)[None])
        expected = np.asarray(line.resize((new, 1), Image.Resampling.NEAREST))[0]
        assert nearest_places(old, new).tolist() == expected.tolist()
