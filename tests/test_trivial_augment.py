"""TrivialAugment, operation by operation, against torchvision on single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from transferkit.trivial_augment import OPERATIONS, draw_operations, trivial_augment

REFERENCE = v2.TrivialAugmentWide()
NAMES = list(OPERATIONS)


def test_operations_and_magnitudes_are_torchvisions() -> None:
    space = REFERENCE._AUGMENTATION_SPACE
    assert list(space) == NAMES
    for name, (magnitudes, signed) in space.items():
        expected = magnitudes(31, 32, 32)
        assert OPERATIONS[name].signed == signed
        assert list(OPERATIONS[name].magnitudes) == ([0.0] if expected is None else expected.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvisions_on_single_images(name: str, device: torch.device) -> None:
    operation = OPERATIONS[name]
    magnitudes = [sign * m for m in operation.magnitudes for sign in ((1, -1) if operation.signed else (1,))]
    images = torch.randint(0, 256, (len(magnitudes), 3, 24, 20), dtype=torch.uint8, device=device)
    images[:, :, :8] //= 2  # so that autocontrast has something to do
    parameters = torch.tensor([[NAMES.index(name), magnitude] for magnitude in magnitudes])
    result = trivial_augment(images, parameters.to(device))
    for image, (_, magnitude), got in zip(images, parameters.tolist(), result, strict=True):
        expected = REFERENCE._apply_image_or_video_transform(
            image, name, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={torch.Tensor: None}
        )
        assert torch.equal(got, expected)


def test_groups_are_put_back_where_they_came_from() -> None:
    images = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8)
    numbers = np.random.default_rng(0).random((200, 3), dtype=np.float32)
    parameters = torch.from_numpy(draw_operations(numbers))
    assert len(torch.unique(parameters, dim=0)) < 200
    whole = trivial_augment(images, parameters)
    alone = [trivial_augment(images[i : i + 1], parameters[i : i + 1]) for i in range(200)]
    assert torch.equal(whole, torch.cat(alone))


def test_every_magnitude_and_both_signs_are_drawn() -> None:
    numbers = np.random.default_rng(0).random((60_000, 3), dtype=np.float32)
    numbers[0] = np.nextafter(np.float32(1), np.float32(0))
    drawn = draw_operations(numbers)
    for position, operation in enumerate(OPERATIONS.values()):
        got = set(drawn[drawn[:, 0] == position, 1].tolist())
        wanted = {float(np.float32(m)) for m in operation.magnitudes}
        assert got == wanted | ({-m for m in wanted} if operation.signed else set())
