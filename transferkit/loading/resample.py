"""Resizing and cropping in one go, within one grey level of Pillow.

Pillow resizes in two passes, each of which rounds to whole grey levels: horizontal, then vertical.
On a CPU torch's kernel for uint8 does the first pass, five times faster. Its weights have 15 bits
where Pillow's have 22, so where a value lies half way between two levels, the kernel may take the
other one. The second pass is done in Pillow's own arithmetic, which cannot make one level more of
that: its weights add up to 1. (If the kernel did both passes, a few values in ten million were two
levels off.) Bicubic weights are negative in part, so the bound does not hold, and Pillow is called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from transferkit.backbones.preprocessing import Preprocessing

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]  # reason: scipy has no types

Pixels8 = npt.NDArray[np.uint8]

_BITS = 22  # of Pillow's weights after the binary point
_HALF = 1 << (_BITS - 1)


class Placement(NamedTuple):
    """Where the crop lies in the resized image, all in pixels.

    Attributes:
        height: Height of the resized image.
        width: Width of the resized image.
        top: First row of the crop.
        left: First column of the crop.
    """

    height: int
    width: int
    top: int
    left: int


def placement(height: int, width: int, preprocessing: Preprocessing) -> Placement:
    """Say to what an image is resized and where it is cropped, as torchvision does it.

    >>> placement(400, 500, Preprocessing(size=224, resize=256))
    Placement(height=256, width=320, top=16, left=48)
    """
    side, size = preprocessing.resize_to, preprocessing.size
    if preprocessing.crop == "squash":
        new_height, new_width = side, side
    elif height < width:
        new_height, new_width = side, int(side * width / height)
    else:
        new_height, new_width = int(side * height / width), side
    # Like torchvision's crop, Python rounds halves to the even number.
    return Placement(new_height, new_width, round((new_height - size) / 2), round((new_width - size) / 2))


def resized(pixels: Pixels8, preprocessing: Preprocessing) -> Pixels8:
    """Resize and crop an image on the CPU, in the calling thread alone.

    Args:
        pixels: Shape ``[H, W, 3]``, contiguous and writable.
        preprocessing: Its size, resize, interpolation and crop are used.

    Returns:
        Shape ``[size, size, 3]``, not contiguous as a rule. Each value is at most one grey level
        from that of ``preprocessing.pixels``; the same where the interpolation is not bilinear.
    """
    height, width = pixels.shape[:2]
    place, size = placement(height, width, preprocessing), preprocessing.size
    rows, columns = slice(place.top, place.top + size), slice(place.left, place.left + size)
    if preprocessing.interpolation == "nearest":
        down = nearest_places(height, place.height)[rows]
        across = nearest_places(width, place.width)[columns]
        return pixels[down[:, None], across]
    # Pillow 13 does the vertical pass first where that has much more to shrink.
    vertical_first = height > place.height and height - place.height > 2 * (width - place.width)
    if preprocessing.interpolation != "bilinear" or vertical_first:
        from PIL import Image

        return _array(preprocessing.pixels(Image.fromarray(pixels)).permute(1, 2, 0))
    # Enlarging to a power of two takes weights of so few bits that the kernel is exact.
    powers = all(side & (side - 1) == 0 for side in place[:2])
    if place.height == height or (powers and height < place.height and width <= place.width):
        return _by_kernel(pixels, place.height, place.width)[rows, columns]
    first, last, matrix = _vertical_pass(height, place.height, rows.start, rows.stop)
    wide = _by_kernel(pixels[first:last], last - first, place.width)[:, columns]
    total = matrix @ wide.reshape(last - first, 3 * size).astype(np.int32)
    total += _HALF
    total >>= _BITS
    cropped: Pixels8 = total.astype(np.uint8).reshape(size, size, 3)
    return cropped


def _by_kernel(pixels: Pixels8, height: int, width: int) -> Pixels8:
    """Give an image another size, by torch's kernel."""
    # The kernel takes another, slower way unless the strides say that channels come last.
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    result = nn_functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return _array(result.permute(0, 2, 3, 1)[0])


def _array(pixels: Tensor) -> Pixels8:
    array: Pixels8 = pixels.numpy()
    return array


@lru_cache(maxsize=1024)
def _vertical_pass(old: int, new: int, start: int, stop: int) -> tuple[int, int, csr_array]:
    """Return the rows that the pass reads, first and behind the last, and the weights, int32."""
    from scipy.sparse import csr_array

    places, weights = taps(old, new, start, stop, "bilinear")
    first, last = int(places.min()), int(places.max()) + 1
    used = weights != 0
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    columns = (places[used] - first).astype(np.int32)
    return first, last, csr_array((weights[used], columns, ends), shape=(stop - start, last - first))


def taps(
    old: int, new: int, start: int, stop: int, interpolation: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Say which pixels make up each pixel of a resized line, and with what weights: Pillow's.

    Args:
        old: Pixels of the line.
        new: Pixels that it gets.
        start: The first of these that is wanted.
        stop: The one behind the last.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        Places in the line and weights in units of 2^-22, both ``[stop - start, k]``.

    >>> places, weights = taps(2, 4, 1, 3, "bilinear")
    >>> places.tolist(), (weights / 2**22).tolist()
    ([[0, 1], [0, 1]], [[0.75, 0.25], [0.25, 0.75]])
    """
    kernel, reach = (_triangle, 1) if interpolation == "bilinear" else (_cubic, 2)
    scale = old / new
    stretch = max(scale, 1.0)
    support = reach * stretch
    center = (np.arange(start, stop) + 0.5) * scale
    lowest = np.maximum((center - support + 0.5).astype(np.int64), 0)
    highest = np.minimum((center + support + 0.5).astype(np.int64), old)
    places = lowest[:, None] + np.arange(int((highest - lowest).max()))
    weights = kernel(np.abs(places - center[:, None] + 0.5) * (1.0 / stretch))
    weights[places >= highest[:, None]] = 0
    weights *= 1.0 / weights.sum(axis=1, keepdims=True)
    whole = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(places, old - 1), whole


def _triangle(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    weights: npt.NDArray[Any] = np.maximum(1 - distance, 0)
    return weights


def _cubic(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the weights of Keys (1981) with a = -0.5, which Pillow uses."""
    a, x = -0.5, distance
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def nearest_places(old: int, new: int) -> npt.NDArray[np.int64]:
    """Say which pixel of a line each pixel of a resized one repeats, int64 ``[new]``.

    >>> nearest_places(4, 2).tolist()
    [1, 3]
    """
    scale = old / new
    # Pillow adds up one step after another, and so does cumsum, rounding included.
    return np.cumsum(np.concatenate([[scale * 0.5], np.full(new - 1, scale)])).astype(np.int64)


def enlarged(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop images of one size, none of whose sides shrinks, on any device.

    The arithmetic is Pillow's own, so the result is that of ``preprocessing.pixels`` to the bit.

    Args:
        images: uint8, shape ``[N, H, W, 3]``.
        preprocessing: Its size, resize, interpolation and crop are used.

    Returns:
        uint8, shape ``[N, size, size, 3]``.

    >>> images = torch.tensor([[[[0], [100]]]], dtype=torch.uint8).expand(1, 1, 2, 3)
    >>> enlarged(images, Preprocessing(size=4, crop="squash"))[0, 0, :, 0].tolist()
    [0, 25, 75, 100]
    """
    height, width = images.shape[1:3]
    place, size = placement(height, width, preprocessing), preprocessing.size
    for axis, old, new, start in ((2, width, place.width, place.left), (1, height, place.height, place.top)):
        places, weights = _taps_on(images.device, old, new, start, start + size, preprocessing.interpolation)
        if len(places) == 1:
            images = images.index_select(axis, places[0])
            continue
        along = [1, 1, 1, 1]
        along[axis] = size
        shape = [*images.shape[:axis], size, *images.shape[axis + 1 :]]
        total = torch.full(shape, _HALF, dtype=torch.int32, device=images.device)
        for place_of, weight in zip(places, weights, strict=True):
            total += images.index_select(axis, place_of).int() * weight.view(along)
        images = (total >> _BITS).clamp_(0, 255).to(torch.uint8)
    return images


# Kept, because a device would have to be waited for at each copy of so little.
@lru_cache(maxsize=1024)
def _taps_on(
    device: torch.device, old: int, new: int, start: int, stop: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Return places and weights, both ``[k, stop - start]``; a single place where it is copied as it is."""
    if old == new or interpolation == "nearest":
        places = nearest_places(old, new)[start:stop, None]
        weights = np.full(places.shape, 1 << _BITS, dtype=np.int32)
    else:
        places, weights = taps(old, new, start, stop, interpolation)
    return torch.from_numpy(places.T.copy()).to(device), torch.from_numpy(weights.T.copy()).to(device)
