"""What augmentations do to whole batches of uint8 images, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


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
    moves = parameters.to(images.device, torch.int64)
    across = torch.arange(width, device=images.device)
    across = torch.where(moves[:, 2:] > 0, width - 1 - across, across)
    rows = _mirror(moves[:, :1] + torch.arange(height, device=images.device), height)
    columns = _mirror(moves[:, 1:2] + across, width)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return images.reshape(count, channels, -1).gather(2, places).view_as(images)


def _mirror(positions: Tensor, size: int) -> Tensor:
    """Fold positions beyond either end back in, as reflect padding does."""
    last = size - 1
    return last - (last - positions.abs()).abs()
