"""Augmentation: numbers drawn for each sample, applied to whole batches of uint8 images.

Drawing and applying are two pure functions. What is drawn depends on (seed, epoch, sample)
alone, so the number of workers, the batch size and the device change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.registry import Registry

Draw = Callable[[int, int, npt.NDArray[np.int64]], Tensor]
Apply = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """How the images of a training phase are varied.

    Attributes:
        name: The registered name.
        stored: How each image is decoded and kept, once, before any augmentation:
            ``stored.pixels(image)`` gives uint8 ``[3, stored.size, stored.size]``.
        draw: ``draw(seed, epoch, indices)`` gives float32 parameters, shape ``[N, k]``.
        apply: ``apply(images, parameters)`` turns uint8 images ``[N, 3, stored.size,
            stored.size]`` into uint8 images ``[N, 3, size, size]`` of the model's size.
    """

    name: str
    stored: Preprocessing
    draw: Draw
    apply: Apply


AUGMENTATIONS: Registry[Callable[[Preprocessing], Augmentation]] = Registry("augmentation")
