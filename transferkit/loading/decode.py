"""Files, bytes and arrays to upright RGB images, or one clear error."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transferkit.errors import ImageDecodeError

if TYPE_CHECKING:
    from PIL import Image

    Decodable = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | Image.Image

# What Pillow may try on a file's content, whatever its name says. Left out on purpose: formats that
# start another program (EPS runs Ghostscript) and those that no photo comes in. HEIF and JXL exist
# only where a plug-in has registered them.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "QOI"),
    *("HEIF", "JXL"),
)

_ORIENTATION = 0x0112  # the EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF

# How many times as long as it is wide an image may be: a strip of one pixel by a million is a small
# file, and as large as a disk once it is 256 pixels wide.
_LONGEST_STRIP = 1000


def decode(source: Decodable, *, name: str = "", least: int | None = None) -> Image.Image:
    """Return an image in RGB, upright, its pixels in memory and its file closed.

    The EXIF orientation is applied. Transparent images (RGBA, LA, a palette with a transparent
    colour) are laid on white. Grey, black and white, palette and CMYK images become RGB. 16-bit
    grey is scaled to 8 bits; 32-bit integers are taken as 16-bit grey and floats as grey in
    [0, 1], and values outside these ranges are refused, since their scale is unknown. Of an
    animation the first frame is taken. No metadata is kept.

    Args:
        source: A path, an encoded image as bytes, uint8 pixels ``[H, W, 3]``, ``[H, W, 1]`` or
            ``[H, W]``, or a PIL image.
        name: What an error calls an image that has no path.
        least: Where a photo is to be made smaller anyway, how many pixels its shorter side must
            keep: a JPEG is then decoded at a half, a quarter or an eighth of its size if it has
            twice as many or more, which is faster.

    Returns:
        A new image of mode ``"RGB"``. Any number of threads may decode at once.

    Raises:
        ImageDecodeError: The image is missing, damaged, truncated, of no known format, larger than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or a strip more than 1000 times as long as it is wide (in
            the last two cases nothing of it is decoded).

    Source:
        Orientation: EXIF 2.32, tag 0x0112.

    >>> decode(np.zeros((2, 3), dtype=np.uint8)).size
    (3, 2)
    >>> decode(b"not an image", name="cat.jpg")
    Traceback (most recent call last):
    ...
    transferkit.errors.ImageDecodeError: The image 'cat.jpg' cannot be decoded: its content, which \
begins with b'not an image', is of no known image format.
    """
    from PIL import Image

    try:
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            _refuse_strip(source)
            return _upright_rgb(source)
        with _stream(source) as stream:
            image = open_image(stream)
            if least is not None and min(image.size) >= 2 * least:
                image.draft("RGB", (least, least))  # does nothing to other formats than JPEG
            return _upright_rgb(image)
    # Pillow's plug-ins raise nearly every built-in exception on damaged files.
    except Exception as error:
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else name
        named = f"The image {path!r}" if path else f"An image in memory ({type(source).__name__})"
        raise ImageDecodeError(f"{named} cannot be decoded: {reason_of(error)}.") from error


def _stream(source: object) -> IO[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return Path(source).open("rb")
    raise TypeError(
        f"it must be a path, bytes, a uint8 array or a PIL image, and is of type {type(source).__name__}"
    )


def _candidates(prefix: bytes) -> Iterator[str]:
    """Yield the formats that a file with these first bytes may have."""
    from PIL import Image

    for prepare in (Image.preinit, Image.init):  # the common formats first: loading the rest takes time
        prepare()
        for name in _FORMATS:
            accept = Image.OPEN[name][1] if name in Image.OPEN else None
            accepted = accept is not None and accept(prefix)
            # A string means that this build of Pillow lacks the decoder.
            if accepted and not isinstance(accepted, str):
                yield name


def open_image(stream: IO[bytes]) -> Image.Image:
    """Read the header, and refuse what is too large. ``Image.open`` would do, but only warns of it."""
    from PIL import Image

    prefix = stream.read(16)
    if not prefix:
        raise ValueError("it is empty")
    failure: Exception | None = None
    for name in _candidates(prefix):
        stream.seek(0)
        try:
            # No file name: Pillow would map the file, and a file cut short meanwhile kills the process.
            image = Image.OPEN[name][0](stream, "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
            failure = failure or error
            continue
        _refuse_bomb(image)
        _refuse_strip(image)
        return image
    if failure is not None:
        raise ValueError(f"it is damaged ({reason_of(failure)})") from failure
    raise ValueError(f"its content, which begins with {prefix!r}, is of no known image format")


def _refuse_bomb(image: Image.Image) -> None:
    """Refuse an image that says it is too large, or has tiles that are."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    for width, height in (image.size, _tile_size(image)):
        if limit is not None and width * height > limit:
            raise ValueError(
                f"its {width} x {height} pixels exceed the limit of {limit}, as a decompression "
                "bomb would (raise PIL.Image.MAX_IMAGE_PIXELS if the file can be trusted)"
            )


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the size of the tiles of a TIFF, each of which is decoded whole, whatever is seen of it."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise ValueError("its tiles have no size")
    return width, height


def _refuse_strip(image: Image.Image) -> None:
    """Refuse what would become far larger than it is once its shorter side is resized."""
    if max(image.size) > _LONGEST_STRIP * min(image.size):
        raise ValueError(
            f"it is a strip of {image.width} x {image.height} pixels, more than {_LONGEST_STRIP} times as "
            "long as it is wide"
        )


def _from_array(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))
    if pixels.dtype != np.uint8 or not fits or pixels.size == 0:
        raise ValueError(
            "an array must be uint8 of shape [H, W, 3], [H, W, 1] or [H, W], "
            f"and is {pixels.dtype} of shape {list(pixels.shape)}"
        )
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    orientation = orientation_of(image)
    upright = _rgb(image)
    turn = _turn(orientation)
    if turn is not None:
        upright = upright.transpose(turn)
    # An orientation left in the metadata would be applied again by the next reader.
    upright.info = {}
    return upright


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 where it stands upright or does not say."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing about the pixels
        return 1


def _turn(orientation: int) -> Image.Transpose | None:
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)


def _rgb(image: Image.Image) -> Image.Image:
    """Return a new image of mode RGB."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise ValueError(f"its float pixels must lie in [0, 1], and reach from {low:g} to {high:g}")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"its 32-bit pixels must lie in 0…65535, and reach from {low} to {high}")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in a form that continues a sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    lines = text.strip().splitlines()
    reason = lines[0][:300].rstrip(". ") if lines else type(error).__name__
    # "No such file" continues our sentence in small letters; "JPEG data" stays as it is.
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason
