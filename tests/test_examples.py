"""The examples run as they stand, on small data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
