"""The numbers of a report that scikit-learn does not have."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from transferkit.checks import check_int, require

_Z = 1.959963984540054  # the 97.5% point of the normal distribution


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share, such as an accuracy.

    Args:
        correct: How many of the ``n`` were right.
        n: How many there were.

    Raises:
        ArgumentError: ``n`` is 0, or ``correct`` is not between 0 and ``n``.

    Source:
        Wilson (1927), Probable inference, the law of succession, and statistical inference,
        https://doi.org/10.1080/01621459.1927.10502953.

    >>> low, high = wilson_interval(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    check_int("wilson_interval", "n", n, 1)
    require(0 <= correct <= n, "wilson_interval", "correct", f"an int from 0 to {n}", correct)
    share, stretch = correct / n, 1 + _Z**2 / n
    center = (share + _Z**2 / (2 * n)) / stretch
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / stretch
    # At 0 and n the ends are exactly 0 and 1, which rounding may miss.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == n else center + half)


def expected_calibration_error(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Return by how much confidence and accuracy differ on average, over bins of confidence.

    Args:
        confidences: Probability of the predicted class, in [0, 1], shape ``[N]``.
        correct: Whether the prediction was right, shape ``[N]``.
        bins: Number of equally wide bins; each is open on its left and closed on its right.

    Raises:
        ArgumentError: ``N`` is 0 or the shapes disagree.

    Source:
        Guo et al. (2017), https://arxiv.org/abs/1706.04599, equation 3.

    >>> expected_calibration_error(np.array([0.75, 0.75]), np.array([True, False]))
    0.25
    """
    check_int("expected_calibration_error", "bins", bins, 1)
    same = confidences.shape == correct.shape and confidences.ndim == 1 and len(confidences) > 0
    require(
        same,
        "expected_calibration_error",
        "correct",
        "of the shape of confidences, [N], with N at least 1",
        correct.shape,
    )
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    members = np.digitize(confidences, edges, right=True)
    gaps = np.bincount(members, weights=correct - confidences.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))
