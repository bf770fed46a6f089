"""What stands in the pictures."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.errors import ArgumentError, DataError
from transferkit.evaluation.plots import plot_confusion_matrix, plot_predictions
from transferkit.evaluation.report import Report

matplotlib = pytest.importorskip("matplotlib")


def report_of(classes: int, names: list[str] | None = None) -> Report:
    targets = torch.arange(3 * classes) % classes
    logits = torch.randn(3 * classes, classes)
    logits[torch.arange(3 * classes), targets] += 2
    return Report.from_logits(logits, targets, names or [f"name {index}" for index in range(classes)])


def png(figure: object) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=40)
    return Image.open(buffer)


@pytest.mark.parametrize("classes", [1, 2, 10, 200])
def test_a_confusion_matrix_is_drawn_at_a_bounded_size(classes: int) -> None:
    report = report_of(classes)
    figure = report.plot_confusion_matrix()
    assert max(png(figure).size) < 14 * 40
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
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    png(plot_predictions([image], [odd[0]], [0.5], [odd[1]]))


def test_predictions_say_right_and_wrong_in_words_and_lines() -> None:
    images = [
        Image.new("L", (300, 500)),
        np.zeros((9, 8, 3), dtype=np.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ]
    figure = plot_predictions(images, ["ant", "bee", "ant"], [0.97, 0.61, 0.5], ["ant", "ant", None])
    right, wrong, unknown = figure.axes[:3]
    assert right.get_title() == "✓ ant 97%"
    assert wrong.get_title() == "✗ bee 61%\ntruth: ant"
    assert unknown.get_title() == "ant 50%"
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()
    png(figure)


@pytest.mark.parametrize(("count", "most", "drawn"), [(1, 36, 1), (5, 36, 5), (50, 36, 36), (7, 4, 4)])
def test_a_grid_draws_the_first_images(count: int, most: int, drawn: int) -> None:
    images = [np.full((4, 4, 3), index, dtype=np.uint8) for index in range(count)]
    figure = plot_predictions(images, ["x"] * count, [1.0] * count, most=most)
    shown = [np.asarray(axes.images[0].get_array())[0, 0, 0] for axes in figure.axes if axes.images]
    assert shown == list(range(drawn))
    assert (figure.get_suptitle() == f"the first {drawn} of {count} images") == (drawn < count)


def test_a_grid_leaves_the_images_as_they_are() -> None:
    image = Image.new("RGB", (600, 400))
    plot_predictions([image], ["x"], [1.0])
    assert image.size == (600, 400)


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="no images were given"):
        plot_predictions([], [], [])
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(ArgumentError, match="'scores' parameter of plot_predictions must be of length 1"):
        plot_predictions([image], ["x"], [])
    with pytest.raises(ArgumentError, match="'images' parameter"):
        plot_predictions([torch.zeros(3, 4, 4)], ["x"], [1.0])


def test_no_plot_touches_pyplot() -> None:
    code = (
        "import sys, torch; from transferkit.evaluation.report import Report;"
        "Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ['a', 'b']).plot_confusion_matrix();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
