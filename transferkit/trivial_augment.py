"""TrivialAugment (wide): one random operation of random strength for each image of a batch.

The operations and their strengths are those of ``torchvision.transforms.v2.TrivialAugmentWide``;
here they are drawn for each sample and run by torchvision on all images that drew the same one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BINS = 31


@dataclass(frozen=True)
class Operation:
    """One operation of TrivialAugment.

    Attributes:
        run: ``run(images, magnitude)`` for uint8 images ``[N, 3, H, W]``.
        magnitudes: The strengths to draw from, weakest first; a single 0 where there is none.
        signed: Whether a drawn strength is negated half of the time.
    """

    run: Callable[[Tensor, float], Tensor]
    magnitudes: tuple[float, ...] = (0.0,)
    signed: bool = False


def _affine(
    images: Tensor,
    *,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] | None = None,
) -> Tensor:
    """Translate by pixels or shear by slopes; what comes into view is black."""
    moved: Tensor = F.affine(
        images,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        center=None if center is None else list(center),
    )
    return moved


def _contrast(images: Tensor, magnitude: float) -> Tensor:
    # One by one: the order in which a mean is summed may depend on how many images there are.
    return torch.stack([F.adjust_contrast(image, 1.0 + magnitude) for image in images])


def _steps(first: float, last: float) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, BINS).tolist())


_SLOPES = _FACTORS = _steps(0.0, 0.99)
_PIXELS = _steps(0.0, 32.0)
_BITS = tuple(float(round(8 - 6 * step / (BINS - 1))) for step in range(BINS))

OPERATIONS = MappingProxyType(
    {
        "Identity": Operation(lambda images, _: images),
        "ShearX": Operation(lambda images, m: _affine(images, shear=(m, 0.0), center=(0, 0)), _SLOPES, True),
        "ShearY": Operation(lambda images, m: _affine(images, shear=(0.0, m), center=(0, 0)), _SLOPES, True),
        "TranslateX": Operation(lambda images, m: _affine(images, translate=(int(m), 0)), _PIXELS, True),
        "TranslateY": Operation(lambda images, m: _affine(images, translate=(0, int(m))), _PIXELS, True),
        "Rotate": Operation(lambda images, m: F.rotate(images, m), _steps(0.0, 135.0), True),
        "Brightness": Operation(lambda images, m: F.adjust_brightness(images, 1.0 + m), _FACTORS, True),
        "Color": Operation(lambda images, m: F.adjust_saturation(images, 1.0 + m), _FACTORS, True),
        "Contrast": Operation(_contrast, _FACTORS, True),
        "Sharpness": Operation(lambda images, m: F.adjust_sharpness(images, 1.0 + m), _FACTORS, True),
        "Posterize": Operation(lambda images, m: F.posterize(images, int(m)), _BITS),
        "Solarize": Operation(lambda images, m: F.solarize(images, 255.0 * m), _steps(1.0, 0.0)),
        "AutoContrast": Operation(lambda images, _: F.autocontrast(images)),
        "Equalize": Operation(lambda images, _: F.equalize(images)),
    }
)
_IN_ORDER = tuple(OPERATIONS.values())


def draw_operations(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Turn uniform numbers into an operation and a magnitude for each sample.

    Args:
        numbers: Uniform in [0, 1): for operation, magnitude and sign; shape ``[N, 3]``.

    Returns:
        Position in ``OPERATIONS`` and signed magnitude, float32, shape ``[N, 2]``.

    >>> draw_operations(np.array([[0.99, 0.0, 0.0], [0.1, 0.99, 0.2]], dtype=np.float32))
    array([[13.  ,  0.  ],
           [ 1.  , -0.99]], dtype=float32)
    """
    drawn = np.empty((len(numbers), 2), dtype=np.float32)
    for row, (operation_number, magnitude_number, sign_number) in enumerate(numbers.tolist()):
        position = int(operation_number * len(_IN_ORDER))
        operation = _IN_ORDER[position]
        magnitude = operation.magnitudes[int(magnitude_number * len(operation.magnitudes))]
        drawn[row] = position, -magnitude if operation.signed and sign_number < 0.5 else magnitude
    return drawn


def trivial_augment(images: Tensor, parameters: Tensor) -> Tensor:
    """Run on each image the operation that it drew.

    Args:
        images: uint8, shape ``[N, 3, H, W]``.
        parameters: What ``draw_operations`` returned, shape ``[N, 2]``.

    Returns:
        uint8, shape ``[N, 3, H, W]``.

    Source:
        Müller and Hutter (2021), https://arxiv.org/abs/2103.10158.

    >>> images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    >>> brighter = torch.tensor([[0.0, 0.0], [6.0, 0.99]])
    >>> trivial_augment(images, brighter)[:, 0, 0, 0]
    tensor([100, 199], dtype=torch.uint8)
    """
    same: defaultdict[tuple[float, float], list[int]] = defaultdict(list)
    for position, (operation, magnitude) in enumerate(parameters.tolist()):
        same[operation, magnitude].append(position)
    results = images.clone()
    for (operation, magnitude), positions in same.items():
        chosen = torch.tensor(positions, device=images.device)
        results[chosen] = _IN_ORDER[int(operation)].run(images[chosen], magnitude)
    return results
