"""The history prints as a table and plots by phase."""

from __future__ import annotations

import pytest

import transferkit as tk


@pytest.fixture
def history():
    rows = [
        {"epoch": 1, "phase": 0, "train": "head", "lr": 1e-3, "train_loss": 0.9, "train_accuracy": 0.5,
         "val_loss": 0.8, "val_accuracy": 0.6, "images_per_second": 100.0, "seconds": 1.0, "best": True},
        {"epoch": 2, "phase": 1, "train": "all", "lr": 1e-4, "train_loss": 0.7, "train_accuracy": 0.625,
         "val_loss": 0.9, "val_accuracy": 0.55, "images_per_second": 50.0, "seconds": 2.0, "best": False},
    ]  # fmt: skip
    return tk.History(rows)


def test_it_is_a_sequence_of_rows(history):
    assert len(history) == 2
    assert history[-1]["epoch"] == 2
    assert [row["train"] for row in history] == ["head", "all"]
    assert history.best["epoch"] == 1


def test_it_prints_a_table_that_marks_the_best_epoch(history):
    lines = str(history).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["epoch", "trains", "lr"]
    assert "60.0%" in lines[1]
    assert lines[1].endswith("*")
    assert not lines[2].endswith("*")


def test_without_validation_the_last_epoch_is_kept(history):
    rows = [row | {"val_loss": None, "val_accuracy": None, "best": False} for row in history]
    plain = tk.History(rows)
    assert plain.best["epoch"] == 2
    assert "val" not in str(plain)


def test_it_plots_loss_and_accuracy_by_epoch(history):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    figure = history.plot()
    loss, accuracy = figure.axes
    assert loss.get_title() == "Mean loss"
    train, val = accuracy.get_lines()[:2]
    assert train.get_ydata().tolist() == [0.5, 0.625]
    assert val.get_ydata().tolist() == [0.6, 0.55]
    assert train.get_xdata().tolist() == [1, 2]
    (kept,) = (line for line in accuracy.get_lines() if line.get_label() == "kept")
    assert (kept.get_xdata().tolist(), kept.get_ydata().tolist()) == ([1], [0.6])
    # Each phase has its name over its epochs; the second is shaded.
    assert [(text.get_text(), text.xy[0]) for text in loss.texts] == [("head", 1.0), ("all", 2.0)]
    (band,) = loss.patches
    assert (band.get_x(), band.get_width()) == (1.5, 1.0)


def test_a_fitted_head_is_a_point_of_its_own(history):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    fit = {**history[0], "c": 0.1, "lr": None, "images_per_second": None, "best": False}
    rows = [fit | {"epoch": 0}, *history, fit | {"epoch": 2, "phase": 2, "train": ["layer4", "head"]}]
    rows[1:3] = [row | {"phase": 1} for row in rows[1:3]]
    figure = tk.History(rows).plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fit", "1", "2", "fit"]
    assert [text.get_text() for text in axes.texts] == ["head", "head", "layer4, head"]


def test_a_history_without_rows_or_validation_is_drawn_too(history):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    tk.History().plot().draw_without_rendering()
    plain = tk.History([row | {"val_loss": None, "val_accuracy": None, "best": False} for row in history])
    figure = plain.plot()
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.legends[0].texts] == ["train"]


def test_an_empty_history_prints_and_has_no_best():
    assert tk.History().best is None
    assert isinstance(str(tk.History()), str)
