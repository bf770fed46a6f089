"""Errors on the command line name what the user typed, not parameters of Python."""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transferkit.cli
from transferkit.cli import main
from transferkit.commands.wording import in_options


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Photos in class folders, in a flat folder, and in a table whose columns a semicolon separates."""
    root = tmp_path_factory.mktemp("places")
    generator = np.random.default_rng(0)
    rows = ["path;label"]
    for name in ("ant", "bee"):
        for index in range(4):
            image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            for path in (root / "photos" / name / f"{index}.png", root / "flat" / f"{name}.{index}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
            rows.append(f"photos/{name}/{index}.png;{name}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def refusal(capsys, code, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("transferkit: ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lr", "-1"], "--lr must be a positive float. Got -1.0 instead."),
        (["--head-lr", "0"], "--head-lr must be a positive float. Got 0.0 instead."),
        (["--epochs", "0"], "--epochs must be an int of at least 1. Got 0 instead."),
        (["--batch-size", "0"], "--batch-size must be an int of at least 1. Got 0 instead."),
        (["--checkpoint-seconds", "0"], "--checkpoint-seconds must be a positive float. Got 0.0 instead."),
        (["--checkpoint-steps", "0"], "--checkpoint-steps must be an int of at least 1. Got 0 instead."),
        (["--subset", "2"], "--subset must be a float above 0 and at most 1. Got 2.0 instead."),
        (["--shots", "0"], "--shots must be an int of at least 1. Got 0 instead."),
        (
            ["--backbone", "resnet18", "--weights", "imagenet"],
            "--weights of 'resnet18' must be one of 'default', 'IMAGENET1K_V1'. Got 'imagenet' instead.",
        ),
        (["--label-from", "a"], "--label-from must be a regular expression with a group"),
    ],
)
def test_train_names_the_option(options, sentence, places, tmp_path, capsys):
    out = ["--out", tmp_path / "run", "--device", "cpu"]
    assert refusal(capsys, 2, "train", places / "photos", *options, *out).startswith(sentence)
    assert not (tmp_path / "run").exists()


def test_what_is_none_in_python_is_left_out_here(places, capsys):
    said = refusal(capsys, 2, "train", places / "labels.csv", "--label-from", "(.)")
    assert said.startswith("--label-from must be left out for a table, where labels are given.")


def test_suggestions_can_be_typed_as_they_stand(places, tmp_path, capsys):
    said = refusal(capsys, 3, "probe", places / "flat", "--device", "cpu")
    assert "; give --label-from, for example --label-from '^(.+?)" in said
    suggested = said.split("--label-from '")[1].split("'")[0]
    out = ["--recipe", "linear-probe", "--device", "cpu", "--quiet", "--out", str(tmp_path / "run")]
    assert main(["train", str(places / "flat"), "--label-from", suggested, *out]) == 0
    said = refusal(capsys, 3, "probe", places / "labels.csv", "--device", "cpu")
    assert said.endswith("; if its columns are separated by ';', give --delimiter ';'.")


def test_what_the_command_has_no_option_for_stays():
    options = argparse.Namespace(command="predict", images=["a.png"], run="run")
    for message in (
        "The 'images' parameter of Predictor must be uint8. Got int64 values instead.",
        "The 'lr' parameter of Trainer must be a positive float. Got -1 instead.",
        "label_from='x' matches no file name in 'photos'; give label_from.",
        "There is no backbone 'resnet81'. Did you mean 'resnet18'?",
    ):
        assert in_options(message, options) == message


def test_each_option_is_written_once():
    calls = [
        node
        for node in ast.walk(ast.parse(Path(transferkit.cli.__file__).read_text()))
        if isinstance(node, ast.Call)
    ]
    names = Counter(
        call.args[0].value
        for call in calls
        if call.args and isinstance(call.args[0], ast.Constant) and str(call.args[0].value).startswith("--")
    )
    # These mean another thing in each command: a run directory or a file; one network or several.
    assert {name for name, count in names.items() if count > 1} == {"--out", "--backbone"}
    assert names["--device"] == names["--label-from"] == 1


@pytest.mark.parametrize(
    "message",
    [
        "There is no folder \"/tmp/lr='3'/x\".",
        "There is no file seed='1'/a.pth; pass the path of a .safetensors or .pth file.",
        "No folder The 'lr' parameter of Trainer must be x.",
        "/my give label_from/x.png cannot be read.",
    ],
)
def test_what_a_message_quotes_stays_as_it_is(message):
    options = argparse.Namespace(command="train", lr=0.1, seed=0, label_from=None)
    assert in_options(message, options) == message


def test_both_ways_out_are_given_as_options():
    options = argparse.Namespace(command="train", weights="default")
    hint = "pass weights=<path of a file>, or weights=None for random ones."
    assert in_options(hint, options) == "pass --weights <path of a file>, or --weights none for random ones."
