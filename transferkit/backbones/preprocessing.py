"""How an image becomes the tensor that a backbone was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from transferkit.checks import check_choice, check_int, is_number, require
from transferkit.errors import UnknownNameError
from transferkit.registry import nearest, shown

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_IMAGE = 2**14
"""Side in pixels: Pillow opens no wider images, so that a file which asks for them is not one of a model."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_CROPS = ("center", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """The record that travels with weights: resize, crop, then normalise.

    Args:
        size: Side of the square that reaches the model, in pixels.
        resize: Side to which the image is resized first, in pixels: its shorter side
            where ``crop`` is ``"center"``. ``None`` stands for ``size``.
        mean: Mean of each of the channels red, green and blue, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``, antialiased.
        crop: ``"center"`` keeps the aspect ratio and cuts out the middle;
            ``"squash"`` resizes the whole image to the square.

    Raises:
        ArgumentError: A field has a value that makes no sense.

    >>> Preprocessing(size=64, resize=73).with_size(128).resize
    146
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: str = "center"

    def __post_init__(self) -> None:
        check_int("Preprocessing", "size", self.size, 1)
        if self.resize is None:
            object.__setattr__(self, "resize", self.size)
        check_int("Preprocessing", "resize", self.resize, self.size)
        for field in ("mean", "std"):
            values = getattr(self, field)
            valid = isinstance(values, (tuple, list)) and len(values) == 3
            valid = valid and all(is_number(value) for value in values)
            require(valid, "Preprocessing", field, "three floats, one for each channel", values)
            object.__setattr__(self, field, tuple(float(value) for value in values))
        require(min(self.std) > 0, "Preprocessing", "std", "three positive floats", self.std)
        check_choice("Preprocessing", "interpolation", self.interpolation, _INTERPOLATIONS)
        check_choice("Preprocessing", "crop", self.crop, _CROPS)

    @property
    def resize_to(self) -> int:
        """The side to which an image is resized first, in pixels."""
        return self.size if self.resize is None else self.resize

    def with_size(self, size: int) -> Preprocessing:
        """Return the same preprocessing at another size, with the same ratio of resize to crop."""
        check_int("Preprocessing.with_size", "size", size, 1)
        return dataclasses.replace(self, size=size, resize=round(size * self.resize_to / self.size))

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop an RGB image.

        Returns:
            uint8, shape ``[3, size, size]``.
        """
        mode = InterpolationMode(self.interpolation)
        squash = self.crop == "squash"
        resized = F.resize(image, [self.resize_to] * 2 if squash else [self.resize_to], interpolation=mode)
        pixels: Tensor = F.pil_to_tensor(F.center_crop(resized, [self.size, self.size]))
        return pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale uint8 pixels to [0, 1] and normalise each channel.

        Args:
            pixels: uint8, shape ``[..., 3, H, W]``, on any device.

        Returns:
            float32 of the same shape, on the same device.
        """
        # Divided, not multiplied by 1/255 as in v2: to the bit what torchvision's weights were tested with.
        scaled: Tensor = pixels.to(torch.float32).div(255)
        F.normalize(scaled, self.mean, self.std, inplace=True)
        return scaled

    def __call__(self, image: Image.Image) -> Tensor:
        """Return what the model takes for one RGB image: float32, shape ``[3, size, size]``."""
        return self.normalize(self.pixels(image))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Build the record from what ``to_dict`` returned."""
        return cls(**fields)


PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "imagenet": Preprocessing(size=224, resize=256),
    "cifar10": Preprocessing(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "squash": Preprocessing(size=224, crop="squash"),
}


def preprocessing(value: str | Preprocessing) -> Preprocessing:
    """Return the record itself, or the one that a name stands for.

    Raises:
        UnknownNameError: There is no preprocessing of that name.

    >>> preprocessing("imagenet").resize
    256
    """
    if isinstance(value, Preprocessing):
        return value
    if not isinstance(value, str) or value not in PREPROCESSINGS:
        raise UnknownNameError(
            f"There is no preprocessing {shown(value)}. {nearest(str(value), PREPROCESSINGS)}"
        )
    return PREPROCESSINGS[value]
