"""What torchvision decodes is what Pillow decodes, and what Pillow refuses is left to it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from transferkit.errors import ImageDecodeError
from transferkit.loading.decode import decode
from transferkit.loading.jpeg import plain_jpeg

PHOTO = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8), "RGB"
).resize((48, 36), Image.Resampling.BICUBIC)  # fmt: skip

KINDS = {
    "baseline": (PHOTO, {"quality": 90}),
    "full chroma": (PHOTO, {"quality": 75, "subsampling": 0}),
    "progressive": (PHOTO, {"quality": 80, "progressive": True}),
    "restart markers": (PHOTO, {"quality": 85, "restart_marker_blocks": 3}),
    "kept in RGB": (PHOTO, {"quality": 90, "keep_rgb": True}),
    "grey": (PHOTO.convert("L"), {"quality": 90}),
}
FILES = {}
for _name, (_image, _options) in KINDS.items():
    _stream = io.BytesIO()
    _image.save(_stream, "JPEG", **_options)
    FILES[_name] = _stream.getvalue()


def levels_apart(first, second):
    return np.abs(np.asarray(first).astype(int) - np.asarray(second)).max()


@pytest.mark.parametrize("kind", FILES)
def test_plain_files_have_the_pixels_of_pillow(kind, tmp_path):
    path = tmp_path / "photo.png"  # the extension does not matter
    path.write_bytes(FILES[kind])
    for source in (path, str(path), FILES[kind], bytearray(FILES[kind]), memoryview(FILES[kind])):
        pixels = plain_jpeg(source)
        assert pixels is not None
        assert pixels.flags.writeable
        assert levels_apart(pixels, decode(path)) == 0


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(PHOTO, "JPEG", exif=exif)


@pytest.mark.parametrize(
    "source",
    [
        saved(PHOTO, "PNG"),
        saved(PHOTO.convert("CMYK"), "JPEG"),
        turned(),
        FILES["baseline"][:-40],
        FILES["baseline"][:-2],
        FILES["baseline"][:60],
        b"\xff\xd8\xff",
        b"",
        np.zeros((4, 4, 3), np.uint8),
        PHOTO,
        None,
        "no such file.jpg",
    ],
)
def test_anything_odd_is_left_to_pillow(source):
    assert plain_jpeg(source) is None


def test_bombs_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36 * 48 - 1)
    assert plain_jpeg(FILES["baseline"]) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36 * 48)
    assert plain_jpeg(FILES["baseline"]) is not None


def test_what_is_decoded_at_a_reduced_scale_is_left_to_pillow():
    assert plain_jpeg(FILES["baseline"], least=19) is not None
    assert plain_jpeg(FILES["baseline"], least=18) is None
    assert decode(FILES["baseline"], least=19).size == (48, 36)
    assert decode(FILES["baseline"], least=18).size == (24, 18)
    assert decode(FILES["baseline"], least=9).size == (12, 9)


def damaged(data, generator):
    """Cut a file, overwrite some bytes, or take out or repeat a stretch."""
    kind = generator.integers(5)
    if kind == 0:
        return data[: generator.integers(1, len(data))]
    if kind == 1:
        return data[: -generator.integers(1, 8)]
    changed = bytearray(data)
    if kind in (2, 3):
        # The header is where damage does harm.
        reach = 700 if kind == 2 else len(changed)
        for place in generator.integers(0, min(len(changed), reach), generator.integers(1, 6)):
            changed[place] = generator.integers(256)
        return bytes(changed)
    start, stop = sorted(generator.integers(0, len(changed), 2))
    if generator.integers(2):
        del changed[start:stop]
    else:
        changed[start:start] = changed[start:stop]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
def test_damaged_files_never_give_other_pixels_than_pillow():
    generator = np.random.default_rng(3)
    sources = list(FILES.values())
    decoded = refused = 0
    for number in range(400):
        data = damaged(sources[number % len(sources)], generator)
        pixels = plain_jpeg(data)
        try:
            expected = decode(data)
        except ImageDecodeError:
            refused += 1
            assert pixels is None, data
            continue
        if pixels is not None:
            decoded += 1
            assert levels_apart(pixels, expected) <= 1, data
    assert decoded > 50
    assert refused > 50
