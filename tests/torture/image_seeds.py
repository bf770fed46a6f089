"""Small whole images of many formats and kinds, and files that say they are enormous."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def photo(height: int = 40, width: int = 56) -> np.ndarray:
    """A picture with areas and noise, the same each time."""
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=2)
    noise = np.random.default_rng(0).integers(0, 32, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, *chunks: bytes, interlaced: bool = False, data: bytes = b"") -> bytes:
    """A PNG of 8-bit RGB with its chunks in order, whatever they hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, int(interlaced))
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced_png(pixels: np.ndarray) -> bytes:
    rows = b""
    for left, top, across, down in _ADAM7:
        for row in pixels[top::down, left::across]:
            rows += b"\0" + row.tobytes() if row.size else b""
    height, width = pixels.shape[:2]
    return png(width, height, interlaced=True, data=zlib.compress(rows))


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF: ``data``, then one directory of (tag, type, count, value or offset)."""
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return head + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


def tiff_of(width: int, height: int, *more: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A grey TIFF of one strip that begins behind the header."""
    given = {entry[0] for entry in more}
    plain = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))),
    ]
    return tiff(*(entry for entry in plain if entry[0] not in given), *more, data=data)


def seeds() -> dict[str, bytes]:
    """Whole images by kind; formats that this build of Pillow cannot write are missing."""
    pixels = photo()
    image = Image.fromarray(pixels)
    frames = [Image.fromarray(np.roll(pixels, shift, axis=1)) for shift in (8, 16)]
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "a text that is long enough to be stored apart"
    several: dict[str, object] = {"save_all": True, "append_images": frames}
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(pixels[..., 0]))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    makers: dict[str, Callable[[], bytes]] = {
        "jpeg": lambda: encoded(image, "JPEG"),
        "jpeg progressive": lambda: encoded(image, "JPEG", progressive=True),
        "jpeg grey": lambda: encoded(image.convert("L"), "JPEG"),
        "jpeg cmyk": lambda: encoded(image.convert("CMYK"), "JPEG"),
        "jpeg turned": lambda: encoded(image, "JPEG", exif=turned, icc_profile=bytes(200)),
        "png": lambda: encoded(image, "PNG"),
        "png palette": lambda: encoded(image.quantize(16), "PNG", transparency=3),
        "png 16 bits": lambda: encoded(deep, "PNG"),
        "png alpha": lambda: encoded(alpha, "PNG", exif=turned, icc_profile=bytes(200)),
        "png interlaced": lambda: interlaced_png(pixels),
        "png animated": lambda: encoded(image, "PNG", **several),
        "webp": lambda: encoded(image, "WEBP"),
        "webp lossless": lambda: encoded(alpha, "WEBP", lossless=True, exif=turned),
        "webp animated": lambda: encoded(image, "WEBP", **several),
        "tiff": lambda: encoded(image, "TIFF"),
        "tiff lzw": lambda: encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": lambda: encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "tiff packbits": lambda: encoded(image, "TIFF", compression="packbits"),
        "tiff jpeg": lambda: encoded(image, "TIFF", compression="jpeg"),
        "tiff fax": lambda: encoded(image.convert("1"), "TIFF", compression="group4"),
        "tiff float": lambda: encoded(Image.fromarray(pixels[..., 0] / np.float32(255)), "TIFF"),
        "tiff pages": lambda: encoded(image, "TIFF", **several),
        "gif": lambda: encoded(image, "GIF"),
        "gif animated": lambda: encoded(image, "GIF", **several),
        "bmp": lambda: encoded(image, "BMP"),
        "bmp palette": lambda: encoded(image.quantize(16), "BMP"),
        "ppm": lambda: encoded(image, "PPM"),
        "jpeg 2000": lambda: encoded(image, "JPEG2000"),
        "avif": lambda: encoded(image, "AVIF"),
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (KeyError, OSError):  # no such encoder here
            continue
    return found


def bombs() -> dict[str, bytes]:
    """Small files of images that would take gigabytes, by what makes them large."""
    zeros = zlib.compress(bytes(100 * 2**20))
    jpeg = bytearray(encoded(Image.fromarray(photo()), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65000, 65000)
    gif = bytearray(encoded(Image.fromarray(photo()), "GIF"))
    small_screen = bytes(gif).replace(
        struct.pack("<HHHH", 0, 0, 56, 40), struct.pack("<HHHH", 0, 0, 65000, 65000)
    )
    gif[6:10] = struct.pack("<HH", 65000, 65000)
    webp = bytearray(
        encoded(Image.fromarray(photo()), "WEBP", save_all=True, append_images=[Image.new("RGB", (56, 40))])
    )
    webp[24:30] = (16382).to_bytes(3, "little") * 2
    bmp = bytearray(encoded(Image.fromarray(photo()), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    tile = zlib.compress(bytes(64 * 2**20))
    tiles = ((322, 4, 1, 32768), (323, 4, 1, 32768), (324, 4, 1, 8), (325, 4, 1, len(tile)), (259, 3, 1, 8))
    files = {
        "png": png(60000, 60000, data=zlib.compress(bytes(1000))),
        "png strip": png(80_000_000, 1, data=zlib.compress(bytes(1000))),
        "png text": png(4, 4, png_chunk(b"zTXt", b"Comment\0\0" + zeros), data=zlib.compress(bytes(52))),
        "png profile": png(4, 4, png_chunk(b"iCCP", b"profile\0\0" + zeros), data=zlib.compress(bytes(52))),
        "gif screen": bytes(gif),
        "gif frame": small_screen,
        "webp": bytes(webp),
        "bmp": bytes(bmp),
        "ppm": b"P6 60000 60000 255\n" + bytes(1000),
        "jpeg": bytes(jpeg),
        "tiff": tiff_of(60000, 60000, data=bytes(1000)),
        "tiff 3 GB strip": tiff_of(50000, 60000, (279, 4, 1, 3 * 10**9), data=bytes(1000)),
        "tiff 3 GB tag": tiff_of(16, 16, (270, 2, 3 * 10**9, 8), data=bytes(256)),
        "tiff tile": tiff_of(16, 16, *tiles, data=tile),
    }
    avif = seeds().get("avif")
    if avif is not None:
        place = avif.index(b"ispe") + 8
        files["avif"] = avif[:place] + struct.pack(">II", 60000, 60000) + avif[place + 8 :]
    return files
