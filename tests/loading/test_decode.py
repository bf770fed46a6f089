from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.errors import ImageDecodeError
from transferkit.loading.decode import decode

# What a viewer does with stored pixels, by the EXIF standard, in numpy's own terms.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 6, (rows + columns) * 3], axis=2).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_stand_upright(form: str, orientation: int) -> None:
    stored = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0}
    image = decode(encoded(Image.fromarray(stored), form, exif=exif, **options))
    upright = UPRIGHT[orientation](stored).astype(int)
    assert image.size == (upright.shape[1], upright.shape[0])
    assert np.abs(np.asarray(image) - upright).max() <= (4 if form == "JPEG" else 0)
    # Whoever reads the result again must not turn it again.
    assert np.array_equal(np.asarray(decode(image)), np.asarray(image))
    assert not image.getexif()


def test_damaged_metadata_leaves_the_pixels() -> None:
    data = encoded(Image.fromarray(photo()), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(decode(data)), photo())


def test_every_kind_of_source_gives_the_same_image(tmp_path: Path) -> None:
    pixels = photo()
    path = tmp_path / "photo.jpg"  # the extension is wrong, and does not matter
    path.write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    sources = [path, str(path), path.read_bytes(), pixels, pixels[:, ::2][:, :, ::-1], Image.open(path)]
    images = [decode(source) for source in sources]
    sources[-1].close()
    assert all(image.mode == "RGB" for image in images)
    for image in (*images[:4], images[5]):
        assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(np.asarray(images[4]), pixels[:, ::2][:, :, ::-1])


def test_a_pil_image_is_not_shared() -> None:
    given = Image.fromarray(photo())
    decode(given).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(given), photo())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(shape)
    assert np.array_equal(np.asarray(decode(grey)), np.repeat(grey.reshape(4, 5, 1), 3, axis=2))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_on_white(form: str) -> None:
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 255, 128], [0, 200, 0, 0]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    image = np.asarray(decode(encoded(Image.fromarray(pixels), form, **options))).astype(int)
    alpha = pixels[..., 3:] / 255
    assert np.abs(image - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_transparent_grey_palette_and_color_key() -> None:
    two = np.array([[0, 1]], dtype=np.uint8)
    grey_alpha = Image.merge("LA", [Image.fromarray(two * 50), Image.fromarray((1 - two) * 255)])
    assert np.asarray(decode(encoded(grey_alpha, "PNG")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    palette = Image.fromarray(two).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    for form in ("PNG", "GIF"):
        data = encoded(palette, form, transparency=1)
        assert np.asarray(decode(data))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    key = encoded(Image.fromarray(photo(1, 2)), "PNG", transparency=(0, 6, 3))
    assert np.asarray(decode(key))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_palette_black_and_white_and_cmyk() -> None:
    colors = Image.new("RGB", (8, 8), (200, 30, 40))
    assert np.asarray(decode(encoded(colors.quantize(4), "PNG")))[0, 0].tolist() == [200, 30, 40]
    ink = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert np.asarray(decode(encoded(ink, "PNG")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for form in ("JPEG", "TIFF"):
        assert np.abs(np.asarray(decode(encoded(red, form)))[8, 8].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(form: str) -> None:
    deep = np.array([[0, 257, 25700, 65535, 32768]], dtype=np.uint16)
    image = np.asarray(decode(encoded(Image.fromarray(deep), form)))
    assert image[0, :, 0].tolist() == [0, 1, 100, 255, 128]
    assert (image == image[..., :1]).all()


def test_floats_and_32_bits() -> None:
    image = decode(encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]
    image = decode(encoded(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 255]
    for values in ([[0.0, np.nan]], [[0.0, 17.0]], [[-0.1, 0.0]]):
        data = encoded(Image.fromarray(np.array(values, dtype=np.float32)), "TIFF")
        with pytest.raises(ImageDecodeError, match=r"depth\.tif.*\[0, 1\]"):
            decode(data, name="depth.tif")
    with pytest.raises(ImageDecodeError, match="0…65535"):
        decode(encoded(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(decode(data))[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_images_are_refused(form: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    path = tmp_path / "cut.img"
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageDecodeError, match=r"cut\.img' cannot be decoded: \S+"):
            decode(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_mutated_images_give_an_image_or_the_one_error(form: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(photo()), form)
    generator = np.random.default_rng(7)
    path = tmp_path / "fuzzed.img"
    messages = []
    for _ in range(150):
        changed = np.frombuffer(data, dtype=np.uint8).copy()
        # The header is where damage does harm.
        where = generator.integers(0, min(len(data), 200), size=generator.integers(1, 6))
        changed[where] = generator.integers(0, 256, size=where.size)
        path.write_bytes(changed.tobytes())
        try:
            assert decode(path).mode == "RGB"
        except ImageDecodeError as error:
            messages.append(str(error))
        assert path.read_bytes() == changed.tobytes()
    assert messages
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "no known image format"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=f"cat.jpg' cannot be decoded: .*{reason}"):
        decode(path)
    with pytest.raises(ImageDecodeError, match="The image 'train/7' cannot"):
        decode(data, name="train/7")
    with pytest.raises(ImageDecodeError, match=r"An image in memory \(bytes\)"):
        decode(data)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg' cannot be decoded: no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(ImageDecodeError, match="is a directory"):
        decode(str(tmp_path))


@pytest.mark.parametrize(
    "source",
    [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), None, 3],
)
def test_other_sources_are_refused(source: object) -> None:
    with pytest.raises(ImageDecodeError, match=r"'sample 3' cannot be decoded: .*uint8"):
        decode(source, name="sample 3")


def test_bombs_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with pytest.raises(ImageDecodeError, match=r"bomb\.png'.*60000 x 60000 pixels.*MAX_IMAGE_PIXELS"):
            decode(path)
        # Between once and twice its limit Pillow only warns.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
        with pytest.raises(ImageDecodeError, match="40 x 24"):
            decode(encoded(Image.fromarray(photo()), "JPEG"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40)
        assert decode(encoded(Image.fromarray(photo()), "JPEG")).size == (40, 24)
    assert leaked == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_files_are_closed(tmp_path: Path) -> None:
    whole = {form: encoded(Image.fromarray(photo()), form) for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP")}
    kept = []
    before = len(os.listdir("/proc/self/fd"))
    for form, data in whole.items():
        path = tmp_path / form
        path.write_bytes(data)
        kept.append(decode(path))
        path.write_bytes(data[:60])
        with pytest.raises(ImageDecodeError) as raised:
            decode(path)
        kept.append(raised)  # with its traceback, and so the frames that had the file open
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_decode_at_once(tmp_path: Path) -> None:
    paths = []
    for index in range(40):
        path = tmp_path / str(index)
        form = ("JPEG", "PNG", "WEBP", "TIFF")[index % 4]
        path.write_bytes(encoded(Image.fromarray(photo(16 + index, 40)), form))
        paths.append(path)
    alone = [decode(path).tobytes() for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: decode(path).tobytes(), paths * 3))
    assert together == alone * 3
