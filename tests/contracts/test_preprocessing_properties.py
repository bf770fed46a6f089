"""Pixels of generated images, against torchvision's own transforms."""

from __future__ import annotations

import io

import numpy as np
import torch
from example_counts import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import transforms

import transferkit as tk
from transferkit.loading.image_pixels import pixels_of
from transferkit.loading.normalize import normalized

SIDES = st.integers(1, 400)
RECORDS = st.builds(
    lambda size, more, interpolation, crop: tk.Preprocessing(
        size=size, resize=size + more, interpolation=interpolation, crop=crop
    ),
    st.integers(1, 64),
    st.integers(0, 16),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.sampled_from(["center", "squash"]),
)
CONTENTS = st.sampled_from(["noise", "smooth", "stripes", "black", "white"])


def image_of(height: int, width: int, content: str, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    if content == "noise":
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    elif content == "smooth":
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)
    elif content == "stripes":
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[::2], pixels[:, ::3] = 255, 127
    else:
        pixels = np.full((height, width, 3), 255 if content == "white" else 0, dtype=np.uint8)
    return Image.fromarray(pixels)


def by_torchvision(image: Image.Image, record: tk.Preprocessing) -> Tensor:
    """Do with torchvision's transforms what the fields of the record say."""
    mode = transforms.InterpolationMode(record.interpolation)
    side = [record.resize, record.resize] if record.crop == "squash" else record.resize
    steps = [transforms.Resize(side, mode), transforms.CenterCrop(record.size), transforms.PILToTensor()]
    return transforms.Compose(steps)(image)


def may_be_resized(height: int, width: int, record: tk.Preprocessing) -> bool:
    """Leave out the longest strips, which Pillow makes images of hundreds of megabytes from."""
    return record.crop == "squash" or record.resize**2 * max(height, width) / min(height, width) < 2e6


@examples(80)
@given(SIDES, SIDES, CONTENTS, RECORDS, st.integers(0, 2**31))
def test_pixels_are_torchvisions_own_or_within_one_grey_level(height, width, content, record, seed):
    assume(may_be_resized(height, width, record))
    image = image_of(height, width, content, seed)
    expected = by_torchvision(image, record)
    assert torch.equal(record.pixels(image), expected)
    for source in (image, np.asarray(image)):
        assert torch.equal(pixels_of(source, record, decode="exact"), expected)
        fast = pixels_of(source, record)
        assert fast.shape == expected.shape
        assert int((fast.int() - expected.int()).abs().max()) <= 1
        assert record.interpolation == "bilinear" or torch.equal(fast, expected)


@examples(30)
@given(
    SIDES, SIDES, CONTENTS, RECORDS, st.sampled_from(["PNG", "BMP", "WEBP", "JPEG"]), st.integers(0, 2**31)
)
def test_files_give_the_pixels_of_the_image_that_pillow_reads(height, width, content, record, form, seed):
    assume(may_be_resized(height, width, record))
    stream = io.BytesIO()
    image_of(height, width, content, seed).save(stream, form)
    with Image.open(stream) as image:
        expected = by_torchvision(image.convert("RGB"), record)
    encoded = stream.getvalue()
    assert torch.equal(pixels_of(encoded, record, decode="exact"), expected)
    assert int((pixels_of(encoded, record).int() - expected.int()).abs().max()) <= 1


CHANNELS = st.tuples(*[st.floats(0, 1)] * 3)
SPREADS = st.tuples(*[st.floats(0.01, 2)] * 3)


@examples(40)
@given(CHANNELS, SPREADS, st.integers(0, 2**31))
def test_normalizing_is_torchvisions_own_to_the_bit(mean, std, seed):
    record = tk.Preprocessing(size=8, mean=mean, std=std)
    image = image_of(8, 8, "noise", seed)
    steps = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    expected = transforms.Compose(steps)(image)
    assert torch.equal(record(image), expected)
    batch = record.pixels(image)[None]
    assert torch.equal(normalized(batch, record, dtype=torch.float32, channels_last=False)[0], expected)


@examples(40)
@given(RECORDS)
def test_a_record_survives_json_and_keeps_its_ratio_at_other_sizes(record):
    assert tk.Preprocessing.from_dict(record.to_dict()) == record
    assert record.with_size(record.size) == record
    assert record.with_size(4 * record.size).resize == 4 * record.resize
