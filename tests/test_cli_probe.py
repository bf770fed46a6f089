"""``transferkit probe``: the table, what is fitted to what, and how it fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from transferkit.cli import main

PROBE = ["--device", "cpu", "--precision", "fp32"]


def write_photos(folder, count, *, seed=0):
    """Write small photos whose class shows in their color; the file name has it too."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(("ant", "bee", "wasp")):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 150, (36, 40, 3), dtype=np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(folder / name / f"{name}.{index}.png")


@pytest.fixture
def photos(tmp_path):
    """Three classes in class folders, without parts."""
    write_photos(tmp_path / "photos", 10)
    return tmp_path / "photos"


@pytest.fixture
def parts(tmp_path):
    """The same in a training and a test part."""
    write_photos(tmp_path / "parts" / "train", 8)
    write_photos(tmp_path / "parts" / "test", 4, seed=1)
    return tmp_path / "parts"


def test_the_table_goes_to_standard_output_and_progress_to_standard_error(photos, capsys):
    assert main(["probe", str(photos), *PROBE, "--backbone", "mini", "--backbone", "mini=none"]) == 0
    printed = capsys.readouterr()
    head, first, second, note = printed.out.splitlines()
    assert "nearest neighbours" in head
    assert [line.split()[0] for line in (first, second)] == ["mini", "mini=none"]
    assert note == "accuracy with its 95% interval on 6 images (val), fitted to 24"
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["mini", "mini=none"]


def test_quiet_and_json_serve_scripts(photos, capsys):
    assert main(["probe", str(photos), *PROBE, "--val", "0.5", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert (result["split"], result["fitted"], result["n"]) == ("val", 15, 15)
    (row,) = result["backbones"]
    assert row["backbone"] == "mini"
    assert all(0.8 <= row[name] <= 1 for name in ("neighbours", "ridge", "logistic"))
    assert row["logistic_interval"][0] < row["logistic"] <= row["logistic_interval"][1]


def test_where_there_is_a_test_part_nothing_is_kept_from_fitting(parts, capsys):
    assert main(["probe", str(parts), *PROBE, "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["fitted"], result["n"]) == ("test", 24, 12)


def test_shots_seed_and_labels_in_file_names(photos, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.glob("*/*.png"):
        path.rename(flat / path.name)
    command = ["probe", str(flat), *PROBE, "--json", "--quiet", "--shots", "2", "--seed", "5"]
    assert main([*command, "--label-from", r"^(\w+)\."]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fitted"], result["n"]) == (6, 6)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--backbone", "minni"], 2, "mini"),
        (["--backbone", "mini=missing.pth"], 4, "missing.pth"),
        (["--seed", "-1"], 2, "--seed must be"),
        (["--val", "0"], 3, "neither"),
    ],
)
def test_a_failure_is_one_sentence_and_an_exit_code(options, code, message, photos, capsys):
    assert main(["probe", str(photos), *PROBE, *options]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("transferkit: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.filterwarnings("default")
def test_what_cannot_be_decoded_may_be_left_out(photos, capsys):
    (photos / "bee" / "bee.3.png").write_bytes(b"")
    assert main(["probe", str(photos), *PROBE]) == 3
    assert "bee.3.png' cannot be decoded: it is empty." in capsys.readouterr().err
    assert main(["probe", str(photos), *PROBE, "--on-error", "skip", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "Left out 1 image ('bee/bee.3.png')" in printed.err
    result = json.loads(printed.out)
    assert result["fitted"] + result["n"] == 29
