from __future__ import annotations

import numpy as np
import pytest
import torch

from transferkit.datasets.arrays import read_arrays
from transferkit.errors import ArgumentError, ClassMismatchError, DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
CHANNELS_FIRST = PIXELS.transpose(0, 3, 1, 2).copy()
TARGETS = [0, 1, 1, 0]


def shown(images: object) -> np.ndarray:
    part = read_arrays((images, TARGETS)).parts["train"]
    return np.stack([np.asarray(image) for image, _ in part])


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS[::-1][::-1],
        list(PIXELS),
        CHANNELS_FIRST,
        torch.from_numpy(CHANNELS_FIRST),
        torch.from_numpy(PIXELS),
        torch.from_numpy(CHANNELS_FIRST).float() / 255,
        (torch.from_numpy(CHANNELS_FIRST).double() / 255).requires_grad_(),
        PIXELS.astype(np.float32) / 255,
    ],
)
def test_the_same_images_in_every_form(images: object) -> None:
    assert np.array_equal(shown(images), PIXELS)


@pytest.mark.parametrize(
    "images",
    [PIXELS[..., 0], PIXELS[..., :1], CHANNELS_FIRST[:, :1], torch.from_numpy(CHANNELS_FIRST[:, :1].copy())],
)
def test_grey_images(images: object) -> None:
    assert np.array_equal(shown(images), np.repeat(PIXELS[..., :1], 3, axis=3))


def test_images_on_any_device(device: torch.device) -> None:
    assert np.array_equal(shown(torch.from_numpy(CHANNELS_FIRST).to(device)), PIXELS)
    half = (torch.tensor([0.0, 1.0], device=device).view(2, 1, 1, 1)).expand(2, 3, 4, 4).bfloat16()
    part = read_arrays((half, torch.tensor([0, 1], device=device))).parts["train"]
    assert np.asarray(part[1][0]).min() == 255


def test_floats_are_rounded_not_cut() -> None:
    images = np.full((4, 2, 2, 3), 0.999, dtype=np.float32)
    assert shown(images).tolist() == np.full((4, 2, 2, 3), 255).tolist()


def test_a_shape_that_does_not_tell_is_read_by_its_type() -> None:
    both = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), dtype=np.uint8)
    assert np.array_equal(shown(both), both)
    assert np.array_equal(shown(torch.from_numpy(both)), both.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.astype(np.int64), "uint8, or floats in .0, 1.. Got 'int64'"),
        (PIXELS.astype(np.float32), "uint8, or floats in .0, 1.. Got 'floats from 0 to 255'"),
        (PIXELS / 255 - 0.5, "Got 'floats from -0.5"),
        (np.full((4, 6, 5, 3), np.nan), "Got 'floats from nan"),
        (PIXELS > 9, "Got 'bool'"),
        (np.zeros((4, 6, 5, 4), np.uint8), r"of shape \[N, H, W, 3\].*Got \[4, 6, 5, 4\]"),
        (np.zeros((4, 6), np.uint8), r"Got \[4, 6\]"),
        (np.zeros((0, 6, 5, 3), np.uint8), "not empty"),
        ([PIXELS[0], PIXELS[1, :3], PIXELS[2], PIXELS[3]], "equal shapes"),
        (["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "of shape"),
    ],
)
def test_images_that_cannot_be_read(images: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_arrays((images, TARGETS))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, -1, 0], "at least 0 and below 2"),
        ([0.0, 1.0, 1.0, 0.0], "Targets must be integers"),
        ([0, 1, float("nan"), 0], "Targets must be integers"),
        (np.eye(4), "Targets must be integers"),
        ([0, 1, 1], "Got 4 images, 3 targets"),
        ([0, 2, 2, 0], "Class 1 has no training images, though targets reach 2"),
    ],
)
def test_targets_that_do_not_fit(targets: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_arrays((PIXELS, targets))


def test_targets_beyond_the_named_classes() -> None:
    with pytest.raises(DataError, match=r"below 2, the number of classes. Got 2"):
        read_arrays((PIXELS, [0, 1, 2, 0]), classes=["a", "b"])
    with pytest.raises(DataError, match="below 2"):
        read_arrays({"train": (PIXELS, TARGETS), "test": (PIXELS, [0, 1, 2, 0])})


def test_classes() -> None:
    assert read_arrays((PIXELS, TARGETS)).parts["train"].classes == ("0", "1")
    named = read_arrays((PIXELS, [0, 2, 2, 0]), classes=["a", "b", "c"]).parts["train"]
    assert named.classes == ("a", "b", "c")
    texts = read_arrays({"train": (PIXELS, ["dog", "cat", "cat", "dog"]), "val": (PIXELS[:1], ["dog"])})
    assert texts.parts["train"].classes == ("cat", "dog")
    assert texts.parts["train"].targets.tolist() == [1, 0, 0, 1]
    assert texts.parts["val"].targets.tolist() == [1]
    with pytest.raises(ClassMismatchError, match=r"1 class \('owl'\) outside of 2 classes \('cat', 'dog'\)"):
        read_arrays({"train": (PIXELS, ["dog", "cat", "cat", "dog"]), "test": (PIXELS[:1], ["owl"])})


@pytest.mark.parametrize(
    "data",
    [
        (PIXELS,),
        (PIXELS, TARGETS, TARGETS),
        {"test": (PIXELS, TARGETS)},
        {"train": (PIXELS, TARGETS), "dev": (PIXELS, TARGETS)},
        {"train": PIXELS},
        [],
    ],
)
def test_other_forms_are_refused(data: object) -> None:
    with pytest.raises(ArgumentError, match=r"must be a pair \(images, targets\)"):
        read_arrays(data)
