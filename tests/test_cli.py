"""The command line as a user meets it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    expected |= {"confusion_matrix.png", "predictions.png", "reliability.png", "training_images.png"}
    expected |= {"grad_cam.png"}
    assert {path.name for path in run.iterdir()} - {"mistakes.png"} == expected
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


@pytest.mark.filterwarnings("default")
def test_evaluate_takes_all_of_another_folder_and_matches_classes_by_name(trained, tmp_path, capsys):
    run, _ = trained
    other = write_photos(tmp_path / "other", {"wasp": 3, "zebra": 0, "bee": 4}, seed=1)
    (other / "zebra").rmdir()
    capsys.readouterr()
    assert main(["evaluate", str(run), str(other), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("transferkit: warning: ")
    assert "of 7 images" in printed.err
    assert "file name of a training image" in printed.err
    result = json.loads(printed.out)
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


def test_how_to_run_and_how_to_fit_reach_the_run(photos, tmp_path):
    run = tmp_path / "run"
    options = "--recipe linear-probe --solver lbfgs --views 2 --batch-size auto"
    options += " --compile no --decode exact --precision fp32 --device cpu --quiet"
    assert main(["train", str(photos), *options.split(), "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    execution = config["execution"]
    assert (execution["compile"], execution["decode"], execution["precision"]) == (False, "exact", "fp32")
    assert (config["phases"][0]["solver"], config["phases"][0]["views"]) == ("lbfgs", 2)
    assert config["batch_size"] in (1, 2, 4, 8)
    assert "on stored outputs of what is frozen" in config["decisions"][0]
    assert len((run / "history.jsonl").read_text().splitlines()) == 1


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
        (["train", "{photos}", "--lr", "-1"], 2, "--lr must be a positive float."),
        (
            ["train", "{photos}", "--seed", str(2**64)],
            2,
            "--seed must be an int below",
        ),
        (["train", "phtos"], 2, "There is no folder and no data set 'phtos'"),
        (["train", "{photos}", "--epochs", "1"], 2, "at least 2, one for each phase"),
        (["train", "{photos}", "--device", "tpu"], 2, "--device must be one of 'auto', 'cpu'"),
        (["train", "{photos}", "--weights", "nowhere.pth"], 4, "nowhere.pth"),
        (["train", "{photos}", "--out", "{photos}"], 2, "is already in use; choose a new one."),
        (["train", "{empty}"], 3, "{empty}"),
        (["train", "{photos}", "--label-from", "("], 2, "--label-from must be a regular"),
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


def evaluated(run, data, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), str(data), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    return result["split"], result["n"]


def test_evaluate_knows_a_copy_though_some_images_are_gone(trained, tmp_path, capsys):
    run, photos = trained
    copy = shutil.copytree(photos, tmp_path / "copy")
    ids = json.loads((run / "config.json").read_text())["parts"]
    for name in (*ids["train"]["ids"][:5], ids["val"]["ids"][0]):
        (copy / name).unlink()
    assert evaluated(run, copy, capsys) == ("val", 5)


def test_evaluate_leaves_out_what_a_run_without_validation_was_trained_on(photos, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", str(photos), *TRAIN, "--recipe", "linear-probe", "--val", "0", "--out", str(run)]
    assert main([*arguments, "--quiet"]) == 0
    assert main(["evaluate", str(run), str(photos), "--quiet"]) == 3
    assert "was trained on every image" in capsys.readouterr().err
    for name in ("ant", "wasp"):
        shutil.copy(photos / name / "0.png", photos / name / "new.png")
    assert evaluated(run, photos, capsys) == ("rest", 2)


def test_evaluate_knows_the_train_folder_of_the_data(tmp_path, capsys):
    data = tmp_path / "data"
    for seed, part in enumerate(("train", "val")):
        write_photos(data / part, {"ant": 4, "bee": 4}, seed=seed)
    run = tmp_path / "run"
    arguments = ["train", str(data), *TRAIN, "--recipe", "linear-probe", "--out", str(run)]
    assert main([*arguments, "--quiet"]) == 0
    assert evaluated(run, data / "val", capsys) == ("val", 8)
    assert main(["evaluate", str(run), str(data / "train"), "--quiet"]) == 3
    assert "was trained on every image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "3", "{", '{"data": []}', '{"data": {"ids": {"train": 5}}}', '{"data": {}, "parts": []}'],
)
def test_a_damaged_configuration_is_named(trained, text, tmp_path, capsys):
    _, photos = trained
    (tmp_path / "config.json").write_text(text)
    assert main(["evaluate", str(tmp_path), str(photos)]) == 4
    assert str(tmp_path / "config.json") in capsys.readouterr().err


def test_the_model_folder_of_a_run_is_told_from_the_run(trained, capsys):
    run, photos = trained
    assert main(["evaluate", str(run / "model"), str(photos)]) == 4
    assert f"give the run directory, {run}." in capsys.readouterr().err


COMMAND = [sys.executable, "-c", "import sys; from transferkit.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.mark.parametrize("argument", ["datasets", "--help"])
def test_a_reader_that_has_left_is_no_failure(argument):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, argument], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_sentence():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "datasets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 6
    assert done.stderr.startswith("transferkit: Standard output cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


def test_file_names_need_not_be_utf_8(photos, tmp_path, capsysbinary):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / "ant" / "0.png").rename(photos / "ant" / name)
    except OSError:
        pytest.skip("the file system takes only names in UTF-8")
    run = tmp_path / "run"
    arguments = ["train", str(photos), *TRAIN, "--recipe", "linear-probe", "--out", str(run)]
    assert main([*arguments, "--quiet"]) == 0
    capsysbinary.readouterr()
    assert main(["evaluate", str(run), str(photos), "--json", "--quiet"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["n"] == 6
    table = tmp_path / "table.csv"
    image = str(photos / "ant" / name)
    assert main(["predict", str(run), image, "--quiet", "--out", str(table)]) == 0
    assert b"caf\xe9.png," in table.read_bytes()
    done = subprocess.run([*COMMAND, "predict", str(run), image], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"caf\\udce9.png," in done.stdout


@pytest.fixture
def with_faults(trained, tmp_path):
    """New photos, of which one ant is empty and one wasp is a text."""
    photos = write_photos(tmp_path / "faulty", {"ant": 3, "bee": 3, "wasp": 3}, seed=4)
    (photos / "ant" / "1.png").write_bytes(b"")
    (photos / "wasp" / "2.png").write_text("no image")
    return photos


@pytest.mark.filterwarnings("default")
def test_evaluate_names_what_it_leaves_out(trained, with_faults, tmp_path, capsys):
    run, report = trained[0], tmp_path / "report.json"
    command = ["evaluate", str(run), str(with_faults), "--device", "cpu"]
    capsys.readouterr()
    assert main(command) == 3
    assert "1.png' cannot be decoded: it is empty." in capsys.readouterr().err
    assert main([*command, "--on-error", "skip", "--out", str(report)]) == 0
    printed = capsys.readouterr()
    assert "Left out, because they cannot be decoded: 2 images ('ant/1.png', 'wasp/2.png')." in printed.out
    assert "transferkit: warning: Left out 2 images ('ant/1.png', 'wasp/2.png')" in printed.err
    fields = json.loads(report.read_text())
    assert fields["n"] == 7
    assert [entry["id"] for entry in fields["skipped"]] == ["ant/1.png", "wasp/2.png"]
    assert [entry["path"] for entry in fields["skipped"]] == [
        str(with_faults / "ant" / "1.png"),
        str(with_faults / "wasp" / "2.png"),
    ]


@pytest.mark.filterwarnings("default")
def test_predict_gives_a_row_to_what_it_cannot_decode(trained, with_faults, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run, table, grid = trained[0], tmp_path / "result.csv", tmp_path / "grid.png"
    command = ["predict", str(run), str(with_faults), "--device", "cpu", "--out", str(table)]
    capsys.readouterr()
    assert main(command) == 3
    assert not table.exists()
    capsys.readouterr()
    assert main([*command, "--on-error", "skip", "--grid", str(grid)]) == 0
    printed = capsys.readouterr()
    assert f"7 images labelled in {table}" in printed.out
    assert f"warning: No labels for 2 images ('{with_faults / 'ant' / '1.png'}'," in printed.err
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [Path(row["path"]).parts[-2:] for row in rows if not row["label"]] == [
        ("ant", "1.png"),
        ("wasp", "2.png"),
    ]
    assert grid.is_file()
    assert main([*command[:-2], "--on-error", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [bool(row["predictions"]) for row in found] == [bool(row["label"]) for row in rows]


def test_predict_refuses_a_negative_number_of_workers(trained, capsys):
    run, photos = trained
    assert main(["predict", str(run), str(photos), "--workers", "-1"]) == 2
    assert "--workers must be an int of at least 0" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_options_that_nothing_uses_are_told(photos, tmp_path, capsys):
    command = ["train", str(photos), *TRAIN, "--quiet", "--out", str(tmp_path / "run")]
    unused = ["--mix", "mixup", "--layer-decay", "0.5", "--checkpoint-activations"]
    assert main([*command, "--recipe", "linear-probe", *unused]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "transferkit: warning: --mix and --layer-decay and --checkpoint-activations are not used: "
        "no phase of the recipe 'linear-probe' trains the backbone."
    )


def test_random_weights_that_stay_random_are_told(photos, tmp_path, capsys):
    command = ["train", str(photos), *TRAIN, "--out", str(tmp_path / "run"), "--weights", "none"]
    assert main([*command, "--recipe", "linear-probe"]) == 0
    assert "the weights are random, and no phase trains the backbone\n" in capsys.readouterr().err


def test_a_run_that_is_resumed_before_it_began_says_so(photos, tmp_path, capsys):
    out = tmp_path / "typo"
    assert main(["train", str(photos), *TRAIN, "--out", str(out), "--resume"]) == 0
    assert f"there is no run in {out} yet; it begins\n" in capsys.readouterr().err


def test_a_run_that_is_not_over_is_not_taken_for_none(photos, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["predict", str(tmp_path / "run"), str(photos)]) == 4
    assert capsys.readouterr().err == (
        f"transferkit: The run in '{tmp_path / 'run'}' is not over, so that there is no model yet; "
        "go on with it by the same command and --resume, or fit(resume=True).\n"
    )


@pytest.mark.filterwarnings("default")
def test_an_augmentation_that_nothing_uses_is_told(photos, tmp_path, capsys):
    command = ["train", str(photos), *TRAIN, "--quiet", "--augmentation", "light"]
    assert main([*command, "--recipe", "linear-probe", "--out", str(tmp_path / "probe")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("transferkit: warning: --augmentation light is not used: ")
    assert main([*command, "--recipe", "fine-tune", "--out", str(tmp_path / "tune")]) == 0
    assert capsys.readouterr().err == ""
