"""Checks of features with their class indices."""

from __future__ import annotations

import torch
from torch import Tensor

from transferkit.checks import require
from transferkit.errors import DataError


def check_labelled(
    owner: str, x: Tensor, y: Tensor, num_classes: int, names: tuple[str, str] = ("x", "y")
) -> Tensor:
    """Return class indices as int64 on the device of the features, both found to be in order.

    Args:
        owner: The function that was given them, for messages.
        x: Features; they must be floats of shape ``[N, D]``.
        y: Class indices, which must be ints of shape ``[N]``.
        num_classes: Number of classes.
        names: What the function calls the two.

    Raises:
        ArgumentError: A shape, type or class index makes no sense.
        DataError: A feature is NaN or infinite.

    >>> check_labelled("fit", torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), 2)
    tensor([0, 1])
    """
    features, targets = names
    valid = x.ndim == 2 and min(x.shape) > 0 and x.is_floating_point()
    wanted = "features: floats of shape [N, D], both at least 1"
    require(valid, owner, features, wanted, f"{x.dtype} of shape {list(x.shape)}")
    valid = y.shape == x.shape[:1] and not y.is_floating_point()
    wanted = "class indices: ints, one for each row of features"
    require(valid, owner, targets, wanted, f"{y.dtype} of shape {list(y.shape)}")
    low, high = int(y.min()), int(y.max())
    wanted = f"class indices from 0 to {num_classes - 1}"
    require(low >= 0 and high < num_classes, owner, targets, wanted, low if low < 0 else high)
    finite = x.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise DataError(
            f"The {features!r} parameter of {owner} must have finite features. "
            f"Got NaN or infinity in row {row} instead."
        )
    return y.to(x.device, torch.int64)
