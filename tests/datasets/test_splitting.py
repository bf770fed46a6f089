from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import check_random_state

from transferkit.datasets.splitting import draw_shots, stratified_draw, thin


def targets_of(counts: list[int], seed: int = 0) -> np.ndarray:
    targets = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(targets)


counts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)
fractions = st.floats(0.01, 0.99)


@settings(deadline=None, max_examples=150)
@given(counts, fractions, st.integers(0, 5))
def test_every_class_is_on_both_sides_in_proportion(sizes: list[int], fraction: float, seed: int) -> None:
    targets = targets_of(sizes)
    drawn = stratified_draw(targets, fraction, seed, "val")
    assert np.array_equal(drawn, np.unique(drawn))
    taken = np.bincount(targets[drawn], minlength=len(sizes))
    for size, count in zip(sizes, taken, strict=True):
        assert count == 0 if size < 2 else 1 <= count < size
        assert size < 2 or abs(count - size * fraction) < 2


@settings(deadline=None, max_examples=60)
@given(counts, fractions)
def test_thinning_loses_no_class(sizes: list[int], fraction: float) -> None:
    targets = targets_of(sizes)
    kept = thin(targets, fraction, 0, "subset")
    assert set(targets[kept]) == set(targets)
    assert np.array_equal(kept, np.unique(kept))


def test_sizes_are_those_asked_for() -> None:
    targets = targets_of([500] * 10)
    assert np.bincount(targets[stratified_draw(targets, 0.2, 0, "val")]).tolist() == [100] * 10
    assert np.bincount(targets[thin(targets, 0.1, 0)]).tolist() == [50] * 10
    assert np.array_equal(thin(targets, 1.0, 0), np.arange(5000))
    uneven = targets_of([900, 90, 10])
    assert np.bincount(uneven[stratified_draw(uneven, 0.1, 0, "val")]).tolist() == [90, 9, 1]


def test_one_seed_one_draw() -> None:
    targets = targets_of([30, 20])
    for draw in (
        lambda seed: stratified_draw(targets, 0.3, seed, "val"),
        lambda seed: thin(targets, 0.3, seed),
        lambda seed: draw_shots(targets, ["a", "b"], 5, seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))
    assert not np.array_equal(
        stratified_draw(targets, 0.3, 1, "val"), stratified_draw(targets, 0.3, 1, "test")
    )


def test_draws_leave_the_global_random_state() -> None:
    before = check_random_state(None).get_state()[1].copy()
    stratified_draw(targets_of([30, 20]), 0.3, 0, "val")
    assert np.array_equal(before, check_random_state(None).get_state()[1])


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_shots_per_class(shots: int) -> None:
    targets = targets_of([40, 10, 3])
    taken = np.bincount(targets[draw_shots(targets, ["a", "b", "c"], shots, 0)])
    assert taken.tolist() == [shots, shots, min(shots, 3)]


def test_every_sample_can_be_drawn() -> None:
    targets = targets_of([6, 6])
    drawn = [frozenset(stratified_draw(targets, 0.5, seed, "val")) for seed in range(60)]
    assert frozenset().union(*drawn) == set(range(12))
    assert len(set(drawn)) > 30
