"""Whether one way of doing it is better than another, judged over repeated pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transferkit.checks import require


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences, and how sure it is.

    Attributes:
        mean: Mean of the differences.
        interval: Ends of its 95% confidence interval.
        n: Number of pairs.
    """

    mean: float
    interval: tuple[float, float]
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:+.3f} (95% interval {low:+.3f} to {high:+.3f}, {self.n} pairs)"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Compare two results that were measured in pairs, such as accuracies over the same draws.

    Args:
        a: One result for each pair.
        b: The other result for each pair, in the same order.

    Returns:
        The mean of ``a - b`` with the interval of Student's t distribution, which takes the
        differences to be independent and roughly normal.

    Raises:
        ArgumentError: There are fewer than two pairs, the lengths differ, or a value is not finite.

    Source:
        Student (1908), The probable error of a mean, https://doi.org/10.1093/biomet/6.1.1.

    >>> str(paired_difference([0.72, 0.75, 0.71], [0.60, 0.66, 0.61]))
    '+0.103 (95% interval +0.065 to +0.141, 3 pairs)'
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # reason: scipy has no types

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    owner = "paired_difference"
    valid = first.ndim == 1 and len(first) >= 2 and bool(np.isfinite(first).all())
    require(valid, owner, "a", "at least two finite floats, one for each pair", a)
    valid = second.shape == first.shape and bool(np.isfinite(second).all())
    require(valid, owner, "b", f"{len(first)} finite floats, one for each of a", b)
    differences = first - second
    mean, count = float(differences.mean()), len(differences)
    half = float(t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    return PairedDifference(mean, (mean - half, mean + half), count)
