"""Splits: stratified, disjoint, complete, and the same however the images are listed."""

from __future__ import annotations

import os
import random
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given
from hypothesis import strategies as st

import transferkit as tk
from transferkit.datasets import scan
from transferkit.datasets.splitting import draw_shots, stratified_draw, thin

CLASSES = st.lists(st.integers(1, 40), min_size=2, max_size=8)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**31)


def targets_of(sizes: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts_by_formula(sizes: list[int], share: float) -> list[tuple[int, int]]:
    """Return the fewest and the most that may be drawn of each class.

    Where the share, or what it leaves, is less than 1.5 images, the count is the rounded share,
    though at least 1 and at most all but one. Elsewhere it is less than 1.5 from the share.
    """
    bounds = []
    for size in sizes:
        part = size * share
        if size == 1:
            bounds.append((0, 0))
        elif part < 1.5 or size - part < 1.5:
            count = int(np.clip(np.rint(part), 1, size - 1))
            bounds.append((count, count))
        else:
            bounds.append((int(np.floor(part - 1.5)) + 1, int(np.ceil(part + 1.5)) - 1))
    return bounds


@examples(100)
@given(CLASSES, SHARES, SEEDS)
def test_a_draw_is_stratified_disjoint_and_complete(sizes, share, seed):
    targets = targets_of(sizes, seed)
    drawn = stratified_draw(targets, share, seed, "val")
    kept = np.setdiff1d(np.arange(len(targets)), drawn)
    assert sorted([*drawn, *kept]) == list(range(len(targets)))
    taken = np.bincount(targets[drawn], minlength=len(sizes))
    for count, (fewest, most) in zip(taken, counts_by_formula(sizes, share), strict=True):
        assert fewest <= count <= most, (sizes, share, taken.tolist())


@examples(60)
@given(CLASSES, SHARES, SEEDS)
def test_a_subset_has_the_counts_of_the_formula_and_loses_no_class(sizes, share, seed):
    targets = targets_of(sizes, seed)
    taken = np.bincount(targets[thin(targets, share, seed, "subset", "train")], minlength=len(sizes))
    for size, count, (fewest, most) in zip(sizes, taken, counts_by_formula(sizes, share), strict=True):
        assert count == 1 if size == 1 else fewest <= count <= most, (sizes, share, taken.tolist())


@examples(60)
@given(CLASSES, st.integers(1, 50), SEEDS)
def test_shots_are_as_many_as_asked_for_or_all_there_are(sizes, shots, seed):
    targets = targets_of(sizes, seed)
    names = [f"class{number}" for number in range(len(sizes))]
    drawn = draw_shots(targets, names, shots, seed)
    assert np.bincount(targets[drawn]).tolist() == [min(size, shots) for size in sizes]
    assert set(drawn) >= set(draw_shots(targets, names, max(1, shots // 2), seed))


def loaded(data, **options):
    """Load a data set of which a class may be too small, which is told in a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tk.load_dataset(data, **options)


@examples(40)
@given(CLASSES, st.floats(0.05, 0.9), st.floats(0.1, 1.0), st.none() | st.integers(1, 9), SEEDS)
def test_the_parts_of_a_data_set_are_disjoint_and_follow_from_the_seed(sizes, val, subset, shots, seed):
    data = np.zeros((sum(sizes), 2, 2), dtype=np.uint8), targets_of(sizes, seed)
    options = {"val": val, "subset": subset, "shots": shots, "seed": seed}
    splits = loaded(data, **options)
    train, held = set(splits.train.ids), set(() if splits.val is None else splits.val.ids)
    assert not train & held
    again = loaded(data, **options)
    assert again.train.ids == splits.train.ids
    assert (again.val is None) == (splits.val is None)
    assert splits.val is None or again.val.ids == splits.val.ids
    assert set(splits.train.targets) == set(range(len(sizes)))
    whole = loaded(data, val=val, seed=seed)
    assert train <= set(whole.train.ids)
    everything = set(whole.train.ids) | set(() if whole.val is None else whole.val.ids)
    assert everything == {str(index) for index in range(sum(sizes))}
    if shots is not None:
        assert np.bincount(splits.train.targets).max() <= shots


@contextmanager
def listed_in_any_order(seed: int):
    """Let the file system list every folder in another order."""
    draw, original = random.Random(seed), os.scandir

    @contextmanager
    def shuffled(path):
        with original(path) as found:
            entries = list(found)
        draw.shuffle(entries)
        yield iter(entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan.os, "scandir", shuffled)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, count in {"ant": 9, "bee": 5, "cat": 12}.items():
        for index in range(count):
            path = folder / name / ("deep" if index % 3 else "") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()  # only names are read
    return folder


@examples(15)
@given(SEEDS, SEEDS)
def test_the_order_in_which_files_are_listed_changes_nothing(photos, order, seed):
    options = {"val": 0.3, "subset": 0.8, "shots": 4, "seed": seed}
    first = loaded(photos, **options)
    with listed_in_any_order(order):
        second = loaded(photos, **options)
    for name in ("train", "val"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one.ids, one.targets.tolist()) == (other.ids, other.targets.tolist())
    assert first.record == second.record
