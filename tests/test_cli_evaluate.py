"""Where ``evaluate`` takes labels from, what it knows again, and what it and ``predict`` refuse."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from transferkit.cli import main

TRAIN = ["--recipe", "linear-probe", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--quiet"]
NOTE = "Weights were selected on this split"


def write_photos(folder, names, *, seed=0):
    generator = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., "dog" in name] += 120
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory):
    """A run on a folder without class folders."""
    folder = tmp_path_factory.mktemp("flat_run")
    names = [f"{name}.{index}.png" for name in ("cat", "dog") for index in range(6)]
    write_photos(folder / "flat", names)
    run = folder / "run"
    command = ["train", str(folder / "flat"), *TRAIN, "--label-from", r"^(\w+)\.", "--out", str(run)]
    assert main(command) == 0
    return run


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A run on class folders, and the photos."""
    folder = tmp_path_factory.mktemp("folder_run")
    names = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(10)]
    photos = write_photos(folder / "photos", names)
    run = folder / "run"
    assert main(["train", str(photos), *TRAIN, "--out", str(run)]) == 0
    return run, photos


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json", "--quiet", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, code, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet", "--device", "cpu"]) == code
    return capsys.readouterr().err


def test_class_folders_of_the_model_win_over_the_runs_label_from(flat_run, tmp_path, capsys):
    # By their file names each image would be of the other class.
    photos = write_photos(tmp_path / "new", ["cat/dog.x.png", "cat/dog.y.png", "dog/cat.x.png"])
    support = [row["support"] for row in evaluated(capsys, flat_run, photos)["per_class"]]
    assert support == [2, 1]
    asked = evaluated(capsys, flat_run, photos, "--label-from", r"^(\w+)\.")
    assert [row["support"] for row in asked["per_class"]] == [1, 2]


def test_other_folders_leave_the_runs_label_from_and_its_errors_say_so(flat_run, tmp_path, capsys):
    photos = write_photos(tmp_path / "new", ["day1/cat.x.png", "day2/dog.x.png"])
    assert evaluated(capsys, flat_run, photos)["n"] == 2
    strange = write_photos(tmp_path / "strange", ["ape/0.png", "bee/1.png"])
    said = r"The label_from '^(\\w+)\\.' of the run was used; --label-from gives another, or '' none."
    assert said in refused(capsys, 3, "evaluate", flat_run, strange)
    unknown = write_photos(tmp_path / "unknown", ["cat.x.png", "yak.x.png"])
    assert said in refused(capsys, 3, "evaluate", flat_run, unknown)
    error = refused(capsys, 3, "evaluate", flat_run, strange, "--label-from", "")
    assert "label_from" not in error
    assert "'ape', 'bee'" in error


def test_a_data_set_by_name_has_labels_of_its_own(flat_run, capsys):
    error = refused(capsys, 3, "evaluate", flat_run, "digits")
    assert "10 classes" in error
    assert "label_from" not in error


def as_zip(photos, place):
    with zipfile.ZipFile(place / "photos.zip", "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, f"photos/{path.relative_to(photos)}")
    return place / "photos.zip"


def as_table(photos, table, *, absolute=False):
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for path in sorted(photos.rglob("*.png")):
            writer.writerow([path if absolute else os.path.relpath(path, table.parent), path.parent.name])
    return table


@pytest.mark.parametrize("form", ["folder", "copy", "zip", "table", "absolute table", "table of a copy"])
def test_the_images_that_weights_were_selected_on_are_known_in_any_form(form, folder_run, tmp_path, capsys):
    run, photos = folder_run
    data = photos
    if "copy" in form:
        data = shutil.copytree(photos, tmp_path / "copied")
    if form == "zip":
        data = as_zip(photos, tmp_path)
    if "table" in form:
        data = as_table(data, tmp_path / "labels.csv", absolute="absolute" in form)
    found, recorded = evaluated(capsys, run, data), json.loads((run / "report.json").read_text())
    assert (found["split"], found["selected"]) == ("val", True)
    assert found["confusion_matrix"] == recorded["confusion_matrix"]
    assert main(["evaluate", str(run), str(data), "--quiet", "--device", "cpu"]) == 0
    assert NOTE in capsys.readouterr().out


@pytest.mark.parametrize("form", ["zip", "table"])
def test_a_run_on_another_form_knows_the_folder(form, tmp_path, capsys):
    names = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(6)]
    photos = write_photos(tmp_path / "in" / "photos", names)
    data = as_zip(photos, tmp_path) if form == "zip" else as_table(photos, tmp_path / "labels.csv")
    run = tmp_path / "run"
    assert main(["train", str(data), *TRAIN, "--out", str(run)]) == 0
    found = evaluated(capsys, run, photos)
    assert (found["split"], found["selected"]) == ("val", True)
    assert found["n"] == json.loads((run / "report.json").read_text())["n"]


def test_a_part_of_the_data_sets_own_is_known_in_an_archive_and_alone(tmp_path, capsys):
    names = [
        f"{part}/{name}/{index}.png"
        for part in ("train", "val")
        for name in ("cat", "dog")
        for index in range(3)
    ]
    photos = write_photos(tmp_path / "photos", names)
    run = tmp_path / "run"
    assert main(["train", str(photos), *TRAIN, "--out", str(run)]) == 0
    assert evaluated(capsys, run, as_zip(photos, tmp_path))["selected"] is True
    assert evaluated(capsys, run, photos / "val")["selected"] is True
    shutil.move(photos / "val", photos / "test")
    assert evaluated(capsys, run, write_photos(photos, ["test/cat/9.png"], seed=1))["selected"] is False


@pytest.mark.parametrize("moved", [False, True])
def test_a_test_part_with_the_file_names_of_the_validation_part_was_not_selected_on(moved, tmp_path, capsys):
    names = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(3)]
    for seed, part in enumerate(("train", "val", "test")):
        photos = write_photos(tmp_path / "photos", [f"{part}/{name}" for name in names], seed=seed)
    run = tmp_path / "run"
    assert main(["train", str(photos), *TRAIN, "--out", str(run)]) == 0
    if moved:
        photos = shutil.move(photos, tmp_path / "elsewhere")
    found = evaluated(capsys, run, photos)
    assert (found["split"], found["selected"]) == ("test", False)


@pytest.mark.filterwarnings("default")
def test_other_images_were_not_selected_on(folder_run, tmp_path, capsys):
    run, _ = folder_run
    other = write_photos(tmp_path / "other", ["cat/a.png", "dog/b.png"], seed=1)
    assert evaluated(capsys, run, other)["selected"] is False


def test_an_image_that_cannot_be_decoded_hints_at_skip(folder_run, tmp_path, capsys):
    run, _ = folder_run
    new = write_photos(tmp_path / "new", ["cat/a.png", "dog/b.png"])
    (new / "cat" / "bad.png").write_bytes(b"")
    hint = "bad.png' cannot be decoded: it is empty. To go on without such images, give --on-error skip."
    for command in ("evaluate", "predict"):
        assert hint in refused(capsys, 3, command, run, new)


def test_predict_says_what_to_do_with_an_archive(folder_run, tmp_path, capsys):
    run, photos = folder_run
    archive = as_zip(photos, tmp_path)
    error = refused(capsys, 3, "predict", run, archive)
    assert f"takes image files and folders; unpack '{archive}' and name the folder." in error


def test_predict_tries_its_outputs_before_it_computes(folder_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run, photos = folder_run
    (tmp_path / "file").write_text("no folder")
    grid, table = tmp_path / "file" / "grid.png", tmp_path / "table.csv"
    error = refused(capsys, 6, "predict", run, photos, "--out", table, "--grid", grid)
    assert error == f"transferkit: {grid} cannot be written: Not a directory.\n"
    assert not table.exists()
    report = tmp_path / "file" / "report.json"
    assert refused(capsys, 6, "evaluate", run, photos, "--out", report).count(str(report)) == 1
