"""The presets: reproducible, and equal to slow references on single images."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils import check_random_state
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transferkit.augmentations import (
    Augmentation,
    augmentation,
    list_augmentations,
    per_sample,
    register_augmentation,
)
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.trivial_augment import OPERATIONS

SMALL = Preprocessing(size=32)


def photos(count: int, size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Smooth uint8 images with some noise, all different."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    noise = torch.rand(count, 3, size, size, generator=generator)
    return ((0.9 * smooth + 0.1 * noise) * 255).round().to(torch.uint8).to(device)


def fluctuation(count: int, probability: float) -> float:
    """Five standard deviations of a share of ``count`` draws."""
    return 5 * (probability * (1 - probability) / count) ** 0.5


# What holds for every augmentation


def varied(image: Image.Image) -> Image.Image:
    """A user's own function, which draws from all three generators."""
    image = image.rotate(random.uniform(-20, 20))
    image = Image.fromarray(np.asarray(image) // check_random_state(None).randint(1, 4))
    return v2.RandomHorizontalFlip()(image)


def made(name: str) -> Augmentation:
    return per_sample(varied, SMALL) if name == "per_sample" else augmentation(name, SMALL)


EVERY = [*list_augmentations(), "per_sample"]


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_does_not_depend_on_its_batch(name: str, device: torch.device) -> None:
    preset = made(name)
    images = photos(24, preset.stored.size, device)
    indices = np.arange(100, 124)
    whole = preset.apply(images, preset.draw(7, 3, indices).to(device))

    order = np.random.default_rng(0).permutation(24)
    shuffled = preset.apply(images[order], preset.draw(7, 3, indices[order]).to(device))
    assert torch.equal(shuffled, whole[order])
    for start in range(0, 24, 5):
        part = slice(start, start + 5)
        alone = preset.apply(images[part], preset.draw(7, 3, indices[part]).to(device))
        assert torch.equal(alone, whole[part])


@pytest.mark.parametrize("name", EVERY)
def test_shapes_types_and_that_the_images_given_are_left_alone(name: str, device: torch.device) -> None:
    preset = made(name)
    for count in (0, 1, 3):
        images = (
            photos(count, preset.stored.size, device)
            if count
            else torch.empty(0, 3, preset.stored.size, preset.stored.size, dtype=torch.uint8, device=device)
        )
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


@pytest.mark.parametrize("name", [name for name in EVERY if name != "none"])
def test_epochs_seeds_and_samples_differ(name: str) -> None:
    preset = made(name)
    first = preset.draw(0, 0, np.arange(50))
    assert torch.equal(first, preset.draw(0, 0, np.arange(50)))
    for other in (preset.draw(0, 1, np.arange(50)), preset.draw(1, 0, np.arange(50))):
        assert not torch.equal(first, other)
    assert len(torch.unique(first, dim=0)) > 25


@pytest.mark.parametrize("name", list_augmentations())
def test_the_stored_copy_is_made_like_the_models_input(name: str) -> None:
    squash = Preprocessing(size=50, crop="squash", interpolation="bicubic", mean=(0.1, 0.2, 0.3))
    stored = augmentation(name, squash).stored
    assert (stored.crop, stored.interpolation, stored.mean) == ("squash", "bicubic", (0.1, 0.2, 0.3))
    assert 50 <= stored.size <= 62


def test_unknown_and_taken_names() -> None:
    with pytest.raises(UnknownNameError, match=r"'standart'. Did you mean 'standard'"):
        augmentation("standart", SMALL)
    with pytest.raises(ArgumentError, match="already registered"):
        register_augmentation("light")(lambda preprocessing: augmentation("none", preprocessing))


# none and light


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
        assert (counts / 20_000 - 1 / 9).abs().max() < fluctuation(20_000, 1 / 9)
    assert abs(drawn[:, 2].mean() - 0.5) < fluctuation(20_000, 0.5)
    assert abs(np.corrcoef(drawn.T.numpy())[np.triu_indices(3, 1)]).max() < 0.04


# standard and strong


def slow_standard(image: torch.Tensor, row: list[float], size: int) -> torch.Tensor:
    top, left, height, width, flip = (int(value) for value in row)
    cropped = F.resized_crop(image.cpu(), top, left, height, width, [size, size], antialias=True)
    return F.horizontal_flip(cropped) if flip else cropped


@pytest.mark.parametrize("size", [9, 32, 48])
def test_standard_is_torchvisions_resized_crop_and_flip(size: int, device: torch.device) -> None:
    preset = augmentation("standard", Preprocessing(size=size))
    images = photos(40, preset.stored.size, device)
    parameters = preset.draw(0, 0, np.arange(40))
    result = preset.apply(images, parameters.to(device)).cpu()
    for image, row, got in zip(images, parameters.tolist(), result, strict=True):
        # The same kernel on uint8, so bit for bit on a CPU, and by design on CUDA where the CPU has AVX2.
        assert (got.int() - slow_standard(image, row, size).int()).abs().max() <= (device.type != "cpu")
        # In float there is no rounding between the two axes: half a grey level each, and the weights'.
        exact = slow_standard(image.float(), row, size)
        assert (got.float() - exact).abs().max() <= 1.05
        assert (got.float() - exact).abs().mean() <= 0.4


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    drawn = augmentation("standard", Preprocessing(size=224)).draw(0, 0, np.arange(4000)).numpy()
    reference_transform = v2.RandomResizedCrop(224, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3))
    image = torch.empty(3, 269, 269, dtype=torch.uint8)
    reference = [reference_transform.make_params([image]) for _ in range(4000)]
    expected = np.array([[box[key] for key in ("top", "left", "height", "width")] for box in reference])
    from scipy.stats import ks_2samp

    for column in range(4):
        assert ks_2samp(drawn[:, column], expected[:, column]).pvalue > 1e-3
    ratio, area = drawn[:, 3] / drawn[:, 2], drawn[:, 2] * drawn[:, 3]
    assert ks_2samp(ratio, expected[:, 3] / expected[:, 2]).pvalue > 1e-3
    assert ks_2samp(area, expected[:, 2] * expected[:, 3]).pvalue > 1e-3
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, :2] + drawn[:, 2:4] <= 269).all()
    assert abs(drawn[:, 4].mean() - 0.5) < fluctuation(4000, 0.5)


def test_strong_is_crop_then_one_operation_then_erasing(device: torch.device) -> None:
    preset = augmentation("strong", SMALL)
    images = photos(150, preset.stored.size, device)
    parameters = preset.draw(0, 0, np.arange(150))
    result = preset.apply(images, parameters.to(device)).cpu()
    names = list(OPERATIONS)
    reference = v2.TrivialAugmentWide()
    erased = 0
    for image, row, got in zip(images, parameters.tolist(), result, strict=True):
        expected = slow_standard(image, row[:5], 32)
        expected = reference._apply_image_or_video_transform(
            expected,
            names[int(row[5])],
            row[6],
            interpolation=v2.InterpolationMode.NEAREST,
            fill={torch.Tensor: None},
        )
        top, left, height, width = (int(value) for value in row[7:])
        if height:
            erased += 1
            color = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
            expected = F.erase(expected, top, left, height, width, color)
        difference = (got.int() - expected.int()).abs()
        if device.type == "cpu":
            assert difference.max() == 0
        else:  # an edge may move by a pixel where a position rounds the other way
            assert (difference > 2).float().mean() < 0.05
    assert 10 < erased < 75


def test_strong_draws_every_operation_and_erases_one_in_four() -> None:
    drawn = augmentation("strong", SMALL).draw(0, 0, np.arange(20_000))
    operations, counts = torch.unique(drawn[:, 5], return_counts=True)
    assert operations.tolist() == list(range(14))
    assert (counts / 20_000 - 1 / 14).abs().max() < fluctuation(20_000, 1 / 14)
    erased = drawn[drawn[:, 9] > 0, 7:]
    assert abs(len(erased) / 20_000 - 0.25) < fluctuation(20_000, 0.25)
    assert (erased[:, :2] + erased[:, 2:] <= 32).all()
    area = erased[:, 2] * erased[:, 3] / 32**2
    assert 0.01 < area.min() < 0.04 < 0.3 < area.max() < 0.36


# per_sample


def test_per_sample_seeds_each_image_and_restores_the_generators() -> None:
    preset = per_sample(varied, SMALL, name="mine")
    assert preset.name == "mine"
    images = photos(6, 32)
    states = random.getstate(), check_random_state(None).get_state()[1].tolist(), torch.get_rng_state()
    result = preset.apply(images, preset.draw(0, 0, np.arange(6)))
    assert random.getstate() == states[0]
    assert check_random_state(None).get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert len(torch.unique(result.flatten(1), dim=0)) == 6
    random.seed(99)
    assert torch.equal(preset.apply(images, preset.draw(0, 0, np.arange(6))), result)


def test_per_sample_gives_the_generators_back_after_an_error() -> None:
    def broken(image: Image.Image) -> Image.Image:
        random.random()
        raise RuntimeError("no")

    state = random.getstate()
    preset = per_sample(broken, SMALL)
    with pytest.raises(RuntimeError, match="no"):
        preset.apply(photos(1, 32), preset.draw(0, 0, np.arange(1)))
    assert random.getstate() == state


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        lambda image: np.asarray(image),
        F.pil_to_tensor,
        F.to_image,
    ],
)
def test_per_sample_takes_pil_images_arrays_and_tensors(convert: object) -> None:
    images = photos(2, 32)
    preset = per_sample(convert, SMALL)
    result = preset.apply(images, preset.draw(0, 0, np.arange(2)))
    assert type(result) is torch.Tensor
    assert torch.equal(result, images)


def test_per_sample_can_crop_from_a_larger_copy() -> None:
    preset = per_sample(v2.RandomCrop(32), SMALL, stored=Preprocessing(size=40))
    result = preset.apply(photos(3, 40), preset.draw(0, 0, np.arange(3)))
    assert result.shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda image: image.resize((20, 20)), r"Got Image of shape \[3, 20, 20\]"),
        (lambda image: F.to_dtype(F.to_image(image), torch.float32, scale=True), "torch.float32"),
        (lambda image: {"image": image}, "Got dict"),
        (lambda image: np.asarray(image)[:, :, 0], r"Got ndarray of shape \[32, 32\]"),
        (lambda image: None, "Got NoneType"),
    ],
)
def test_per_sample_says_what_a_wrong_function_returned(function: object, got: str) -> None:
    preset = per_sample(function, SMALL)
    with pytest.raises(ArgumentError, match="must return an RGB image of 32 x 32 pixels.*" + got):
        preset.apply(photos(1, 32), preset.draw(0, 0, np.arange(1)))


def test_per_sample_needs_a_function() -> None:
    with pytest.raises(ArgumentError, match="'function' parameter of per_sample"):
        per_sample("flip", SMALL)
