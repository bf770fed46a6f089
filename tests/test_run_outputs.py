"""The files that are made of a run."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.errors import OutputError
from transferkit.run_outputs import check_writable, grad_cam_grid, write_figures, write_report

REPORT = {"confusion_matrix.png", "reliability.png", "predictions.png", "mistakes.png"}
RUN = {"training_images.png", "history.png", "grad_cam.png"}


@pytest.fixture
def evaluated(tiny_part):
    """A model with maps, its part and a report with mistakes."""
    model = tk.replace_head(tk.load_backbone("mini", image_size=8), 2, classes=["class0", "class1"])
    part = tiny_part(24, name="val")
    return model, part, tk.evaluate(model, part)


@pytest.fixture
def history():
    row = {"epoch": 1, "phase": 0, "train": "head", "train_loss": 0.5, "train_accuracy": 0.5, "best": True}
    return tk.History([row])


def test_all_figures_of_a_run_are_written(tmp_path, evaluated, history):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model, part, report = evaluated
    light = tk.augmentation("light", tk.spec_of(model).preprocessing)
    assert write_report(report, part, tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == REPORT | {"report.json", "result.csv"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not write_figures(
        tmp_path, model, part, history, report=report, part=part, augmentation=light, seed=1
    )
    assert {path.name for path in tmp_path.glob("*.png")} == REPORT | RUN
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert 300 < min(picture.size) <= max(picture.size) < 2000, path.name
            assert len(np.unique(np.asarray(picture))) > 10, path.name
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_without_mistakes_or_report_their_figures_are_not_there(tmp_path, evaluated, history):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model, part, _ = evaluated
    right = tk.Report.from_logits(
        5.0 * np.eye(2)[part.targets], part.targets, part.classes, split="val", ids=part.ids
    )
    assert write_report(right, part, tmp_path) == []
    assert write_figures(tmp_path, model, part, history) == []
    assert {path.name for path in tmp_path.glob("*.png")} == (REPORT | RUN) - {"mistakes.png", "grad_cam.png"}


def test_the_truths_are_those_of_the_report(tmp_path, evaluated):
    # A model may have the classes of a part in another order.
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model, part, _ = evaluated
    turned = part.with_classes(["class1", "class0"])
    report = tk.evaluate(model, turned)
    figure = grad_cam_grid(model, report, turned, most=24)
    for axes, target in zip(figure.axes, turned.targets, strict=True):
        caption = axes.get_title()
        truth = turned.classes[target]
        assert caption.endswith(f"truth: {truth}") if "✗" in caption else caption.startswith(f"✓ {truth}")


def test_a_model_without_maps_is_no_reason_to_fail(tmp_path, tiny_part, history):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    set_spec(model, tk.BackboneSpec("custom", "1", tk.Preprocessing(size=8)))
    part = tiny_part()
    report = tk.evaluate(model, part)
    (note,) = write_figures(tmp_path, model, part, history, report=report, part=part)
    assert note.startswith("grad_cam.png was left out: The 'model' parameter of grad_cam must have a layer")
    assert (tmp_path / "history.png").is_file()


def test_without_matplotlib_one_sentence_says_so(tmp_path, evaluated, history, monkeypatch):
    model, part, report = evaluated
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
    )
    notes = write_report(report, part, tmp_path)
    assert len(notes) == 1
    assert "they need matplotlib, which is not installed" in notes[0]
    assert "pip install 'transferkit[plot]'" in notes[0]
    assert write_figures(tmp_path, model, part, history, report=report, part=part) == notes
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "result.csv"}


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path, evaluated, history):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model, part, _ = evaluated
    (tmp_path / "run").write_text("a file where the run directory should be")
    with pytest.raises(OutputError, match=r"training_images\.png cannot be written"):
        write_figures(tmp_path / "run", model, part, history)


def test_training_images_that_cannot_be_decoded_are_passed_over(tmp_path, evaluated, history):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    model, part, _ = evaluated
    sources = [b"" if index % 2 else image for index, image in enumerate(part.sources)]
    faulty = tk.Part(sources, part.targets, part.classes, name="train")
    assert write_figures(tmp_path, model, faulty, history) == []
    assert (tmp_path / "training_images.png").is_file()
    hopeless = tk.Part([b""] * 4, [0, 1, 0, 1], part.classes, name="train")
    (note,) = write_figures(tmp_path, model, hopeless, history)
    assert note.startswith("training_images.png was left out: ")


def test_what_cannot_be_written_is_told_beforehand_and_once(tmp_path):
    pytest.importorskip("matplotlib", reason="a figure needs matplotlib")
    (tmp_path / "file").write_text("no folder")
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "grid.png", "Not a directory"),
    ):
        with pytest.raises(OutputError) as caught:
            check_writable(path)
        assert str(caught.value) == f"{path} cannot be written: {reason}."
    with pytest.raises(OutputError, match=r"cannot be written: '\.xyz' is none of the formats .*png"):
        check_writable(tmp_path / "grid.xyz", figure=True)
    check_writable(tmp_path / "new" / "folder" / "grid.png", figure=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
