"""Augmentations: reproducible, and equal to slow references on single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from transferkit.augmentations import augmentation, list_augmentations
from transferkit.backbones.preprocessing import Preprocessing

SMALL = Preprocessing(size=32)


def photos(count: int, size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Smooth uint8 images with some noise, all different."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    noise = torch.rand(count, 3, size, size, generator=generator)
    return ((0.9 * smooth + 0.1 * noise) * 255).round().to(torch.uint8).to(device)


@pytest.mark.parametrize("name", list_augmentations())
def test_a_sample_does_not_depend_on_its_batch(name: str, device: torch.device) -> None:
    preset = augmentation(name, SMALL)
    images = photos(24, preset.stored.size, device)
    indices = np.arange(100, 124)
    whole = preset.apply(images, preset.draw(7, 3, indices).to(device))

    order = np.random.default_rng(0).permutation(24)
    shuffled = preset.apply(images[order], preset.draw(7, 3, indices[order]).to(device))
    assert torch.equal(shuffled, whole[order])
    for start in range(0, 24, 5):
        part = slice(start, start + 5)
        assert torch.equal(
            preset.apply(images[part], preset.draw(7, 3, indices[part]).to(device)), whole[part]
        )


@pytest.mark.parametrize("name", list_augmentations())
def test_shapes_types_and_that_the_images_given_are_left_alone(name: str, device: torch.device) -> None:
    preset = augmentation(name, SMALL)
    for count in (1, 3):
        images = photos(count, preset.stored.size, device)
        before = images.clone()
        parameters = preset.draw(0, 0, np.arange(count))
        assert parameters.dtype == torch.float32
        assert parameters.ndim == 2
        assert len(parameters) == count
        result = preset.apply(images, parameters.to(device))
        assert result.shape == (count, 3, 32, 32)
        assert result.dtype == torch.uint8
        assert result.device == images.device
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", [name for name in list_augmentations() if name != "none"])
def test_epochs_seeds_and_samples_differ(name: str) -> None:
    preset = augmentation(name, SMALL)
    first = preset.draw(0, 0, np.arange(50))
    assert torch.equal(first, preset.draw(0, 0, np.arange(50)))
    for other in (preset.draw(0, 1, np.arange(50)), preset.draw(1, 0, np.arange(50))):
        assert not torch.equal(first, other)
    assert len(torch.unique(first, dim=0)) > 25


def test_none_changes_nothing() -> None:
    preset = augmentation("none", SMALL)
    images = photos(4, 32)
    assert preset.draw(0, 0, np.arange(4)).shape == (4, 0)
    assert torch.equal(preset.apply(images, preset.draw(0, 0, np.arange(4))), images)


@pytest.mark.parametrize("size", [7, 32, 33])
def test_light_is_pad_crop_and_flip(size: int, device: torch.device) -> None:
    preset = augmentation("light", Preprocessing(size=size))
    pad = size // 8
    images = photos(60, size, device)
    parameters = preset.draw(0, 0, np.arange(60))
    result = preset.apply(images, parameters.to(device))
    for image, (down, right, flip), got in zip(images, parameters.tolist(), result, strict=True):
        padded = F.pad(image.float(), [pad], padding_mode="reflect").to(torch.uint8)
        expected = F.crop(padded, pad + int(down), pad + int(right), size, size)
        assert torch.equal(F.horizontal_flip(expected) if flip else expected, got)


def test_light_reaches_every_shift_and_flips_one_in_two() -> None:
    drawn = augmentation("light", SMALL).draw(0, 0, np.arange(20_000))
    for axis in (0, 1):
        shifts, counts = torch.unique(drawn[:, axis], return_counts=True)
        assert shifts.tolist() == list(range(-4, 5))
        # Five standard deviations of a binomial with p = 1/9.
        assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 * 8 / 81) ** 0.5
    assert abs(drawn[:, 2].mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    assert abs(np.corrcoef(drawn.T.numpy())[np.triu_indices(3, 1)]).max() < 0.04
