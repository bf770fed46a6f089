"""The examples run as they stand, on small data, and those of the tutorials as their pages show them."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


@pytest.fixture(autouse=True)
def small_data_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRANSFERKIT_TEST_DATA", raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.chdir(tmp_path)


def run(name, *arguments):
    program = "bash" if name.endswith(".sh") else sys.executable
    command = [program, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_as_shown(name):
    """Run an example as the one page that shows its output does; the figures on the page are there then."""
    pages = [page.read_text(encoding="utf-8") for page in TUTORIALS.glob("*.md")]
    shown = rf"^```{{example-output}} {re.escape(name)}(.*)$"
    (page,) = [page for page in pages if re.search(shown, page, re.MULTILINE)]
    (arguments,) = re.findall(shown, page, re.MULTILINE)
    printed = run(name, *shlex.split(arguments))
    for figure in re.findall(rf"^```{{example-figure}} {re.escape(name)} (\S+)$", page, re.MULTILINE):
        assert is_figure(figure), figure
    return printed


def is_figure(path):
    """Say whether a file is a picture that is not of one color."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return pixels.size > 100_000 and pixels.std() > 5


def test_a_plain_loop():
    printed = run("plain_loop.py", "digits", "--shots", 4, "--epochs", 1)
    assert "the head alone" in printed
    assert "everything" in printed
    assert printed.count("epoch 1: loss") == 2
    assert "95% interval" in printed


def test_training_mini_writes_what_the_package_ships(tmp_path):
    folders = [f"n{number:08d}" for number in range(3)]
    for name, count in (("train", 8), ("val", 4)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for folder in folders:
                for index in range(count):
                    pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    path = tmp_path / "photo.jpg"
                    Image.fromarray(pixels).save(path)
                    archive.write(path, f"{folder}/{index}.JPEG")
    table = tmp_path / "classes.tsv"
    table.write_text("".join(f"{folder}\tclass {folder}\n" for folder in folders))
    out = tmp_path / "run"
    run("train_mini.py", tmp_path / "train.zip", tmp_path / "val.zip", table, "--epochs", 1, "--out", out)
    assert (out / "mini.safetensors").stat().st_size > 1_000_000
    assert '"val_accuracy"' in (out / "mini.json").read_text()


@pytest.mark.slow
def test_cifar10_with_resnet18(tmp_path):
    printed = run_as_shown("cifar10_resnet18.py")
    for recipe, trainable in (("linear-probe", 5_130), ("fine-tune", 1_305_194)):
        assert f"{recipe}, of {trainable:,} parameters" in printed
        report = json.loads((tmp_path / "runs" / recipe / "report.json").read_text())
        low, high = report["accuracy_interval"]
        assert re.search(rf"{recipe} +{report['accuracy']:.1%} \[{low:.1%}, {high:.1%}\]", printed)
        assert report["split"] == "test"
        assert report["accuracy"] > 0.5  # ten classes: chance is 0.1
        assert is_figure(tmp_path / "runs" / recipe / "confusion_matrix.png")
        assert is_figure(tmp_path / "runs" / recipe / "history.png")
    assert printed.count("weighted avg") == 2


@pytest.mark.slow
def test_ants_and_bees(tmp_path):
    printed = run_as_shown("ants_and_bees.py")
    rates = re.findall(r"^ +\d  +all +(\S+)", printed, re.MULTILINE)
    assert [float(rate) for rate in rates] == pytest.approx([2e-2, 2e-2, 2e-3, 2e-3, 2e-4, 2e-4])
    kept = int(re.search(r"kept: the weights of epoch (\d)", printed)[1])
    best = re.findall(r"^ +(\d)  .* (\S+)%  .*\*$", printed, re.MULTILINE)
    assert best[-1][0] == str(kept)
    assert "Weights were selected on this split" in printed
    for figure in ("training_images.png", "history.png", "predictions.png"):
        assert is_figure(tmp_path / "out" / figure)
    assert (tmp_path / "out" / "model" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_probe_then_finetune():
    printed = run_as_shown("probe_then_finetune.py")
    trains = re.findall(r"^(.+): ([\d,]+) parameters train$", printed, re.MULTILINE)
    assert trains == [
        ("linear probe", "2,052"),
        ("with pad, crop and flip", "2,052"),
        ("everything", "1,302,116"),
    ]
    accuracies = [float(each) for each in re.findall(r"^test accuracy (\S+)% \[", printed, re.MULTILINE)]
    assert len(accuracies) == 3
    assert accuracies[-1] > 50  # four classes: chance is 25
    scores = [float(each) for each in re.findall(r"^ *(\S+)%  (?:ant|bee|cat|dog)$", printed, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_parts_of_a_detector():
    printed = run_as_shown("parts_of_a_detector.py")
    for name in ("Faster R-CNN", "RetinaNet", "SSD", "FCN"):
        assert f"\n{name}\n" in printed
    # The pyramid on ResNet-50: four 1 x 1 convolutions to 256 channels and four of 3 x 3, with biases.
    pyramid = sum(256 * channels + 256 for channels in (256, 512, 1024, 2048)) + 4 * (256 * 256 * 9 + 256)
    assert f"backbone.fpn         {pyramid:>9,}  neck" in printed
    assert "by requires_grad alone: moved" in printed
    assert "by transferkit.freeze:  kept" in printed


@pytest.mark.slow
def test_cats_and_dogs(tmp_path):
    printed = run_as_shown("cats_and_dogs.sh")
    assert printed.count("$ transferkit train") == 2
    out = tmp_path / "cats-and-dogs"
    rates = json.loads((out / "rates" / "config.json").read_text())["phases"][0]
    assert (rates["lr"], rates["head_lr"], rates["layer_decay"]) == (3e-4, 1e-3, 0.5)
    assert json.loads((out / "frozen" / "config.json").read_text())["phases"][0]["train"] == "head"
    assert list((out / "frozen" / "tensorboard").glob("events.*"))
    rows = list(csv.DictReader((out / "result.csv").read_text().splitlines()))
    right = [Path(row["path"]).name.startswith(row["label"]) for row in rows]
    assert len(right) == 80
    assert np.mean(right) > 0.8
    for figure in ("predictions.png", "rates/predictions.png", "rates/confusion_matrix.png"):
        assert is_figure(out / figure)
