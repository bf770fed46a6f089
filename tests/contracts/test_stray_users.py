"""Mistakes, made as a new user would make them: through the command, in a process of its own.

Each ends in one sentence on standard error that says what to do, without a traceback, and with the exit
code of its kind of mistake.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.errors import ClassMismatchError, DataError

QUICK = {"--backbone": "mini", "--epochs": "2", "--batch-size": "4", "--device": "cpu"}

pytestmark = pytest.mark.slow


def write_photos(folder: Path, counts: dict[str, int], side: int = 16) -> Path:
    generator = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = generator.integers(0, 120, (side, side, 3), dtype=np.uint8)
            image[..., number % 3] += 120
            Image.fromarray(image).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with what new users have lying about."""
    root = tmp_path_factory.mktemp("world")
    write_photos(root / "photos", {"ant": 6, "bee": 6})
    write_photos(root / "one class", {"ant": 6})
    write_photos(root / "empty class", {"ant": 6, "bee": 6, "wasp": 0})
    write_photos(root / "nested" / "data" / "photos", {"ant": 6, "bee": 6})
    write_photos(root / "pixels", {"ant": 6, "bee": 6}, side=1)
    write_photos(root / "two images", {"ant": 1, "bee": 1})
    write_photos(root / "fake", {"ant": 6, "bee": 6})
    (root / "fake" / "ant" / "fake.jpg").write_text("I am a text.")
    (root / "no images" / "ant").mkdir(parents=True)
    (root / "no images" / "notes.txt").write_text("nothing here")
    (root / "a file").write_text("not a folder")
    (root / "run" / "model").mkdir(parents=True)
    return root


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tk.__file__).parents[1])}


def run_alone(world: Path, *arguments: str, code: str = "") -> tuple[int, str, str]:
    """Run the command in the folder, after some code, and return its exit code and what it printed."""
    start = [sys.executable, *(["-c", code] if code else ["-m", "transferkit"])]
    done = subprocess.run(
        [*start, *arguments], cwd=world, env=environment(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


# Each command has a process of its own, forked from one that has imported what takes seconds to import.
FORKING = """
import gc, json, os, sys
import sklearn.metrics, torchvision.models, transferkit.quickstart, transferkit.run_outputs
from transferkit.cli import main
gc.freeze()  # a process that ends would go through all that was imported, and copy it
for line in sys.stdin:
    arguments, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.exit(main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """Runs a command in the folder and returns its exit code and what it printed."""
    printed, count = tmp_path_factory.mktemp("printed"), itertools.count()
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        cwd=world,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def command(*arguments: str) -> tuple[int, str, str]:
            number = next(count)
            files = [printed / f"{number}.{name}" for name in ("out", "err")]
            print(json.dumps([arguments, *map(str, files)]), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            return code, *(file.read_text() for file in files)

        yield command
        server.stdin.close()


def check_sentence(printed: str, expected: str) -> None:
    """Standard error is one sentence, after warnings at most."""
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if not line.startswith("transferkit: warning: ")]
    assert len(lines) == 1, printed
    assert lines[0].startswith("transferkit: ")
    assert expected in lines[0]
    assert lines[0].endswith((".", "?"))


MISTAKES = {
    "wrong folder": (["train", "./photoz"], 3, "There is no folder './photoz'"),
    "misspelt folder": (["train", "photoz"], 2, "There is no folder and no data set 'photoz'"),
    "one class": (
        ["train", "one class"],
        3,
        "has only one class, 'ant', and a classifier needs at least two",
    ),
    "empty class": (["train", "empty class"], 3, "1 class folder ('wasp/') without any image"),
    "no images": (["train", "no images"], 3, "holds no images"),
    "a text named jpg": (["train", "fake"], 3, "fake.jpg' cannot be decoded"),
    "a file": (["train", "a file"], 3, "is a file; load_dataset takes a folder of images."),
    "a folder too high": (["train", "nested"], 3, "is the folder that holds the classes, name that."),
    "below a file": (["train", "photos", "--out", "a file/run"], 6, "a file/run"),
    "no weights": (["train", "photos", "--weights", "nowhere.pth"], 4, "nowhere.pth"),
    "backbone": (["train", "photos", "--backbone", "resnet81"], 2, "Did you mean 'resnet18'"),
    "recipe": (["train", "photos", "--recipe", "fine-tunes"], 2, "Did you mean 'fine-tune'?"),
    "augmentation": (["train", "photos", "--augmentation", "lihgt"], 2, "Did you mean 'light'?"),
    "optimizer": (["train", "photos", "--optimizer", "adamm"], 2, "Did you mean 'adam' or 'adamw'?"),
    "no epochs": (["train", "photos", "--epochs", "0"], 2, "--epochs must be an int of at least 1."),
    "a negative rate": (["train", "photos", "--lr", "-1"], 2, "--lr must be a positive float."),
    "a rate of NaN": (["train", "photos", "--lr", "nan"], 2, "--lr must be a positive float."),
    "a huge rate": (
        ["train", "photos", "--lr", "1e38", "--recipe", "fine-tune"],
        5,
        "lower the learning rate",
    ),
    "a used run": (["train", "photos", "--out", "photos"], 2, "is already in use"),
    "a share of all": (
        ["train", "photos", "--val", "1"],
        2,
        "--val must be a float of at least 0 and below 1.",
    ),
    "no shots": (["train", "photos", "--shots", "0"], 2, "--shots must be an int of at least 1."),
    "a batch of none": (
        ["train", "photos", "--batch-size", "0"],
        2,
        "--batch-size must be an int of at least 1.",
    ),
    "a size of none": (
        ["train", "photos", "--image-size", "0"],
        2,
        "--image-size must be an int of at least 1.",
    ),
    "a precision": (["train", "photos", "--precision", "bf61"], 2, "Did you mean 'bf16'"),
    "no run": (["evaluate", "photos", "photos"], 4, "There is no run in photos"),
    "no model": (["predict", "run", "photos"], 4, "There is no model in 'run'"),
    "no image": (["predict", "run", "nowhere.jpg"], 3, "There is no image or folder at nowhere.jpg."),
}


def command_of(given: list[str], out: Path) -> list[str]:
    """Add what makes a training run short, unless the user has given another value."""
    if given[0] != "train":
        return given
    options = {**QUICK, "--out": str(out)}
    return [*given, "--quiet", *(each for pair in options.items() if pair[0] not in given for each in pair)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence(mistake, run, tmp_path):
    given, code, expected = MISTAKES[mistake]
    done, out, err = run(*command_of(given, tmp_path / "run"))
    check_sentence(err, expected)
    assert done == code
    assert out == ""
    # What is wrong with the command itself is noticed before anything is written.
    assert code != 2 or not (tmp_path / "run").exists()


def test_a_mistake_as_the_first_command_of_a_process(world):
    done, out, err = run_alone(world, "train", "./photoz")
    check_sentence(err, "There is no folder './photoz'")
    assert (done, out) == (3, "")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_that_nobody_can_write_to(run, tmp_path):
    done, _, err = run(*command_of(["train", "photos", "--out", "/proc/run"], tmp_path))
    check_sentence(err, "/proc/run")
    assert done == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(run, tmp_path):
    done, _, err = run(*command_of(["train", "photos", "--device", "cuda"], tmp_path / "run"))
    wanted = "must be one of 'auto', 'cpu', because torch finds no CUDA device here. Got 'cuda' instead."
    check_sentence(err, f"--device {wanted}")
    assert done == 2


@pytest.mark.parametrize("folder", ["pixels", "two images"])
def test_the_smallest_data_sets_train(folder, run, tmp_path):
    done, out, err = run(*command_of(["train", folder], tmp_path / "run"))
    assert done == 0, err
    assert all(line.startswith("transferkit: warning: ") for line in err.splitlines())
    assert str(tmp_path / "run") in out
    assert (tmp_path / "run" / "model" / "weights.safetensors").is_file()


# The process signals itself when it gets there, as a user's Ctrl-C would at that moment.
INTERRUPTED = """
import os, signal, sys
import {module} as module
original, calls = module.{function}, []
def interrupting(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **options)
module.{function} = interrupting
from transferkit.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "function"),
    [("transferkit.loading.pixels", "read_pixels"), ("transferkit.training.loop", "train_step")],
    ids=["while loading", "while training"],
)
def test_control_c(module, function, world, tmp_path):
    code = INTERRUPTED.format(module=module, function=function)
    given = ["train", "photos", "--recipe", "fine-tune", "--epochs", "3"]
    done, out, err = run_alone(world, *command_of(given, tmp_path / "run"), code=code)
    check_sentence(err, "interrupted")
    assert done == 128 + signal.SIGINT
    assert out == ""


PIXELS = np.zeros((6, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (
            [1, 1, 2, 2, 3, 3],
            "Class 0 has no training images, though targets reach 3; number the classes from 0",
        ),
        ([0, 0, 1, 1, 2, -1], "Every target must be at least 0 and below 3"),
        ([0, 0, 1, 1, 3, 3], "Class 2 has no training images, though targets reach 3"),
        ([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], "Targets must be integers, one class index for each image."),
        ([0, 0, 1, 1, 2], "A part needs as many targets and ids as images"),
    ],
)
def test_labels_that_are_off_by_one_are_told(targets, sentence):
    with pytest.raises(DataError) as caught:
        tk.load_dataset((PIXELS, targets))
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(".")


def test_labels_beyond_the_given_classes_are_told():
    with pytest.raises(
        DataError, match=r"^Every target must be at least 0 and below 2, .* Got 2 for 4, and 2 such"
    ):
        tk.load_dataset((PIXELS, [0, 0, 1, 1, 2, 2]), classes=["ant", "bee"])
    with pytest.raises(ClassMismatchError, match="wasp"):
        tk.load_dataset((PIXELS, ["ant", "bee", "ant", "bee", "ant", "wasp"]), classes=["ant", "bee"])
