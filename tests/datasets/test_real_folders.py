"""The data sets that the project is tried on, traps included."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from transferkit.datasets import load_dataset, restore_splits

pytestmark = pytest.mark.real_data


def test_hymenoptera_warns_of_its_placeholder(real_data: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_dataset(real_data / "data" / "hymenoptera")
    assert (len(splits.train), len(splits.val), splits.test) == (244, 153, None)
    assert splits.classes == ("ants", "bees")
    assert np.bincount(splits.train.targets).tolist() == [123, 121]
    assert np.bincount(splits.val.targets).tolist() == [70, 83]
    (warning,) = caught
    assert "left out 1 entry (no image file: 'train/ants/imageNotFound.gif')" in str(warning.message)
    for part in (splits.train, splits.val):
        for image, _ in part:
            assert image.mode == "RGB"


def test_cats_and_dogs_have_their_labels_in_their_names(real_data: Path) -> None:
    root = real_data / "data" / "cats_dogs"
    splits = load_dataset(root, label_from=r"^(\w+)\.", val=0.2, seed=1)
    assert (len(splits.train), len(splits.val), splits.classes) == (640, 160, ("cat", "dog"))
    assert all(
        name.startswith(splits.classes[target])
        for name, target in zip(splits.val.ids, splits.val.targets, strict=True)
    )
    for image, _ in splits.val:
        assert image.mode == "RGB"
    restored = restore_splits(root, splits.record)
    assert (restored.train.ids, restored.val.ids) == (splits.train.ids, splits.val.ids)


def test_a_tenth_of_cifar10(real_data: Path) -> None:
    splits = load_dataset(real_data / "data" / "cifar10_10pct")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4000, 1000, 1000)
    for part, count in ((splits.train, 400), (splits.val, 100), (splits.test, 100)):
        assert np.bincount(part.targets).tolist() == [count] * 10
    assert not set(splits.train.ids) & set(splits.val.ids)
    assert splits.test[0][0].size == (32, 32)
