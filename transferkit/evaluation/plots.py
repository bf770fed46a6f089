"""Pictures of an evaluation, as matplotlib figures that need no display and no pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.checks import check_int, import_extra, require
from transferkit.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from transferkit.evaluation.report import Report

_MOST_NUMBERS = 20
_MOST_NAMES = 40
_RIGHT, _WRONG = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito, told apart by everyone


def _figure(width: float, height: float, purpose: str) -> Figure:
    module = import_extra("matplotlib.figure", "plot", purpose)
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def plot_confusion_matrix(report: Report) -> Figure:
    """Draw how the images of each class were predicted.

    Colors are shares of the true class (row), on a scale that shows small shares too; where
    there are few classes, the number of images stands in each cell.

    Args:
        report: The report of an evaluation.

    Returns:
        A figure; ``figure.savefig("confusion_matrix.png")`` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matrix = report.confusion_matrix
    count = len(matrix)
    longest = max(len(_short(name, 24)) for name in report.classes)
    side = min(max(3.2, 0.55 * count), 9.0)
    names = min(0.085 * longest, 1.6)
    figure = _figure(side + names + 1.8, side + names + 0.9, "plot_confusion_matrix")
    colors = import_extra("matplotlib.colors", "plot", "plot_confusion_matrix")
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    # The square root brings out confusions of a few per cent.
    image = axes.imshow(shares, cmap="cividis", norm=colors.PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_facecolor("0.85")  # seen where a class has no images
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "75%", "100%"])
    bar.set_label("share of the true class")
    _name_axes(axes, report.classes)
    if count <= _MOST_NUMBERS:
        _write_numbers(axes, matrix, shares)
    low, high = report.accuracy_interval
    title = (
        f"{_short(report.split, 24)}: accuracy {report.accuracy:.1%}\n{low:.1%} to {high:.1%}, n = {report.n}"
    )
    axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def _name_axes(axes: Any, classes: Sequence[str]) -> None:
    """Name every class, or every few where there are too many to read."""
    step = math.ceil(len(classes) / _MOST_NAMES)
    shown = range(0, len(classes), step)
    names = [_short(classes[index], 24) for index in shown]
    size = 9 if len(classes) <= _MOST_NUMBERS else 7
    upright = len(classes) > 4 or max(len(name) for name in names) > 8
    axes.set_xticks(shown, names, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(shown, names, fontsize=size, parse_math=False)
    note = "" if step == 1 else f" (of {len(classes)}; one in {step} is named)"
    axes.set_xlabel(f"predicted class{note}")
    axes.set_ylabel("true class")


def _write_numbers(axes: Any, matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    size = 10 if len(matrix) <= 10 else 7
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column]:
            color = "black" if shares[row, column] > 0.25 else "white"
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=size
            )


def plot_predictions(
    images: Sequence[Image.Image | npt.NDArray[np.uint8] | Tensor],
    labels: Sequence[str],
    scores: Sequence[float],
    truths: Sequence[str | None] | None = None,
    *,
    most: int = 36,
    columns: int | None = None,
) -> Figure:
    """Draw images in a grid, each under its predicted label and score.

    A right prediction has a tick and a thin blue frame, a wrong one a cross, a thick dashed
    vermilion frame and the true label.

    Args:
        images: PIL images, uint8 arrays ``[H, W, 3]`` or uint8 tensors ``[3, H, W]``.
        labels: Predicted label of each image.
        scores: Its score, in [0, 1].
        truths: True label of each image, where it is known.
        most: How many images are drawn at most: the first ones.
        columns: Images in a row; chosen by their number if ``None``.

    Returns:
        A figure; ``figure.savefig("predictions.png")`` writes it.

    Raises:
        DataError: There are no images.
        ArgumentError: The lengths differ.
        MissingExtraError: matplotlib is not installed.
    """
    owner, count = "plot_predictions", len(images)
    if not count:
        raise DataError("There are no predictions to draw: no images were given.")
    truths = [None] * count if truths is None else truths
    for name, values in (("labels", labels), ("scores", scores), ("truths", truths)):
        require(len(values) == count, owner, name, f"of length {count}, as the images are", len(values))
    drawn = min(count, check_int(owner, "most", most, 1))
    if columns is None:
        columns = min(math.ceil(math.sqrt(drawn)), 6)
    columns = min(check_int(owner, "columns", columns, 1), drawn)
    rows = math.ceil(drawn / columns)
    figure = _figure(2.0 * columns, 2.35 * rows + 0.4 * (drawn < count), owner)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[drawn:]:
        axes.set_axis_off()
    for index in range(drawn):
        _draw_prediction(grid[index], images[index], labels[index], scores[index], truths[index])
    if drawn < count:
        figure.suptitle(f"the first {drawn} of {count} images", fontsize=10)
    return figure


def _draw_prediction(axes: Any, image: Any, label: str, score: float, truth: str | None) -> None:
    axes.imshow(_thumbnail(image))
    axes.set_xticks([])
    axes.set_yticks([])
    title, color = f"{_short(label, 16)} {score:.0%}", "black"
    if truth is not None:
        right = truth == label
        color = _RIGHT if right else _WRONG
        title = f"✓ {title}" if right else f"✗ {title}\ntruth: {_short(truth, 16)}"
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=1.5 if right else 3.0, linestyle="-" if right else "--")
    axes.set_title(title, fontsize=9, color=color, parse_math=False)


def _thumbnail(image: Any, side: int = 256) -> npt.NDArray[np.uint8]:
    """Return an image as an array [H, W, 3] that is no larger than a figure can show."""
    from PIL import Image

    if isinstance(image, Tensor):
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(image, Image.Image):
        require(
            isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3,
            "plot_predictions",
            "images",
            "PIL images, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W]",
            getattr(image, "dtype", image),
        )
        image = Image.fromarray(np.ascontiguousarray(image))
    image = image.convert("RGB")
    image.thumbnail((side, side))
    return np.asarray(image)
