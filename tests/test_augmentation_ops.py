"""The operations behind the presets, against torchvision and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from transferkit.augmentation_ops import draw_boxes, erase, resample_boxes, resized_crop_and_flip


def noise(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def boxes_in(count: int, side: int) -> torch.Tensor:
    height, width = torch.randint(1, side + 1, (2, count))
    top, left = (torch.rand(2, count) * (side + 1 - torch.stack([height, width]))).floor()
    return torch.stack([top, left, height, width, torch.arange(count) % 2], dim=1).float()


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="another kernel is used"
)
@pytest.mark.parametrize(("side", "size"), [(38, 32), (40, 8), (8, 40), (16, 16), (1, 1)])
def test_the_batched_form_gives_the_bits_of_the_cpu_kernel(
    side: int, size: int, device: torch.device
) -> None:
    images, parameters = noise(50, side), boxes_in(50, side)
    batched = resample_boxes(images.to(device), parameters.to(device), size).cpu()
    assert torch.equal(batched, resized_crop_and_flip(images, parameters, size))


def test_a_constant_image_stays_constant(device: torch.device) -> None:
    for value in (0, 1, 128, 255):
        images = torch.full((20, 3, 30, 30), value, dtype=torch.uint8, device=device)
        assert (resample_boxes(images, boxes_in(20, 30), 24) == value).all()


def test_a_box_that_never_fits_becomes_the_square() -> None:
    numbers = np.full((3, 6), 0.5, dtype=np.float32)
    boxes = draw_boxes(numbers, 20, scale=(1.0, 1.0), ratio=(2.0, 2.0), longest=20)
    assert boxes.tolist() == [[0.0, 0.0, 20.0, 20.0]] * 3


def test_the_first_box_that_fits_is_taken() -> None:
    # The first try has an area of 100% at 4:1, which does not fit; the second 25% at 1:1.
    numbers = np.array([[1.0, 1.0, 0.0, 0.5, 0.0, 0.999]], dtype=np.float32)
    boxes = draw_boxes(numbers, 20, scale=(0.25, 1.0), ratio=(0.25, 4.0), longest=20)
    assert boxes.tolist() == [[0.0, 10.0, 10.0, 10.0]]


def test_erase_is_torchvisions(device: torch.device) -> None:
    images = noise(30, 12)
    boxes = boxes_in(30, 12)[:, :4]
    boxes[::3] = 0
    fill = torch.tensor([9, 8, 7], dtype=torch.uint8)
    result = erase(images.to(device), boxes.to(device), fill).cpu()
    for image, (top, left, height, width), got in zip(images, boxes.int().tolist(), result, strict=True):
        assert torch.equal(got, F.erase(image, top, left, height, width, fill[:, None, None]))
