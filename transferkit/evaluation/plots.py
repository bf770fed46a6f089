"""Charts of a report: which classes are taken for which, and how far its probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from transferkit.checks import check_int, import_extra, require
from transferkit.evaluation.drawing import BLUE, GREY, VERMILION, new_figure, shortened
from transferkit.evaluation.metrics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from transferkit.datasets.base import Part
    from transferkit.evaluation.report import Report

    Counts = npt.NDArray[np.int64]
    Samples = tuple[Counts, Counts, npt.NDArray[np.float32]]

# With more classes the cells have no numbers, and what is confused most is listed instead.
_MOST_NUMBERS = 20
_MOST_NAMES = 40
_PAIRS = 20
_BINS = 15


class Confusion(NamedTuple):
    """Images of one class that were predicted as another.

    Attributes:
        truth: Index of their class.
        predicted: Index of the other.
        images: How many there are.
        share: Of the images of their class.
    """

    truth: int
    predicted: int
    images: int
    share: float


def most_confused(report: Report, most: int = _PAIRS) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Args:
        report: The report of an evaluation.
        most: How many pairs at most.

    >>> from transferkit.evaluation.report import Report
    >>> logits = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    >>> most_confused(Report.from_logits(logits, [0, 1, 1], ["ant", "bee"]))
    [Confusion(truth=1, predicted=0, images=1, share=0.5)]
    """
    check_report("most_confused", report)
    most = check_int("most_confused", "most", most, 1)
    matrix = report.confusion_matrix
    shares = _shares(matrix)
    rows, columns = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=np.int64)))
    # The larger share first among equals, then the order of the classes.
    order = np.lexsort((columns, rows, -shares[rows, columns], -matrix[rows, columns]))[:most]
    return [
        Confusion(int(row), int(column), int(matrix[row, column]), float(shares[row, column]))
        for row, column in zip(rows[order], columns[order], strict=True)
    ]


def plot_confusion_matrix(report: Report) -> Figure:
    """Draw how the images of each class were predicted.

    Colors are shares of the true class (row), on a scale that shows small shares too. With up to 20
    classes the number of images stands in each cell; with more, the pairs that are confused most
    are listed beside the matrix, and not every class has room for its name.

    Args:
        report: The report of an evaluation.

    Returns:
        A figure; ``figure.savefig("confusion_matrix.png")`` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_confusion_matrix"
    check_report(owner, report)
    matrix = report.confusion_matrix
    count = len(matrix)
    colors = import_extra("matplotlib.colors", "plot", owner)
    pairs = most_confused(report) if count > _MOST_NUMBERS else []
    names = min(0.085 * max(len(shortened(name, 24)) for name in report.classes), 1.6)
    side = min(max(3.2, 0.55 * count), 7.0)
    width = side + names + 1.8
    beside = 4.6 if pairs else 0.0
    figure = new_figure(width + beside, side + names + 0.9, owner)
    left: Any = figure
    right: Any = None
    if pairs:
        panels: Any = figure.subfigures(1, 2, width_ratios=(width, beside))
        left, right = panels
    axes = left.subplots()
    shares = _shares(matrix)
    # The square root brings out confusions of a few per cent.
    image = axes.imshow(shares, cmap="cividis", norm=colors.PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_facecolor("0.85")  # seen where a class has no images
    bar = left.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "75%", "100%"])
    bar.set_label("share of the true class")
    _name_axes(axes, report.classes)
    if count <= _MOST_NUMBERS:
        _write_numbers(axes, matrix, shares)
    low, high = report.accuracy_interval
    axes.set_title(
        f"Confusion matrix of {shortened(report.split, 16)}\n"
        f"accuracy {report.accuracy:.1%} ({low:.1%} to {high:.1%}), n = {report.n}",
        fontsize=10,
        parse_math=False,
    )
    if right is not None:
        _list_pairs(right.subplots(), pairs, report)
    return figure


def plot_reliability(report: Report) -> Figure:
    """Draw how often the model is right where it is so and so sure, and how sure it is how often.

    A bar is the accuracy of the predictions whose probability is in that range, with its 95%
    interval; on the diagonal, accuracy and probability are equal. The title has the expected
    calibration error, which weights the distances from the diagonal by the counts below.

    Args:
        report: Of an evaluation in this process, or read from JSON with its samples.

    Returns:
        A figure; ``figure.savefig("reliability.png")`` writes it.

    Raises:
        ArgumentError: The report lacks its samples.
        MissingExtraError: matplotlib is not installed.

    Source:
        Guo et al. (2017), https://arxiv.org/abs/1706.04599, figure 1.
    """
    owner = "plot_reliability"
    targets, predictions, probabilities = samples_of(report, owner)
    confidences, right = probabilities.max(axis=1), predictions == targets
    edges = np.linspace(0, 1, _BINS + 1)
    members = np.digitize(confidences, edges[1:-1], right=True)
    counts = np.bincount(members, minlength=_BINS)
    filled = np.flatnonzero(counts)
    correct = np.bincount(members, weights=right, minlength=_BINS).astype(np.int64)
    accuracy = correct[filled] / counts[filled]
    means = np.bincount(members, weights=confidences, minlength=_BINS)[filled] / counts[filled]
    ends = np.array([wilson_interval(int(correct[place]), int(counts[place])) for place in filled])
    middles, wide = (edges[:-1] + edges[1:]) / 2, 1 / _BINS

    figure = new_figure(5.2, 5.8, owner)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middles[filled], accuracy, wide * 0.92, color=BLUE, alpha=0.75, label="accuracy")
    gaps = np.abs(np.stack([accuracy - ends[:, 0], ends[:, 1] - accuracy]))
    upper.errorbar(
        middles[filled], accuracy, gaps, fmt="none", ecolor="black", capsize=2.5, label="95% interval"
    )
    upper.plot(means, means, "D", color=VERMILION, markersize=5, label="mean probability")
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="as right as sure")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left", fontsize=8)
    upper.set_title(
        f"Reliability on {shortened(report.split, 16)}: "
        f"calibration error {report.calibration_error:.1%}\n"
        f"accuracy {report.accuracy:.1%}, mean probability {confidences.mean():.1%}, n = {report.n}",
        fontsize=10,
        parse_math=False,
    )
    lower.bar(middles, counts, wide * 0.92, color=GREY)
    for place in filled:
        lower.annotate(
            str(counts[place]), (middles[place], counts[place]), (0, 2), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip
    lower.set(ylim=(0, 1.22 * counts.max()), ylabel="images", xlabel="probability of the predicted class")
    return figure


def check_report(owner: str, report: object) -> None:
    """Raise ``ArgumentError`` unless a value is a report."""
    from transferkit.evaluation.report import Report  # which draws by the functions here

    require(isinstance(report, Report), owner, "report", "a Report, as evaluate returns it", report)


def samples_of(report: Report, owner: str, part: Part | None = None) -> Samples:
    """Return target, prediction and probabilities of each image of a report.

    Raises:
        ArgumentError: The report lacks them, or is not of the part.
    """
    check_report(owner, report)
    targets, predictions, probabilities = report.targets, report.predictions, report.probabilities
    whole = targets is not None and predictions is not None and probabilities is not None
    wanted = "a report with its samples, as evaluate returns it and to_json(samples=True) keeps it"
    require(whole, owner, "report", wanted, "one without")
    assert targets is not None
    assert predictions is not None
    assert probabilities is not None
    if part is not None:
        require(len(part) == report.n, owner, "part", f"the {report.n} images of the report", part)
    return targets, predictions, probabilities


def _shares(matrix: Counts) -> npt.NDArray[np.float64]:
    """Return the shares of each row; NaN where it is empty."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.full(matrix.shape, np.nan)
    np.divide(matrix, totals, out=shares, where=totals > 0)
    return shares


def _name_axes(axes: Axes, classes: Sequence[str]) -> None:
    """Name every class, or every few where there are too many to read."""
    step = math.ceil(len(classes) / _MOST_NAMES)
    shown = range(0, len(classes), step)
    names = [shortened(classes[index], 24) for index in shown]
    size = 9 if len(classes) <= _MOST_NUMBERS else 7
    upright = len(classes) > 4 or max(len(name) for name in names) > 8
    axes.set_xticks(shown, names, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(shown, names, fontsize=size, parse_math=False)
    note = "" if step == 1 else f" (of {len(classes)}; one in {step} is named)"
    axes.set_xlabel(f"predicted class{note}")
    axes.set_ylabel("true class")


def _write_numbers(axes: Axes, matrix: Counts, shares: npt.NDArray[np.float64]) -> None:
    size = 10 if len(matrix) <= 10 else 7
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column]:
            color = "black" if shares[row, column] > 0.25 else "white"
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=size
            )


def _list_pairs(axes: Axes, pairs: Sequence[Confusion], report: Report) -> None:
    """Draw what is confused most as bars, each under the names of its classes."""
    places = np.arange(len(pairs))
    axes.barh(places, [pair.share for pair in pairs], 0.34, color=VERMILION)
    longest = max(pair.share for pair in pairs)
    totals = report.confusion_matrix.sum(axis=1)
    for place, pair in enumerate(pairs):
        names = (shortened(report.classes[index], 24) for index in (pair.truth, pair.predicted))
        axes.text(0, place - 0.26, " → ".join(names), fontsize=8, va="bottom", parse_math=False)
        axes.text(
            pair.share, place, f" {pair.images} of {totals[pair.truth]}", fontsize=8, va="center", color=GREY
        )
    end = 1.35 * longest  # leaves room for the counts
    axes.set(xlim=(0, end), ylim=(_PAIRS - 0.4, -0.8), yticks=[])
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(end, 1 + 1e-9)])
    axes.spines["bottom"].set_bounds(0, min(end, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of the true class")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Confused most: true → predicted", fontsize=10)
