"""Augmentation: numbers drawn for each sample, applied to whole batches of uint8 images.

Drawing and applying are two pure functions. What is drawn depends on (seed, epoch, sample)
alone, so the number of workers, the batch size and the device change nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.augmentation_ops import draw_boxes, erase, resized_crop_and_flip, shift_and_flip
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.preprocessing import preprocessing as resolve_preprocessing
from transferkit.checks import require
from transferkit.errors import ArgumentError
from transferkit.registry import Registry, shown
from transferkit.seeding import uniforms
from transferkit.trivial_augment import draw_operations, trivial_augment

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
        reduced: Whether ``stored`` is a copy to cut crops from, for which a JPEG that is at least
            four times as large may be decoded at a reduced scale: faster, and a little blurred.

    Raises:
        ArgumentError: A field is of another type.
    """

    name: str
    stored: Preprocessing
    draw: Draw
    apply: Apply
    reduced: bool = False

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name != ""
        require(named, "Augmentation", "name", "a non-empty text", self.name)
        kept = isinstance(self.stored, Preprocessing)
        require(kept, "Augmentation", "stored", "a Preprocessing record", self.stored)
        for field in ("draw", "apply"):
            value = getattr(self, field)
            require(callable(value), "Augmentation", field, "a function", value)
        flag = isinstance(self.reduced, bool)
        require(flag, "Augmentation", "reduced", "True or False", self.reduced)


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
        ArgumentError: What was registered under the name makes something else.

    >>> light = augmentation("light", "cifar10")
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> light.apply(images, light.draw(0, 1, np.array([5, 9]))).shape
    torch.Size([2, 3, 32, 32])
    """
    made = AUGMENTATIONS[name](resolve_preprocessing(preprocessing))
    if not isinstance(made, Augmentation):
        raise ArgumentError(
            f"The function registered as {name!r} must return an Augmentation. Got {shown(made)} instead."
        )
    return made


def is_built_in(augmentation: Augmentation, preprocessing: Preprocessing) -> bool:
    """Whether an augmentation is, itself, what a name of this package gives for a preprocessing."""
    return augmentation.name in _BUILT_IN and augmentation is AUGMENTATIONS[augmentation.name](preprocessing)


_BUILT_IN = ("none", "light", "standard", "strong")
# One object for each preprocessing, so that it is known again.
_kept = functools.lru_cache(maxsize=32)


@register_augmentation("none")
@_kept
def _none(preprocessing: Preprocessing) -> Augmentation:
    """Leave every image as it is."""

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        return torch.zeros(len(indices), 0)

    def apply(images: Tensor, parameters: Tensor) -> Tensor:
        return images

    return Augmentation("none", preprocessing, draw, apply)


@register_augmentation("light")
@_kept
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


_TRIES = 10


def _larger(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing of the copy that crops are cut from, 1.2 times the model's size."""
    side = round(1.2 * preprocessing.size)
    return dataclasses.replace(preprocessing, size=side, resize=side)


def _draw_crops(numbers: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Return boxes and flips, ``[N, 5]``, for uniform numbers ``[N, 2 * _TRIES + 3]``."""
    boxes = draw_boxes(numbers[:, :-1], side, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3), longest=side)
    return np.column_stack([boxes, numbers[:, -1] < 0.5]).astype(np.float32)


@register_augmentation("standard")
@_kept
def _standard(preprocessing: Preprocessing) -> Augmentation:
    """Cut out a random box, resize it to the model's size, and flip one image in two.

    The box has 25 to 100% of the area and an aspect ratio of 3/4 to 4/3. It is cut from a square
    copy that is kept of each photo: the shorter side resized to 1.2 times the model's size, and
    the middle cut out (the whole photo where the preprocessing squashes). Cropping the photo
    itself would differ in two ways: boxes could reach what lies outside that square, and small
    boxes would show detail that the copy has lost. Resizing is bilinear and antialiased.

    Source:
        Szegedy et al. (2015), https://arxiv.org/abs/1409.4842, section 6.
    """
    stored = _larger(preprocessing)

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(_draw_crops(uniforms(seed, epoch, indices, 2 * _TRIES + 3), stored.size))

    def apply(images: Tensor, parameters: Tensor) -> Tensor:
        return resized_crop_and_flip(images, parameters, preprocessing.size)

    return Augmentation("standard", stored, draw, apply, reduced=True)


@register_augmentation("strong")
@_kept
def _strong(preprocessing: Preprocessing) -> Augmentation:
    """Do what ``standard`` does, then TrivialAugment, then paint over a box in one image of four.

    The box has 2 to 33% of the area and the mean color of the preprocessing.

    Source:
        Müller and Hutter (2021), https://arxiv.org/abs/2103.10158, and Zhong et al. (2020),
        https://arxiv.org/abs/1708.04896.
    """
    stored, size = _larger(preprocessing), preprocessing.size
    fill = torch.tensor([round(255 * mean) for mean in preprocessing.mean], dtype=torch.uint8)
    parts = np.cumsum([2 * _TRIES + 3, 3, 2 * _TRIES + 2])

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        crop, operation, box, chance = np.split(
            uniforms(seed, epoch, indices, int(parts[-1]) + 1), parts, axis=1
        )
        boxes = draw_boxes(box, size, scale=(0.02, 0.33), ratio=(0.3, 3.3), longest=max(size - 1, 1))
        boxes *= (chance < 0.25) & (boxes[:, 2:3] < size)
        drawn = [_draw_crops(crop, stored.size), draw_operations(operation), boxes]
        return torch.from_numpy(np.column_stack(drawn))

    def apply(images: Tensor, parameters: Tensor) -> Tensor:
        # TrivialAugment takes a quarter less time where the channels lie first in memory.
        cropped = resized_crop_and_flip(images, parameters[:, :5], size).contiguous()
        return erase(trivial_augment(cropped, parameters[:, 5:7]), parameters[:, 7:], fill)

    return Augmentation("strong", stored, draw, apply, reduced=True)


def per_sample(
    function: Callable[[Any], Any],
    preprocessing: Preprocessing | str,
    name: str = "custom",
    *,
    stored: Preprocessing | None = None,
) -> Augmentation:
    """Make an augmentation of a function on one image, such as a torchvision transform.

    The function runs on one image after another, in the calling process, while ``random``,
    ``numpy.random`` and torch's CPU generator are seeded with a number that was drawn for the
    sample, and restored afterwards. A function that keeps a generator of its own is outside that.

    Args:
        function: Takes an RGB PIL image and returns one of the model's size, as a PIL image, a
            uint8 tensor ``[3, H, W]`` or a uint8 array ``[H, W, 3]``, not normalised.
        preprocessing: That of the model's weights.
        name: What the augmentation is called in records.
        stored: The preprocessing of the images that the function is given; by default that of
            the model. A larger one leaves room for cropping.

    Raises:
        ArgumentError: ``function`` is not callable, or later returned something else.

    >>> from torchvision.transforms import v2
    >>> jitter = per_sample(v2.ColorJitter(brightness=0.5), "cifar10")
    >>> images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    >>> first, second = jitter.apply(images, jitter.draw(0, 1, np.array([5, 9])))
    >>> bool((first == second).any())
    False
    """
    require(callable(function), "per_sample", "function", "a function of an RGB PIL image", function)
    model = resolve_preprocessing(preprocessing)

    def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        # Two whole numbers of 24 bits, the most that float32 holds exactly.
        return torch.from_numpy(uniforms(seed, epoch, indices, 2) * np.float32(2**24))

    def apply(images: Tensor, parameters: Tensor) -> Tensor:
        from PIL import Image

        results = []
        for pixels, (high, low) in zip(images.cpu(), parameters.long().tolist(), strict=True):
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            with _seeded((high << 24) + low):
                results.append(_pixels_of(function(image), name, model.size))
        return torch.stack(results).to(images.device) if results else images

    return Augmentation(name, model if stored is None else stored, draw, apply)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, and give them back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # reason: the global state
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # reason: the user's function may draw from it
    # Not torch.manual_seed: that would seed the accelerators' generators too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # reason: the global state
        torch.set_rng_state(states[2])


def _pixels_of(result: Any, name: str, size: int) -> Tensor:
    """Return what a user's function returned as uint8 ``[3, size, size]``, or say what is wrong."""
    from PIL import Image

    pixels = result
    if isinstance(result, Image.Image):
        pixels = np.array(result.convert("RGB"))
    if isinstance(pixels, np.ndarray) and pixels.ndim == 3:
        pixels = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.shape != (3, size, size):
        shape = f" of shape {list(pixels.shape)}" if isinstance(pixels, (Tensor, np.ndarray)) else ""
        kind = f" and {pixels.dtype}" if shape else ""
        raise ArgumentError(
            f"The augmentation {name!r} must return an RGB image of {size} x {size} pixels, as a PIL image, "
            f"a uint8 tensor [3, {size}, {size}] or a uint8 array [{size}, {size}, 3], not normalised. "
            f"Got {type(result).__name__}{shape}{kind} instead."
        )
    return pixels.as_subclass(Tensor).cpu()
