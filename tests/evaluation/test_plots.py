"""What stands in the charts of a report."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.errors import ArgumentError
from transferkit.evaluation.plots import most_confused, plot_confusion_matrix, plot_reliability
from transferkit.evaluation.report import Report

matplotlib = pytest.importorskip("matplotlib", reason="the figures need matplotlib")


def report_of(classes: int, names: list[str] | None = None) -> Report:
    targets = torch.arange(3 * classes) % classes
    logits = torch.randn(3 * classes, classes)
    logits[torch.arange(3 * classes), targets] += 2
    return Report.from_logits(logits, targets, names or [f"name {index}" for index in range(classes)])


def report_with(matrix: list[list[int]], names: list[str] | None = None) -> Report:
    """A report with a given confusion matrix."""
    pairs = [(row, column) for (row, column), count in np.ndenumerate(matrix) for _ in range(count)]
    targets, predictions = np.array(pairs).T
    logits = 3.0 * np.eye(len(matrix))[predictions]
    return Report.from_logits(logits, targets, names or [f"name {index}" for index in range(len(matrix))])


def png(figure: object) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=40)
    return Image.open(buffer)


def texts_of(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("classes", [1, 2, 10, 200])
def test_a_confusion_matrix_is_drawn_at_a_bounded_size(classes: int) -> None:
    report = report_of(classes)
    figure = report.plot_confusion_matrix()
    assert max(png(figure).size) < 16 * 40
    axes = figure.axes[0]
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, report.confusion_matrix / 3)
    assert f"accuracy {report.accuracy:.1%}" in axes.get_title()
    assert f"n = {3 * classes}" in axes.get_title()
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0] == "name 0"
    assert len(shown) == min(classes, 40)
    assert shown == [label.get_text() for label in axes.get_xticklabels()]


def test_numbers_stand_in_the_cells_of_few_classes_only() -> None:
    report = report_of(4)
    matrix = report.confusion_matrix
    written = {
        (round(text.get_position()[1]), round(text.get_position()[0])): int(text.get_text())
        for text in plot_confusion_matrix(report).axes[0].texts
    }
    assert written == {(row, column): matrix[row, column] for row, column in np.argwhere(matrix).tolist()}
    assert not plot_confusion_matrix(report_of(30)).axes[0].texts


def test_the_most_confused_pairs_come_first() -> None:
    report = report_with([[5, 3, 0], [0, 9, 1], [1, 0, 1]])
    pairs = [(pair.truth, pair.predicted, pair.images, pair.share) for pair in most_confused(report)]
    # Of the two pairs that have one image each, the larger share comes first.
    assert pairs == [(0, 1, 3, 0.375), (2, 0, 1, 0.5), (1, 2, 1, 0.1)]
    assert len(most_confused(report, 2)) == 2
    assert most_confused(report_with([[2, 0], [0, 2]])) == []
    with pytest.raises(ArgumentError, match="'most' parameter of most_confused must be an int of at least 1"):
        most_confused(report, 0)


def test_many_classes_have_their_confusions_listed_beside() -> None:
    matrix = 4 * np.eye(30, dtype=int)
    matrix[3, 7], matrix[12, 2] = 6, 1
    figure = plot_confusion_matrix(report_with(matrix.tolist()))
    png(figure)
    listed = texts_of(figure.axes[-1])
    assert listed == ["name 3 → name 7", " 6 of 10", "name 12 → name 2", " 1 of 5"]
    assert [bar.get_width() for bar in figure.axes[-1].patches] == [0.6, 0.2]
    # Without a mistake there is nothing to list: matrix and color bar alone.
    assert len(plot_confusion_matrix(report_with(np.eye(30, dtype=int).tolist())).axes) == 2


def test_a_class_without_images_is_left_blank() -> None:
    report = Report.from_logits(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b", "c"])
    figure = plot_confusion_matrix(report)
    assert np.isnan(np.asarray(figure.axes[0].images[0].get_array())[2]).all()
    png(figure)


def test_names_are_drawn_as_they_are() -> None:
    odd = ["cost $x_{ of", "_hidden", "a" * 60]
    figure = plot_confusion_matrix(report_of(3, odd))
    png(figure)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:2] == odd[:2]
    assert len(shown[2]) == 24
    many = report_of(30, [f"$x_{{{number}" for number in range(30)])
    png(plot_confusion_matrix(many))


def test_a_reliability_diagram_has_accuracy_counts_and_error_of_each_bin() -> None:
    # Two of three right at a probability of 0.7, one of one at 0.9.
    probabilities = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.3, 0.7], [0.1, 0.9]])
    report = Report.from_logits(probabilities.log(), torch.tensor([0, 1, 1, 1]), ["ant", "bee"])
    figure = plot_reliability(report)
    png(figure)
    upper, lower = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 4): bar.get_height() for bar in upper.patches}
    # Of 15 bins, the eleventh ends at 11 / 15 and the fourteenth at 14 / 15.
    assert bars == pytest.approx({0.7: 2 / 3, 0.9: 1.0})
    assert sum(bar.get_height() for bar in lower.patches) == 4
    assert texts_of(lower) == ["3", "1"]
    by_hand = (3 * abs(2 / 3 - 0.7) + 1 * abs(1 - 0.9)) / 4
    assert f"calibration error {by_hand:.1%}" in upper.get_title()
    assert "mean probability 75.0%" in upper.get_title()


def test_a_reliability_diagram_needs_the_samples() -> None:
    report = Report.from_dict(report_of(2).to_dict())
    with pytest.raises(
        ArgumentError, match="'report' parameter of plot_reliability must be a report with its"
    ):
        plot_reliability(report)
    png(plot_reliability(Report.from_dict(report_of(2).to_dict(samples=True))))


def test_no_plot_touches_pyplot() -> None:
    code = (
        "import sys, torch; from transferkit.evaluation.report import Report\n"
        "from transferkit.evaluation.plots import plot_confusion_matrix, plot_reliability\n"
        "report = Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ['a', 'b'])\n"
        "plot_confusion_matrix(report), plot_reliability(report)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_axis_of_shares_ends_at_the_whole() -> None:
    matrix = np.eye(30, dtype=int)
    matrix[3, 3], matrix[3, 4] = 0, 2
    bars = plot_confusion_matrix(report_with(matrix.tolist())).subfigs[1].axes[0]
    assert max(bars.get_xticks()) == 1
    assert bars.spines["bottom"].get_bounds() == (0, 1)
    assert bars.get_xlim()[1] > 1  # the counts stand beyond the bars
