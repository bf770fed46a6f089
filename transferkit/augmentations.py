"""Augmentation: numbers drawn for each sample, applied to whole batches of uint8 images.

Drawing and applying are two pure functions. What is drawn depends on (seed, epoch, sample)
alone, so the number of workers, the batch size and the device change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.augmentation_ops import shift_and_flip
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.preprocessing import preprocessing as resolve_preprocessing
from transferkit.registry import Registry
from transferkit.seeding import uniforms

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


def register_augmentation(
    name: str,
) -> Callable[[Callable[[Preprocessing], Augmentation]], Callable[[Preprocessing], Augmentation]]:
    """Decorate a function that makes an ``Augmentation`` for a ``Preprocessing``.

    Args:
        name: What users call it; it must be free.

    Raises:
        ArgumentError: The name is taken or empty.
    """
    return AUGMENTATIONS.register(name)


def list_augmentations() -> list[str]:
    """Return the names of all augmentations, sorted.

    >>> "light" in list_augmentations()
    True
    """
    return sorted(AUGMENTATIONS)


def augmentation(name: str, preprocessing: Preprocessing | str) -> Augmentation:
    """Return a registered augmentation, fitted to the preprocessing of a model.

    Args:
        name: One of ``list_augmentations()``.
        preprocessing: That of the model's weights; its ``size`` is the size of the results.

    Raises:
        UnknownNameError: There is no augmentation, or no preprocessing, of that name.

    >>> light = augmentation("light", "cifar10")
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> light.apply(images, light.draw(0, 1, np.array([5, 9]))).shape
    torch.Size([2, 3, 32, 32])
    """
    return AUGMENTATIONS[name](resolve_preprocessing(preprocessing))


@register_augmentation("none")
def _none(preprocessing: Preprocessing) -> Augmentation:
    """Leave every image as it is."""

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        return torch.zeros(len(indices), 0)

    def apply(images: Tensor, parameters: Tensor) -> Tensor:
        return images

    return Augmentation("none", preprocessing, draw, apply)


@register_augmentation("light")
def _light(preprocessing: Preprocessing) -> Augmentation:
    """Shift by up to an eighth of the side, the border mirrored, and flip one image in two.

    The parameters are the shifts of rows and columns in pixels, and 1 for a flipped image.

    Source:
        He et al. (2016), https://arxiv.org/abs/1512.03385, section 4.2 (there padded with zeros).
    """
    pad = preprocessing.size // 8

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        numbers = uniforms(seed, epoch, indices, 3)
        shifts = np.floor(numbers[:, :2] * (2 * pad + 1)) - pad
        return torch.from_numpy(np.column_stack([shifts, numbers[:, 2] < 0.5]).astype(np.float32))

    return Augmentation("light", preprocessing, draw, shift_and_flip)
