"""One image, from wherever it is to the uint8 pixels that preprocessing asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import check_choice
from transferkit.loading.decode import decode as decode_image
from transferkit.loading.jpeg import plain_jpeg
from transferkit.loading.resample import resized
from transferkit.runtime import DECODINGS

if TYPE_CHECKING:
    from transferkit.loading.decode import Decodable


def pixels_of(
    source: Decodable, preprocessing: Preprocessing, *, name: str = "", decode: str = "fast"
) -> Tensor:
    """Decode, resize and crop one image.

    Args:
        source: A path, an encoded image as bytes, uint8 pixels ``[H, W, 3]``, ``[H, W, 1]`` or
            ``[H, W]``, or a PIL image.
        preprocessing: Its size, resize, interpolation and crop are used.
        name: What an error calls an image that has no path.
        decode: ``"exact"`` for the pixels of ``preprocessing.pixels``, made by Pillow alone, to
            the bit; ``"fast"`` for what is at most one grey level from them.

    Returns:
        uint8, shape ``[3, size, size]``. Any number of threads may call it at once.

    Raises:
        ImageDecodeError: As ``decode`` raises it.

    >>> grey = np.full((6, 8), 128, dtype=np.uint8)
    >>> pixels_of(grey, Preprocessing(size=2, resize=3)).flatten().unique()
    tensor([128], dtype=torch.uint8)
    """
    check_choice("pixels_of", "decode", decode, DECODINGS)
    pixels = fitted(read_pixels(source, preprocessing, name=name, exact=decode == "exact"), preprocessing)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def read_pixels(
    source: Decodable,
    preprocessing: Preprocessing,
    *,
    name: str = "",
    exact: bool = False,
    reduced: bool = False,
) -> npt.NDArray[np.uint8]:
    """Decode an image, and resize and crop it unless it is small.

    Args:
        source: As for ``pixels_of``.
        preprocessing: As for ``pixels_of``.
        name: As for ``pixels_of``.
        exact: Whether Pillow must do it all; then no image counts as small.
        reduced: Whether a JPEG that is at least four times as large as it will be may be decoded
            at a reduced scale, at least twice as large, which blurs it a little differently.

    Returns:
        Shape ``[size, size, 3]``, or ``[H, W, 3]`` of a small image, which ``fitted`` enlarges.
    """
    if exact:
        image = decode_image(source, name=name)
        return np.asarray(preprocessing.pixels(image).permute(1, 2, 0), dtype=np.uint8)
    least = 2 * preprocessing.resize_to if reduced else None
    pixels = plain_jpeg(source, least=least)
    if pixels is None:
        pixels = np.array(decode_image(source, name=name, least=least))
    small = _is_small(pixels.shape[0], pixels.shape[1], preprocessing.size)
    return pixels if small else resized(pixels, preprocessing)


def fitted(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return what ``read_pixels`` gave in the size of the preprocessing, ``[size, size, 3]``."""
    return pixels if len(pixels) == preprocessing.size else resized(pixels, preprocessing)


def _is_small(height: int, width: int, size: int) -> bool:
    """Whether an image takes at most a quarter of the memory before it is enlarged.

    A strip is none, since what is cropped from it later has to be enlarged first.
    """
    return 2 * max(height, width) <= min(size, 4 * min(height, width))
