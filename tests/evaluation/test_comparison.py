"""The paired difference against scipy's paired t-test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from transferkit.errors import ArgumentError
from transferkit.evaluation.comparison import paired_difference


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_interval_is_that_of_the_paired_t_test(count: int) -> None:
    generator = np.random.default_rng(count)
    a, b = generator.random((2, count))
    result = paired_difference(a.tolist(), b.tolist())
    interval = ttest_rel(a, b).confidence_interval(0.95)
    assert result.mean == pytest.approx(np.mean(a - b))
    assert result.interval == pytest.approx((interval.low, interval.high))
    assert result.n == count


def test_equal_differences_have_an_interval_of_no_width() -> None:
    result = paired_difference([0.75, 0.5], [0.5, 0.25])
    assert result.interval == (0.25, 0.25)
    assert str(result) == "+0.250 (95% interval +0.250 to +0.250, 2 pairs)"


@pytest.mark.parametrize(
    ("a", "b", "parameter"),
    [
        ([1.0], [1.0], "a"),
        ([], [], "a"),
        ([1.0, float("nan")], [1.0, 2.0], "a"),
        ([1.0, 2.0], [1.0], "b"),
        ([1.0, 2.0], [1.0, float("inf")], "b"),
    ],
)
def test_results_that_are_no_pairs(a: list[float], b: list[float], parameter: str) -> None:
    with pytest.raises(ArgumentError, match=f"The '{parameter}' parameter of paired_difference"):
        paired_difference(a, b)
