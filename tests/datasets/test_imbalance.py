from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from transferkit.datasets import class_counts, load_dataset, long_tailed
from transferkit.datasets.base import Part
from transferkit.datasets.imbalance import imbalance_note
from transferkit.errors import ArgumentError


def part_of(*counts: int) -> Part:
    targets = np.repeat(np.arange(len(counts)), counts)
    names = [f"class{index}" for index in range(len(counts))]
    return Part(np.zeros((sum(counts), 2, 2), dtype=np.uint8), targets, names)


def test_images_are_counted() -> None:
    assert class_counts(part_of(3, 0, 2)) == {"class0": 3, "class1": 0, "class2": 2}


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ((20, 20), ""),
        ((29, 10), ""),
        ((30, 10), "classes from 10 to 30 images (3:1)"),
        ((600, 100, 12), "classes from 12 to 600 images (50:1)"),
        ((100, 3), "classes from 3 to 100 images (33.3:1)"),
        ((5, 0), "classes from 0 to 5 images"),
        ((0, 0), ""),
    ],
)
def test_unequal_classes_are_reported_from_three_to_one(counts: tuple[int, ...], note: str) -> None:
    assert imbalance_note(part_of(*counts)) == note


def test_the_text_of_splits_tells_of_it() -> None:
    even = load_dataset(part_of(10, 10), val=0.2)
    assert str(even) == "2 classes (class0, class1); images: 16 train, 4 val"
    uneven = load_dataset(part_of(200, 10), val=0.2)
    assert str(uneven).endswith("images: 168 train, 42 val; classes from 8 to 160 images (20:1)")
    many = load_dataset(part_of(*[2] * 12), val=0)
    assert "(class0, class1, class2, class3, class4, class5, class6, class7, class8, class9 …)" in str(many)


@pytest.mark.parametrize("ratio", [1, 10, 50, 200])
def test_a_long_tail_has_the_counts_of_the_formula(ratio: float) -> None:
    counts = list(class_counts(long_tailed(part_of(*[500] * 10), ratio)).values())
    # Cui et al.: n_i = n * mu^i, with n_0 / n_9 the ratio.
    mu = ratio ** (-1 / 9)
    assert counts == [round(500 * mu**index) for index in range(10)]
    assert counts[0] == 500
    assert counts[9] == pytest.approx(500 / ratio, abs=0.5)


def test_a_long_tail_of_unequal_classes_keeps_at_least_one_image() -> None:
    assert list(class_counts(long_tailed(part_of(40, 10, 3), 100)).values()) == [40, 1, 1]
    assert list(class_counts(long_tailed(part_of(40), 100)).values()) == [40]


def test_a_long_tail_follows_from_the_seed_and_is_nested() -> None:
    whole = part_of(100, 100, 100)
    steep, flat = long_tailed(whole, 50, seed=3), long_tailed(whole, 5, seed=3)
    assert long_tailed(whole, 50, seed=3).ids == steep.ids
    assert long_tailed(whole, 50, seed=4).ids != steep.ids
    assert set(steep.ids) < set(flat.ids) < set(whole.ids)
    assert [whole.classes[whole.targets[int(name)]] for name in steep.ids] == [
        steep.classes[target] for target in steep.targets
    ]


@pytest.mark.parametrize("ratio", [0.5, 0, -1, float("nan"), "5", None])
def test_a_ratio_that_makes_no_sense(ratio: object) -> None:
    with pytest.raises(ArgumentError, match="The 'ratio' parameter of long_tailed must be a"):
        long_tailed(part_of(5, 5), ratio)


def test_a_long_tail_is_data_like_any_other(tiny_part: Callable[..., Part]) -> None:
    splits = load_dataset(long_tailed(tiny_part(120), 12), val=0.2)
    assert class_counts(splits.train) == {"class0": 48, "class1": 4}
    assert splits.train[0][0].size == (8, 8)
