"""The main job on real photos, held to the figures of a logistic regression on the same features."""

from __future__ import annotations

import csv
import json

import pytest

from transferkit.cli import main

# 95% Wilson intervals of the references: standardized features, C by 5 folds on the training part.
REFERENCES = {"hymenoptera": (67.8, 81.3), "cats_dogs": (71.8, 84.4), "cifar10_10pct": (70.2, 75.7)}


def model_options(real_data):
    weights = real_data / "weights" / "resnet18_imagenet200_64px.pth"
    return ["--backbone", "resnet18", "--weights", str(weights), "--image-size", "64"]


def label_options(name):
    return ["--label-from", r"^(\w+)\."] if name == "cats_dogs" else []


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*imageNotFound.gif.*:UserWarning")
@pytest.mark.parametrize("name", REFERENCES)
def test_a_linear_probe_is_as_good_as_the_reference(real_data, tmp_path, capsys, name):
    run, data = tmp_path / "run", str(real_data / "data" / name)
    arguments = ["train", data, *model_options(real_data), *label_options(name), "--recipe", "linear-probe"]
    assert main([*arguments, "--quiet", "--json", "--out", str(run)]) == 0
    trained = json.loads(capsys.readouterr().out)["report"]
    # Not below the reference beyond chance: the intervals overlap.
    assert 100 * trained["accuracy_interval"][1] >= REFERENCES[name][0]
    assert 100 * trained["accuracy"] >= REFERENCES[name][0]

    assert main(["evaluate", str(run), data, "--quiet", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["confusion_matrix"] == trained["confusion_matrix"]
    assert again["split"] == ("test" if name == "cifar10_10pct" else "val")


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*imageNotFound.gif.*:UserWarning")
def test_folders_of_photos_become_a_table(real_data, tmp_path, capsys):
    run, data = tmp_path / "run", real_data / "data" / "hymenoptera"
    arguments = ["train", str(data), *model_options(real_data), "--recipe", "linear-probe", "--epochs", "5"]
    assert main([*arguments, "--quiet", "--out", str(run)]) == 0
    table = tmp_path / "result.csv"
    assert main(["predict", str(run), str(data / "val"), "--out", str(table), "--quiet"]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 153
    right = sum(f"/{row['label']}/" in row["path"] for row in rows)
    report = json.loads((run / "report.json").read_text())
    assert abs(right / 153 - report["accuracy"]) <= 0.01


@pytest.mark.real_data
@pytest.mark.slow
def test_weights_for_much_smaller_images_are_as_good_at_twice_their_size(real_data, tmp_path, capsys):
    data = ["train", str(real_data / "data" / "cats_dogs"), *label_options("cats_dogs")]
    arguments = [*data, *model_options(real_data), "--image-size", "128", "--recipe", "linear-probe"]
    accuracy = {}
    for choice, options in {"auto": [], "no": ["--no-adapt-batch-norm"]}.items():
        run = tmp_path / choice
        assert main([*arguments, *options, "--quiet", "--json", "--out", str(run)]) == 0
        accuracy[choice] = json.loads(capsys.readouterr().out)["report"]["accuracy"]
        adapted = json.loads((run / "config.json").read_text())["batch_norm"]
        assert (adapted is not None) == (choice == "auto")
    # 79.4% and 89.4% of 160 photos when the rule was made.
    assert accuracy["auto"] >= accuracy["no"] + 0.05
