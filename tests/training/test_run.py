"""What a run does when something in it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.errors import DataError, NonFiniteError
from transferkit.training.checkpoint_files import CheckpointFolder


def photos(count: int = 12) -> tk.Part:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    ids = [f"cat/{number}.jpg" for number in range(count)]
    return tk.Part(pixels, np.arange(count) % 2, ["cat", "dog"], ids=ids)


def test_row_13_a_run_that_diverges_names_its_samples_and_keeps_its_checkpoints(tmp_path):
    model = tk.load_backbone("mini", num_classes=2)
    calm, wild = tk.Phase(epochs=1), tk.Phase(epochs=1, optimizer="sgd", lr=1e30, warmup=0)
    trainer = tk.Trainer(
        model,
        recipe=[calm, wild],
        batch_size=4,
        run_dir=tmp_path,
        checkpoints=tk.Checkpoints(seconds=None, steps=1),
        progress=False,
    )
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(photos(), photos())
    message = str(error.value)
    assert "It was met in the phase that trains 'all', epoch 2, step " in message
    named = message.rpartition("samples ")[2].rstrip(".").split(", ")
    assert len(named) == 4
    assert set(named) < set(photos().ids)
    newest = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert newest is not None
    assert all(value.isfinite().all() for value in newest.best.values())
    assert newest.state["phase"] == 1
    # What was best before is still there, and no epoch that is not finite was taken for better.
    assert [row["epoch"] for row in newest.state["history"]] == [1]
    assert not (tmp_path / "model").exists()


def test_at_most_sixteen_samples_are_named(tmp_path):
    wild = tk.Phase(epochs=3, optimizer="sgd", lr=1e30, warmup=0)
    trainer = tk.Trainer(tk.load_backbone("mini", num_classes=2), recipe=wild, batch_size=20, progress=False)
    with pytest.raises(NonFiniteError, match=r"cat/\d+\.jpg and 4 more\.$"):
        trainer.fit(photos(40))


def test_row_8_what_was_left_out_is_listed_in_the_run_directory(tmp_path):
    sources = [np.full((32, 32, 3), 20 * number, dtype=np.uint8) for number in range(12)]
    broken: list = [*sources[:5], b"no image", *sources[6:]]
    part = tk.Part(
        broken, np.arange(12) % 2, ["cat", "dog"], ids=[f"{n}.jpg" for n in range(12)], name="train"
    )
    recipe = tk.Phase(epochs=1)
    with pytest.raises(DataError, match=r"The image '5\.jpg' cannot be decoded"):
        tk.Trainer(tk.load_backbone("mini", num_classes=2), recipe=recipe, progress=False).fit(part)
    trainer = tk.Trainer(
        tk.load_backbone("mini", num_classes=2),
        recipe=recipe,
        run_dir=tmp_path / "run",
        on_error="skip",
        progress=False,
    )
    with pytest.warns(UserWarning, match=r"Left out 1 image \('5\.jpg'\) of the 'train' part"):
        trainer.fit(part)
    lines = (tmp_path / "run" / "skipped.csv").read_text().splitlines()
    assert lines[0] == "path,reason"
    assert len(lines) == 2
    assert lines[1].startswith("5.jpg,")
    # The run is the one without the image.
    torch.manual_seed(0)
    rest = part.take([index for index in range(12) if index != 5])
    losses = []
    for data, on_error in ((rest, "raise"), (part, "skip")):
        torch.manual_seed(0)
        model = tk.load_backbone("mini", num_classes=2)
        trainer = tk.Trainer(model, recipe=recipe, on_error=on_error, progress=False)
        if on_error == "skip":
            with pytest.warns(UserWarning, match="Left out 1 image"):
                losses.append(trainer.fit(data)[0]["train_loss"])
        else:
            losses.append(trainer.fit(data)[0]["train_loss"])
    assert losses[0] == losses[1]
