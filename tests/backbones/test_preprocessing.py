"""Preprocessing, against torchvision's own and against plain arithmetic."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from transferkit.backbones.preprocessing import PREPROCESSINGS, Preprocessing, preprocessing
from transferkit.errors import ArgumentError, UnknownNameError


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(64, 73), (224, 224), (32, 33)])
@pytest.mark.parametrize("sides", [(481, 357), (100, 300), (9, 7), (64, 64)])
def test_it_is_what_torchvision_does_to_the_bit(interpolation, size, resize, sides):
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = ImageClassification(
        crop_size=size, resize_size=resize, mean=mean, std=std, interpolation=InterpolationMode(interpolation)
    )
    record = Preprocessing(size, resize, mean, std, interpolation)
    assert torch.equal(record(picture(*sides)), expected(picture(*sides)))


def test_squash_shows_the_whole_image():
    record = Preprocessing(size=8, crop="squash")
    left = np.zeros((20, 40, 3), dtype=np.uint8)
    left[:, :20] = 255
    pixels = record.pixels(Image.fromarray(left))
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.uint8
    assert (pixels[:, :, :3] > 250).all()
    assert (pixels[:, :, 5:] < 5).all()


def test_a_batch_is_normalized_as_its_images_are(device):
    record = PREPROCESSINGS["imagenet"]
    pixels = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, device=device)
    before = pixels.clone()
    batch = record.normalize(pixels)
    assert batch.dtype == torch.float32
    assert torch.equal(pixels, before)
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - record.mean[channel]) / record.std[channel]
        torch.testing.assert_close(batch[:, channel].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.stack([record.normalize(image) for image in pixels]), batch)


def test_another_size_keeps_everything_but_the_size():
    record = Preprocessing(224, 256, (0.1, 0.2, 0.3), (1, 2, 3), "bicubic")
    assert record.with_size(64) == dataclasses.replace(record, size=64, resize=73)
    assert record.with_size(448) == dataclasses.replace(record, size=448, resize=512)
    assert record.with_size(224) == record
    assert Preprocessing(32).with_size(48) == Preprocessing(48, 48)


@pytest.mark.parametrize("record", [*PREPROCESSINGS.values(), Preprocessing(7, 9, crop="squash")])
def test_it_goes_through_json(record):
    assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_name_stands_for_a_record():
    assert preprocessing("imagenet") == Preprocessing(224, 256)
    assert preprocessing(Preprocessing(7)) == Preprocessing(7)
    with pytest.raises(UnknownNameError, match=r"There is no preprocessing 'cifar'. Did you mean 'cifar10'"):
        preprocessing("cifar")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("size", "resize") for value in (0, -1, 2.5, "224", True)),
        ("size", None),
        ("resize", 31),
        *((field, value) for field in ("mean", "std") for value in (0.5, (0.5,), ("a", "b", "c"), None)),
        ("std", (0.1, 0.0, 0.1)),
        ("std", (0.1, -0.1, 0.1)),
        ("interpolation", "lanczos4"),
        ("interpolation", 2),
        ("crop", "random"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(field, value):
    with pytest.raises(ArgumentError, match=f"The '{field}' parameter of Preprocessing must be"):
        Preprocessing(**{"size": 32, field: value})
