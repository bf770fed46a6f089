"""The quickstart compares pretrained with random weights, and leaves a whole run.

``.ci/run`` runs all of it, as a user would, and sees that pretrained weights win over the five draws.
"""

from __future__ import annotations

import csv
import json
import re

import pytest
from PIL import Image

import transferkit as tk
from transferkit import quickstart
from transferkit.cli import main
from transferkit.errors import RunDirectoryError


def test_it_prints_both_with_intervals_and_leaves_a_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(quickstart, "_DRAWS", 2)
    run = tmp_path / "run"
    assert main(["quickstart", "--out", str(run), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("pretrained") >= 3
    assert printed.out.count("[") == 4
    assert "pretrained less random: " in printed.out
    accuracies = re.findall(r"draw \d: pretrained (\S+)% .* random weights (\S+)% ", printed.out)
    assert len(accuracies) == 2
    assert all(float(pretrained) > float(random) for pretrained, random in accuracies)
    figures = (
        "confusion_matrix.png",
        "predictions.png",
        "history.png",
        "training_images.png",
        "grad_cam.png",
    )
    for name in figures:
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200
    with (run / "result.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    report = json.loads((run / "report.json").read_text())
    assert len(rows) == report["n"]
    assert report["split"] == "test"
    assert tk.load_model(run).fc.out_features == 10


def test_a_used_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is already in use"):
        quickstart.run_quickstart(tmp_path)


def test_the_command_says_how_to_name_another_folder(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is already in use" in error
    assert error.endswith("--out.\n")
