"""What the commands read, and what they refuse before they read it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.cli import main
from transferkit.datasets import load

QUIET = ["--quiet", "--json", "--device", "cpu", "--workers", "0"]


@pytest.fixture
def photos(tmp_path):
    """Two classes of dark and bright photos, below a folder."""
    for value, name in ((40, "ant"), (200, "bee")):
        for index in range(6):
            path = tmp_path / "photos" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), value + index, dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def table(photos):
    """A function that writes a table of the photos with another separator."""

    def write(separator, name="labels.csv"):
        lines = [
            f"{path.relative_to(photos.parent)}{separator}{path.parent.name}" for path in photos.glob("*/*")
        ]
        (photos.parent / name).write_text("\n".join([f"path{separator}label", *lines]))
        return photos.parent / name

    return write


@pytest.mark.parametrize(
    ("separator", "given"), [(";", ";"), ("\t", "tab"), ("\t", r"\t"), ("|", "auto"), ("\t", "\t")]
)
def test_a_table_with_other_separators(separator, given, table, tmp_path, capsys):
    data, run = str(table(separator)), tmp_path / "run"
    command = ["train", data, "--recipe", "linear-probe", "--out", str(run), *QUIET]
    assert main([*command, "--delimiter", given]) == 0
    assert json.loads((run / "config.json").read_text())["data"]["layout"] == "table"
    capsys.readouterr()
    # What the run was told of its table need not be said again.
    for again in ([], ["--delimiter", given]):
        assert main(["evaluate", str(run), data, *again, *QUIET]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["split"], result["n"], result["selected"]) == ("val", 2, True)
    assert main(["probe", data, "--delimiter", given, *QUIET]) == 0
    assert json.loads(capsys.readouterr().out)["fitted"] == 10


def test_another_table_is_read_in_its_own_way(table, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", str(table(";")), "--recipe", "linear-probe", "--out", str(run), *QUIET]
    assert main([*command, "--delimiter", ";"]) == 0
    other = str(table(",", "other.csv"))
    capsys.readouterr()
    assert main(["evaluate", str(run), other, *QUIET]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2


@pytest.mark.parametrize("data", ["photos", "digits", "photos.zip"])
def test_other_data_has_no_delimiter(data, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    for command in (["train", data], ["probe", data]):
        assert main([*command, "--delimiter", ";", *QUIET]) == 2
        assert capsys.readouterr().err == (
            "transferkit: --delimiter is for tables, files that end in .csv, .tsv, .tab; "
            f"DATA is {data!r}, so leave it out.\n"
        )


@pytest.mark.parametrize("given", [";;", "", '"', "\n"])
def test_what_separates_nothing_is_refused(given, table, capsys):
    assert main(["probe", str(table(";")), "--delimiter", given, *QUIET]) == 2
    assert "--delimiter must be a single character that " in capsys.readouterr().err


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Fail where data is looked at."""

    def read(*_):
        raise AssertionError("the data was read")

    monkeypatch.setattr(load, "read_data", read)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--backbone", "resnet81"], 2, "There is no backbone 'resnet81'. Did you mean 'resnet18'"),
        (["--weights", "nowhere.pth"], 4, "There is no file nowhere.pth; pass the path of a"),
        (["--weights", "./photos"], 4, "photos is a folder"),
        (["--weights", "./weights.zip"], 4, "weights.zip must have a name that ends in one of"),
        (["--device", "cuda:99"], 2, "--device must be one of 'auto', 'cpu'"),
        (["--device", "tpu"], 2, "--device must be one of 'auto', 'cpu'"),
    ],
)
def test_what_costs_nothing_to_check_is_checked_first(
    options, code, sentence, photos, monkeypatch, capsys, nothing_is_read
):
    monkeypatch.chdir(photos.parent)
    (photos.parent / "weights.zip").write_text("")
    for command in ("train", "probe"):
        assert main([command, "photos", *options]) == code
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lr", "-1"], "--lr must be a positive float"),
        (["--precision", "fp61"], "--precision must be one of 'auto', 'fp32'"),
        (["--batch-size", "0"], "--batch-size must be an int of at least 1"),
        (["--workers", "-1"], "--workers must be an int of at least 0"),
        (["--checkpoint-steps", "0"], "--checkpoint-steps must be an int of at least 1"),
    ],
)
def test_train_checks_numbers_first(options, sentence, photos, monkeypatch, capsys, nothing_is_read):
    monkeypatch.chdir(photos.parent)
    assert main(["train", "photos", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_weights_of_one_of_several_backbones_are_looked_for_first(photos, capsys, nothing_is_read):
    command = ["probe", str(photos), "--backbone", "mini", "--backbone", "mini=nowhere.pth"]
    assert main(command) == 4
    assert "There is no file nowhere.pth" in capsys.readouterr().err


def test_evaluate_looks_for_the_device_before_it_reads(photos, tmp_path, capsys, nothing_is_read):
    run = tmp_path / "run"
    tk.save_model(tk.replace_head(tk.load_backbone("mini"), 2, classes=["ant", "bee"]), run / "model")
    (run / "config.json").write_text('{"data": {}}')
    assert main(["evaluate", str(run), str(photos), "--device", "tpu"]) == 2
    assert "--device must be one of 'auto', 'cpu'" in capsys.readouterr().err
