"""One image, fast and exact."""

from __future__ import annotations

import gc
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.errors import ArgumentError, ImageDecodeError
from transferkit.loading.decode import decode
from transferkit.loading.image_pixels import fitted, pixels_of, read_pixels

RECORDS = [
    tk.Preprocessing(size=56, resize=64),
    tk.Preprocessing(size=40, crop="squash"),
    tk.Preprocessing(size=30, resize=40, interpolation="bicubic"),
    tk.Preprocessing(size=30, resize=40, interpolation="nearest"),
]


def photo(height=90, width=120):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(photo(), "JPEG", exif=exif)


SOURCES = {
    "jpeg": saved(photo(), "JPEG"),
    "progressive": saved(photo(), "JPEG", progressive=True),
    "cmyk": saved(photo().convert("CMYK"), "JPEG"),
    "png": saved(photo(), "PNG"),
    "transparent": saved(photo().convert("RGBA"), "PNG"),
    "webp": saved(photo(), "WEBP"),
    "array": np.asarray(photo()),
    "grey array": np.asarray(photo().convert("L")),
    "image": photo(),
    **{f"orientation {number}": turned(number) for number in (2, 3, 6, 7)},
}


def levels_apart(first, second):
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("kind", SOURCES)
def test_fast_is_within_one_grey_level_and_exact_is_exact(kind, record):
    expected = record.pixels(decode(SOURCES[kind]))
    assert torch.equal(pixels_of(SOURCES[kind], record, decode="exact"), expected)
    fast = pixels_of(SOURCES[kind], record)
    assert fast.shape == (3, record.size, record.size)
    assert fast.dtype == torch.uint8
    assert levels_apart(fast, expected) <= 1


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_errors_name_the_image(mode, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(SOURCES["jpeg"][:-30])
    with pytest.raises(ImageDecodeError, match=r"cut\.jpg' cannot be decoded: image file is truncated"):
        pixels_of(path, RECORDS[0], decode=mode)
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg' cannot be decoded: no such file"):
        pixels_of(tmp_path / "gone.jpg", RECORDS[0], decode=mode)
    with pytest.raises(ImageDecodeError, match="The image 'set/7' cannot be decoded: it is empty"):
        pixels_of(b"", RECORDS[0], name="set/7", decode=mode)


def test_another_decoding_is_refused():
    with pytest.raises(ArgumentError, match="must be one of 'fast', 'exact'"):
        pixels_of(SOURCES["jpeg"], RECORDS[0], decode="quick")


@pytest.mark.parametrize(
    ("height", "width", "small"),
    [
        (32, 32, True),
        (112, 112, True),
        (113, 112, False),
        (112, 56, True),
        (112, 55, False),
        (256, 256, False),
    ],
)
def test_small_images_stay_as_they_are_until_they_are_enlarged(height, width, small):
    record = tk.Preprocessing(size=224, resize=256)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    read = read_pixels(pixels, record)
    assert read.shape == ((height, width, 3) if small else (224, 224, 3))
    if small:
        assert np.array_equal(read, pixels)
    whole = torch.from_numpy(np.array(fitted(read, record))).permute(2, 0, 1)
    assert levels_apart(whole, record.pixels(Image.fromarray(pixels))) <= 1
    assert read_pixels(pixels, record, exact=True).shape == (224, 224, 3)


def test_a_reduced_scale_changes_little_and_only_large_photos():
    def both(kind, size):
        record = tk.Preprocessing(size=size)
        return [read_pixels(SOURCES[kind], record, reduced=reduced).astype(int) for reduced in (True, False)]

    reduced, whole = both("jpeg", 22)
    assert 0 < np.abs(reduced - whole).mean() < 2
    # The photo is 90 pixels high, less than four times 23; and other formats have no reduced scale.
    for kind, size in (("jpeg", 23), ("png", 22)):
        reduced, whole = both(kind, size)
        assert np.array_equal(reduced, whole)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads through /proc")
def test_decoding_threads_start_no_threads_of_their_own():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        large = saved(photo(600, 800), "JPEG")
        record = tk.Preprocessing(size=224, resize=256)
        gc.collect()  # pools of other tests end now, not between the two counts
        before = len(os.listdir("/proc/self/task"))
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda _: pixels_of(large, record), range(8)))
            assert len(os.listdir("/proc/self/task")) - before <= 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(pixels, pixels_of(large, record)) for pixels in together)


@pytest.mark.real_data
@pytest.mark.parametrize("resize", [(224, 256, "bilinear"), (64, 73, "bilinear"), (224, 232, "bicubic"),
                                    (300, 342, "bilinear"), (269, 269, "bilinear")])  # fmt: skip
@pytest.mark.parametrize("crop", ["center", "squash"])
def test_real_photos_are_within_one_grey_level(real_data, resize, crop):
    record = tk.Preprocessing(resize[0], resize[1], interpolation=resize[2], crop=crop)
    folder = real_data / "data"
    paths = [
        *sorted((folder / "hymenoptera").glob("*/*/*.jp*g"))[::25],
        *sorted((folder / "cats_dogs").glob("*.jpg"))[::50],
        *sorted((folder / "cifar10_10pct" / "test").glob("*/*.jpg"))[::100],
    ]
    assert len(paths) > 40
    for path in paths:
        assert levels_apart(pixels_of(path, record), record.pixels(decode(path))) <= 1, path
