"""Whatever a user calls augmentation, fitted to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from transferkit.augmentations import Augmentation, augmentation, per_sample
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.errors import ArgumentError

AugmentationLike = str | Augmentation | Callable[..., Any]


def resolve_augmentation(value: AugmentationLike, preprocessing: Preprocessing | None) -> Augmentation:
    """Return an augmentation that gives images of the model's size.

    Args:
        value: A registered name, an ``Augmentation``, or a function from PIL image to PIL image.
        preprocessing: The model's, or ``None`` where it has none.

    Raises:
        ArgumentError: The sizes differ, or the model has no preprocessing.
    """
    if isinstance(value, Augmentation):
        side = value.stored.size
        sample = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        size = value.apply(sample, value.draw(0, 0, np.zeros(1, dtype=np.int64))).shape[-1]
        if preprocessing is not None and size != preprocessing.size:
            raise ArgumentError(
                f"The augmentation {value.name!r} gives images of {size} px, but the model takes "
                f"{preprocessing.size} px; make it with transferkit.augmentation(name, preprocessing)."
            )
        return value
    if preprocessing is None:
        raise ArgumentError(
            "Augmentation needs the model's preprocessing; give the model one with "
            "transferkit.attach_spec(model, head=..., preprocessing=...)."
        )
    if isinstance(value, str):
        return augmentation(value, preprocessing)
    return per_sample(value, preprocessing)
