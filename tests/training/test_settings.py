"""What a resumed run is told where it is asked for something else than it began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.errors import ResumeMismatchError
from transferkit.runtime import resolve_execution
from transferkit.training.data import TrainingData
from transferkit.training.settings import check_same, settings_of

HEAD, ALL = tk.Phase(train="head", lr=0.1), tk.Phase(train="all", epochs=3)


def pixels(count=6, seed=0, classes=("ant", "bee")):
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return tk.Part(images, np.arange(count) % len(classes), classes, name="train")


def settings(*, train=None, val=None, phases=(HEAD, ALL), head=None, size=None, **given):
    model = tk.load_backbone("mini", weights=None, image_size=size)
    tk.replace_head(model, 2, **(head or {}))
    execution = resolve_execution(model, device="cpu", precision="fp32")
    spec = tk.spec_of(model)
    data = TrainingData(train or pixels(), val, spec.preprocessing, execution=execution)
    named = {"augmentation": None, "batch_size": 64, "epochs": None, "seed": 0}
    named["adapt_batch_norm"] = "auto"
    return settings_of(model, phases, data, execution, **(named | given))


def told(before, now):
    """What is said to differ."""
    with pytest.raises(ResumeMismatchError) as error:
        check_same({"settings": before}, now, Path("run"))
    text = str(error.value)
    assert "fingerprint" not in text
    assert "None" not in text
    begin = "The run in run can only be resumed with the settings it began with: "
    end = ". Give it those, or choose a new run directory."
    assert text.startswith(begin)
    assert text.endswith(end)
    return text[len(begin) : -len(end)]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"seed": 1}, "seed was 0 and is 1 now"),
        # Another seed draws other images, which says nothing new.
        ({}, {"seed": 1, "train": pixels(seed=1)}, "seed was 0 and is 1 now"),
        ({"epochs": 10}, {}, "epochs was 10 and is not given now"),
        (
            {},
            {"phases": [replace(HEAD, lr=None), ALL]},
            "lr of phase 1 was 0.1 and is not given now",
        ),
        (
            {},
            {"phases": [HEAD, replace(ALL, lr=0.5, mix="mixup")]},
            "lr of phase 2 was not given and is 0.5 now; mix of phase 2 was not given and is 'mixup' now",
        ),
        # What a phase of one run alone is set to says nothing more.
        ({}, {"phases": [HEAD]}, "number of phases was 2 and is 1 now"),
        ({"phases": [ALL]}, {"phases": [ALL, ALL, HEAD]}, "number of phases was 1 and is 3 now"),
        (
            {},
            {"head": {"head": "mlp", "dropout": 0.2}},
            "kind of the head was 'linear' and is 'mlp' now; dropout of the head was 0.0 and is 0.2 now",
        ),
        (
            {},
            {"size": 64},
            "size of the preprocessing was 32 and is 64 now; "
            "resize of the preprocessing was 32 and is 64 now",
        ),
        (
            {},
            {"train": pixels(8)},
            "the training images are others than when it began: 6 images then and 8 images now",
        ),
        (
            {},
            {"train": pixels(seed=1)},
            "the training images are others than when it began: 6 images, with other names, labels or pixels",
        ),
        (
            {},
            {"train": pixels(classes=("ant", "cat"))},
            "the classes of the training data were ['ant', 'bee'] and are ['ant', 'cat'] now; the training "
            "images are others than when it began: 6 images, with other names, labels or pixels",
        ),
        ({"val": pixels(4)}, {}, "the validation data was 4 images and is none now"),
        ({}, {"val": pixels(4)}, "the validation data was none and is 4 images now"),
    ],
)
def test_a_difference_is_told_in_words_that_a_user_knows(before, now, said):
    assert told(settings(**before), settings(**now)) == said


def test_files_that_changed_are_told_by_their_size(tmp_path):
    def of_files():
        return settings(train=tk.Part(sorted(tmp_path.glob("*.png")), [0, 1], ["ant", "bee"], ids=["0", "1"]))

    for index in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    before, size = of_files(), sum(path.stat().st_size for path in tmp_path.iterdir())
    check_same({"settings": before}, of_files(), tmp_path)
    with (tmp_path / "0.png").open("ab") as file:
        file.write(b"more")
    said = f"size of the training data in bytes was {size} and is {size + 4} now"
    assert told(before, of_files()) == said


def test_nothing_that_differs_goes_unsaid():
    """Whatever one setting is changed to, the run is refused."""
    now = settings(val=pixels(4))
    for name, value in now.items():
        for other in ("another", None, ["another"], {"another": 1}):
            if other != value:
                assert told({**now, name: other}, now)
        if value is not None:
            assert told({each: now[each] for each in now if each != name}, now)
