"""The command line as a user meets it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.cli import main
from transferkit.commands import COMMANDS

TRAIN = ["--backbone", "mini", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]


def write_photos(folder, counts, *, seed=0):
    """Write small photos whose class shows in their color."""
    generator = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            pixels[..., number % 3] += 120
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", {"ant": 10, "bee": 10, "wasp": 10})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, the photos that it was trained on, and what the command printed."""
    folder = tmp_path_factory.mktemp("trained")
    photos = write_photos(folder / "photos", {"ant": 10, "bee": 10, "wasp": 10})
    run = folder / "run"
    assert main(["train", str(photos), *TRAIN, "--quiet", "--out", str(run)]) == 0
    return run, photos


def test_train_writes_a_whole_run(trained):
    pytest.importorskip("matplotlib")
    run, _ = trained
    expected = {"config.json", "history.jsonl", "history.png", "model", "report.json", "result.csv"}
    assert {path.name for path in run.iterdir()} == expected | {"confusion_matrix.png", "predictions.png"}
    report = json.loads((run / "report.json").read_text())
    assert report["split"] == "val"
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == "lp-ft"
    assert sorted(config["data"]["ids"]) == ["train", "val"]
    assert len(config["data"]["ids"]["train"]) == 24
    with Image.open(run / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300


def test_results_go_to_standard_output_and_progress_to_standard_error(photos, tmp_path, capsys):
    command = ["train", str(photos), *TRAIN, "--recipe", "linear-probe", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert "95% interval" in printed.out
    assert str(tmp_path / "run") in printed.out
    assert "epoch 2/2" in printed.err
    assert "epoch" not in printed.out


def test_quiet_and_json_serve_scripts(photos, tmp_path, capsys):
    command = ["train", str(photos), *TRAIN, "--recipe", "linear-probe", "--out", str(tmp_path / "run")]
    assert main([*command, "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert result["run"] == str(tmp_path / "run")
    assert 0 <= result["report"]["accuracy"] <= 1


def test_evaluate_uses_the_photos_that_were_kept_for_validation(trained, capsys):
    run, photos = trained
    capsys.readouterr()
    assert main(["evaluate", str(run), str(photos), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    recorded = json.loads((run / "report.json").read_text())
    assert result["n"] == 6
    assert result["split"] == "val"
    assert result["selected"] is True
    assert result["confusion_matrix"] == recorded["confusion_matrix"]


def test_evaluate_takes_all_of_another_folder_and_matches_classes_by_name(trained, tmp_path, capsys):
    run, _ = trained
    other = write_photos(tmp_path / "other", {"wasp": 3, "zebra": 0, "bee": 4}, seed=1)
    (other / "zebra").rmdir()
    capsys.readouterr()
    assert main(["evaluate", str(run), str(other), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 7
    assert result["classes"] == ["ant", "bee", "wasp"]
    assert np.array(result["confusion_matrix"]).sum(axis=1).tolist() == [0, 4, 3]


def test_predict_writes_a_table_and_a_grid(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run, photos = trained
    table, grid = tmp_path / "result.csv", tmp_path / "grid.png"
    command = ["predict", str(run), str(photos / "ant"), str(photos / "bee" / "0.png")]
    assert main([*command, "--out", str(table), "--grid", str(grid), "--top-k", "2"]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2"]
    assert len(rows) == 11
    assert rows[-1]["path"].endswith("bee/0.png")
    predictor = tk.Predictor.load(run)
    for row in rows[:3]:
        expected = predictor(row["path"], top_k=2)
        assert [row["label"], row["label_2"]] == [entry["label"] for entry in expected]
        assert float(row["score"]) == pytest.approx(expected[0]["score"], abs=1e-2)
    with Image.open(grid) as picture:
        assert min(picture.size) > 200


def test_predict_prints_the_table_without_a_file(trained, capsys):
    run, photos = trained
    capsys.readouterr()
    assert main(["predict", str(run), str(photos / "ant" / "0.png")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "path,label,score"


def test_what_the_user_sets_reaches_the_run(photos, tmp_path):
    run = tmp_path / "run"
    options = "--lr 0.002 --head-lr 0.02 --layer-decay 0.5 --optimizer sgd --augmentation light"
    options += " --seed 5 --val 0.4"
    arguments = ["train", str(photos), *TRAIN, *options.split(), "--recipe", "fine-tune", "--quiet"]
    assert main([*arguments, "--workers", "1", "--image-size", "16", "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    (phase,) = config["phases"]
    chosen = {name: phase[name] for name in ("lr", "head_lr", "layer_decay", "optimizer")}
    assert chosen == {"lr": 0.002, "head_lr": 0.02, "layer_decay": 0.5, "optimizer": "sgd"}
    assert config["augmentation"] == "light"
    assert config["seed"] == 5
    assert config["parts"]["val"]["images"] == 12
    assert tk.spec_of(tk.load_model(run)).preprocessing.size == 16


def test_labels_from_file_names(tmp_path, capsys):
    folder = tmp_path / "flat"
    folder.mkdir()
    for index in range(8):
        for number, name in enumerate(("cat", "dog")):
            pixels = np.full((32, 32, 3), 40 + 150 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.{index}.jpg")
    run = tmp_path / "run"
    arguments = ["train", str(folder), *TRAIN, "--label-from", r"^(\w+)\.", "--shots", "3", "--val", "0.25"]
    assert main([*arguments, "--quiet", "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["parts"]["train"]["images"] == 6
    capsys.readouterr()
    assert main(["evaluate", str(run), str(folder), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4


@pytest.mark.parametrize("kind", ["backbones", "datasets", "augmentations", "recipes"])
def test_lists(kind, capsys):
    assert main([kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([kind, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[kind]) == len(lines) > 1


def test_backbones_take_a_pattern(capsys):
    assert main(["backbones", "resnet*"]) == 0
    assert "resnet18" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "no/such/folder"], 3, "no/such/folder"),
        (["train", "{photos}", "--backbone", "resnet81"], 2, "Did you mean 'resnet18' or"),
        (["train", "{photos}", "--recipe", "lpft"], 2, "Did you mean 'lp-ft'?"),
        (["train", "{photos}", "--augmentation", "ligth"], 2, "Did you mean 'light'?"),
        (["train", "{photos}", "--optimizer", "sdg"], 2, "Did you mean 'sgd'?"),
        (["train", "{photos}", "--lr", "-1"], 2, "The 'lr' parameter of Trainer must be a positive float."),
        (["train", "{photos}", "--epochs", "1"], 2, "at least 2, one for each phase"),
        (["train", "{photos}", "--device", "tpu"], 2, "The 'device' parameter must be one of 'auto', 'cpu'"),
        (["train", "{photos}", "--weights", "nowhere.pth"], 4, "nowhere.pth"),
        (["train", "{photos}", "--out", "{photos}"], 2, "is already in use; choose a new one."),
        (["train", "{empty}"], 3, "{empty}"),
        (["train", "{photos}", "--label-from", "("], 2, "label_from"),
        (["evaluate", "{empty}", "{photos}"], 4, "config.json is missing"),
        (["predict", "{empty}", "{photos}"], 4, "There is no model in"),
        (["predict", "{empty}", "nowhere.jpg"], 3, "There is no image or folder at nowhere.jpg."),
        (["predict", "{empty}", "{empty}"], 3, "holds no image"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, code, sentence, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"photos": str(photos), "empty": str(empty)}
    assert main([argument.format(**places) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("transferkit: ")
    assert sentence.format(**places) in last
    assert "Traceback" not in printed.err


def test_a_text_file_named_jpg_is_named(photos, capsys, tmp_path):
    (photos / "ant" / "fake.jpg").write_text("hello")
    assert main(["train", str(photos), *TRAIN, "--out", str(tmp_path / "run")]) == 3
    assert "fake.jpg" in capsys.readouterr().err


def test_usage_errors_come_from_the_parser(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["train", "x", "--epochs", "many"])
    assert caught.value.code == 2


def test_every_command_has_help_and_help_needs_no_torch():
    code = (
        "import sys\nfrom transferkit.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    for command in ([], *([name] for name in COMMANDS)):
        arguments = [sys.executable, "-c", code, *command, "--help"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "usage: transferkit" in done.stdout


def test_a_stray_file_is_named_in_one_line_of_warning(photos, tmp_path):
    (photos / "ant" / "notes.txt").write_text("not an image")
    arguments = [
        "train",
        str(photos),
        *TRAIN,
        "--recipe",
        "linear-probe",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
    ]
    code = "import sys; from transferkit.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("transferkit: warning: ")
    assert "ant/notes.txt" in line
