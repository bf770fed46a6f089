"""What augmentations do to whole batches of uint8 images, on any device.

Positions and weights are whole numbers wherever that is possible, so that the same parameters
give the same pixels in any batch and on any device.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nn_functional


def shift_and_flip(images: Tensor, parameters: Tensor) -> Tensor:
    """Crop each image at an offset, beyond its border mirrored, and flip some.

    The same as reflect padding, an integer crop and a horizontal flip, in one gather.

    Args:
        images: uint8, shape ``[N, 3, S, S]``.
        parameters: Shift of rows, shift of columns (whole pixels, less than ``S`` either way)
            and whether to flip (0 or 1), shape ``[N, 3]``.

    Returns:
        uint8, shape ``[N, 3, S, S]``.

    >>> row = torch.arange(4, dtype=torch.uint8).expand(1, 3, 4, 4)
    >>> shift_and_flip(row, torch.tensor([[0.0, 1.0, 0.0]]))[0, 0, 0].tolist()
    [1, 2, 3, 2]
    """
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1)
    moves = parameters.to(images.device, torch.int64)
    across = torch.arange(width, device=images.device)
    across = torch.where(moves[:, 2:] > 0, width - 1 - across, across)
    rows = _mirror(moves[:, :1] + torch.arange(height, device=images.device), height)
    columns = _mirror(moves[:, 1:2] + across, width)
    rows = rows + height * torch.arange(count, device=images.device)[:, None]
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten()
    return pixels.reshape(-1, channels).index_select(0, places).view(pixels.shape).permute(0, 3, 1, 2)


def _mirror(positions: Tensor, size: int) -> Tensor:
    """Fold positions beyond either end back in, as reflect padding does."""
    last = size - 1
    return last - (last - positions.abs()).abs()


def draw_boxes(
    numbers: npt.NDArray[np.float32],
    side: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    longest: int,
) -> npt.NDArray[np.float32]:
    """Turn uniform numbers into random boxes in a square, drawn as torchvision draws them.

    Area and aspect ratio are tried in turn until the box fits; if none does, it is the square.

    Args:
        numbers: Uniform in [0, 1), shape ``[N, 2 * tries + 2]``.
        side: Side of the square, in pixels.
        scale: Range of the box's area, as a share of the square's.
        ratio: Range of width over height; its logarithm is uniform.
        longest: The longest side that a box may have, in pixels.

    Returns:
        Top, left, height and width in whole pixels, shape ``[N, 4]``.

    Source:
        Szegedy et al. (2015), https://arxiv.org/abs/1409.4842, section 6, and
        ``torchvision.transforms.v2.RandomResizedCrop``.

    >>> numbers = np.full((1, 4), 0.5, dtype=np.float32)
    >>> draw_boxes(numbers, 100, scale=(0.25, 0.25), ratio=(1.0, 1.0), longest=100)
    array([[25., 25., 50., 50.]], dtype=float32)
    """
    tries = numbers[:, :-2].astype(np.float64)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * tries[:, 0::2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * tries[:, 1::2])
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (np.minimum(heights, widths) > 0) & (np.maximum(heights, widths) <= longest)
    row, first = np.arange(len(numbers)), fits.argmax(axis=1)
    found = fits[row, first]
    height = np.where(found, heights[row, first], side)
    width = np.where(found, widths[row, first], side)
    top = np.floor(numbers[:, -2] * (side - height + 1))
    left = np.floor(numbers[:, -1] * (side - width + 1))
    return np.column_stack([top, left, height, width]).astype(np.float32)


def resized_crop_and_flip(images: Tensor, parameters: Tensor, size: int) -> Tensor:
    """Cut a box out of each image, resize it to a square (bilinear, antialiased) and flip some.

    Args:
        images: uint8, shape ``[N, 3, S, S]``.
        parameters: Top, left, height and width of the box in whole pixels and whether to flip
            (0 or 1), shape ``[N, 5]``.
        size: Side of the results, in pixels.

    Returns:
        uint8, shape ``[N, 3, size, size]``.

    >>> images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    >>> resized_crop_and_flip(images, torch.tensor([[0.0, 4.0, 4.0, 4.0, 1.0]]), 4)[0, 0, 0].tolist()
    [7, 6, 5, 4]
    """
    if images.device.type != "cpu":
        return resample_boxes(images, parameters, size)
    # On a CPU torch's kernel for one uint8 image is ten times faster than any batched form, and
    # twice as fast as that where the channels lie last in memory.
    results = torch.empty(
        (len(images), images.shape[1], size, size), dtype=torch.uint8, memory_format=torch.channels_last
    )
    pixels = images.permute(0, 2, 3, 1)
    for number, (top, left, height, width, flip) in enumerate(parameters.long().tolist()):
        crop = pixels[number : number + 1, top : top + height, left : left + width].contiguous()
        resized = nn_functional.interpolate(
            crop.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True
        )
        results[number] = (resized.flip(-1) if flip else resized)[0]
    return results


def resample_boxes(images: Tensor, parameters: Tensor, size: int) -> Tensor:
    """Do what ``resized_crop_and_flip`` does in a few operations on the whole batch.

    The arithmetic is that of torch's uint8 kernel for CPUs with AVX2 (columns first, weights as
    whole numbers, a uint8 image in between), so both give the same pixels.
    """
    box = parameters.to(images.device, torch.float64)
    most = math.ceil(2 * max(images.shape[-1] / size, 1))
    places, weights, bits = _taps(box[:, 1], box[:, 3], size, most)
    flipped = box[:, 4].bool()[:, None, None]
    places = torch.where(flipped, places.flip(1), places)
    weights = torch.where(flipped, weights.flip(1), weights)
    narrow = _weighted_sum(images, places[:, None, None], weights[:, None, None], bits, axis=3)
    places, weights, bits = _taps(box[:, 0], box[:, 2], size, most)
    return _weighted_sum(narrow, places[:, None, :, None], weights[:, None, :, None], bits, axis=2)


def _taps(start: Tensor, length: Tensor, size: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Say which pixels make up each output pixel along one axis, and with what weights.

    Returns:
        Places (int64) and weights (int32), both ``[N, size, most]``, and the number of bits
        after the binary point of the weights (int32), ``[N]``.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    reach = scale.clamp_min(1)
    center = scale * (torch.arange(size, device=start.device)[:, None] + 0.5)
    places = torch.floor(center - reach + 0.5) + torch.arange(most, device=start.device)
    weights = (1 - (places - center + 0.5).abs() / reach).clamp_min(0)
    weights = torch.where((places >= 0) & (places < length), weights, 0)
    weights = weights / weights.sum(dim=2, keepdim=True)
    # The most bits with which the largest weight still fits into 15 bits, as the kernel has it. Powers
    # are shifted ones, because no device rounds those.
    powers = 1 << torch.arange(1, 23, device=start.device)
    scaled = torch.floor(weights.amax(dim=(1, 2))[:, None] * powers + 0.5)
    bits = (scaled < 2**15).sum(dim=1, dtype=torch.int32)
    weights = torch.floor(weights * (1 << bits)[:, None, None] + 0.5).to(torch.int32)
    places = torch.minimum(places.clamp_min(0), length - 1) + start
    return places.long(), weights, bits


def _weighted_sum(images: Tensor, places: Tensor, weights: Tensor, bits: Tensor, axis: int) -> Tensor:
    """Replace one axis of the images by weighted sums over ``places`` along it."""
    shape = list(images.shape)
    shape[axis] = places.shape[axis]
    bits = bits[:, None, None, None]
    total = (torch.ones_like(bits) << (bits - 1)).repeat(1, *shape[1:])
    for tap in range(places.shape[-1]):
        values = images.gather(axis, places[..., tap].expand(shape))
        total += values * weights[..., tap]
    return (total >> bits).to(torch.uint8)


def erase(images: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """Paint a box of each image with one color.

    Args:
        images: uint8, shape ``[N, 3, S, S]``.
        boxes: Top, left, height and width in whole pixels; nothing where the height is 0;
            shape ``[N, 4]``.
        fill: The color, uint8, shape ``[3]``.

    Returns:
        uint8, shape ``[N, 3, S, S]``.

    >>> white = torch.tensor([255, 255, 255], dtype=torch.uint8)
    >>> erase(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([[0, 1, 1, 2]]), white)[0, 0, 0]
    tensor([  0, 255, 255,   0], dtype=torch.uint8)
    """
    boxes = boxes.to(images.device)
    inside = _within(images.shape[2], boxes[:, 0], boxes[:, 2])[:, None, :, None]
    inside = inside & _within(images.shape[3], boxes[:, 1], boxes[:, 3])[:, None, None, :]
    # So few bytes are handed over at once, and the device need not be waited for.
    color = fill.to(images.device, non_blocking=True)
    return torch.where(inside, color[:, None, None], images)


def _within(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Say which of ``size`` positions lie in each interval: bool, shape ``[N, size]``."""
    positions = torch.arange(size, device=start.device)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])
