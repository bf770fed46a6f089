"""What TensorBoard's own reader finds in the files of a run."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import transferkit as tk
from transferkit.errors import MissingExtraError
from transferkit.loading.batches import ImageBatches
from transferkit.loading.pixels import Pixels
from transferkit.runtime import resolve_execution
from transferkit.training.steps import StepResult
from transferkit.training.tensorboard import TensorBoard

STEPS = 3


@pytest.fixture
def reader() -> Callable[[Path], object]:
    reason = "tensorboard is not installed"
    pytest.importorskip("tensorboard", reason=reason)
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def read(folder: Path) -> object:
        return module.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()

    return read


@pytest.fixture
def started(tiny_model, tiny_part) -> tuple[nn.Module, tk.PhaseTools, tk.Part]:
    """A model and what a phase trains with: 24 images in 3 batches, two groups."""
    model, part = tiny_model(), tiny_part(24)
    optimizer = torch.optim.SGD(tk.parameter_groups(model, lr=0.1, head_lr=0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    size = tk.spec_of(model).preprocessing
    train = ImageBatches(Pixels(part, size), part.targets, size, device="cpu", batch_size=8, shuffle=True)
    execution = resolve_execution(model, device="cpu")
    tools = tk.PhaseTools(model, train, None, optimizer, scheduler, nn.functional.cross_entropy, execution)
    return model, tools, part


def row_of(epoch: int) -> dict[str, object]:
    return {
        "epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5, "val_loss": 2 / epoch,
        "val_accuracy": 0.25, "images_per_second": 100.0 * epoch, "lr": 0.1, "seconds": 1.0,
    }  # fmt: skip


def run(
    board: TensorBoard,
    started: tuple[nn.Module, tk.PhaseTools, tk.Part],
    first: int,
    last: int,
    *,
    done: int = 0,
    stop: int | None = None,
) -> None:
    """Tell a callback what the loop tells it; ``done`` batches of the first epoch were done before."""
    model, tools, _ = started
    board.phase_start(0, tk.Phase(), "train all")
    board.phase_ready(model, tools)
    for epoch in range(first, last + 1):
        board.epoch_start(epoch, 24, STEPS)
        if epoch == first and done:
            board.epoch_resumed(done)
        for step in range(done if epoch == first else 0, STEPS):
            if epoch == last and step == stop:
                board.flush()
                return
            loss = torch.tensor(float(10 * epoch + step))
            tools.optimizer.step()
            board.step_end(StepResult(loss, torch.tensor(4), 8))
            tools.scheduler.step()
        board.epoch_end(row_of(epoch))


def scalars(events: object, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_losses_rates_and_speed_stand_at_the_batches_of_the_run(tmp_path, started, reader):
    board = TensorBoard(tmp_path / "board")
    run(board, started, 1, 2)
    board.close()
    events = reader(tmp_path / "board")
    assert scalars(events, "loss/batch") == [(1, 10), (2, 11), (3, 12), (4, 20), (5, 21), (6, 22)]
    assert scalars(events, "lr/backbone") == [(step, 0.1 * 0.5 ** (step - 1)) for step in range(1, 7)]
    assert scalars(events, "lr/head") == [(step, 0.5 * 0.5 ** (step - 1)) for step in range(1, 7)]
    assert scalars(events, "loss/train") == [(3, 1.0), (6, 0.5)]
    assert scalars(events, "loss/val") == [(3, 2.0), (6, 1.0)]
    assert scalars(events, "accuracy/train") == [(3, 0.5), (6, 0.5)]
    assert scalars(events, "accuracy/val") == [(3, 0.25), (6, 0.25)]
    assert scalars(events, "images_per_second") == [(3, 100.0), (6, 200.0)]
    assert scalars(events, "epoch") == [(3, 1), (6, 2)]


def test_training_images_are_shown_once_in_a_phase(tmp_path, started, reader):
    board = TensorBoard(tmp_path)
    run(board, started, 1, 2)
    board.close()
    events = reader(tmp_path)
    (event,) = events.Images("images/training")
    assert event.step == 1
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        shown = np.asarray(picture)
    assert shown.shape == (16, 64, 3)  # two rows of eight
    part, chosen = started[2], np.linspace(0, 23, 16).astype(int)
    for place, index in enumerate(chosen):
        row, column = divmod(place, 8)
        tile = shown[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(tile, np.asarray(part[index][0]))


@pytest.mark.parametrize(("first", "done"), [(2, 0), (2, 2)], ids=["between epochs", "within an epoch"])
def test_a_resumed_run_goes_on_where_the_checkpoint_was(tmp_path, started, reader, monkeypatch, first, done):
    # The first process wrote one batch of epoch 3 after the checkpoint, and was killed.
    run(TensorBoard(tmp_path), started, 1, 3, stop=1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)  # event files are read by the time in their names
    board = TensorBoard(tmp_path)
    run(board, started, first, 4, done=done)
    board.close()
    events = reader(tmp_path)
    steps = [event.step for event in events.Scalars("loss/batch")]
    assert steps == list(range(1, 4 * STEPS + 1))
    assert [event.step for event in events.Scalars("loss/val")] == [3, 6, 9, 12]


def test_a_fitted_head_is_written_where_no_step_was(tmp_path, started, reader):
    board = TensorBoard(tmp_path)
    board.phase_ready(*started[:2])
    board.epoch_end({"epoch": 0, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": None,
                     "val_accuracy": None, "images_per_second": None, "c": 0.1})  # fmt: skip
    board.close()
    events = reader(tmp_path)
    assert scalars(events, "loss/train") == [(0, 0.5)]
    assert sorted(events.Tags()["scalars"]) == ["accuracy/train", "epoch", "loss/train"]


def test_a_report_adds_its_accuracy_and_confusion_matrix(tmp_path, started, reader):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    report = tk.Report.from_logits(torch.eye(2), torch.tensor([0, 0]), ["ant", "bee"], split="test")
    board = TensorBoard(tmp_path)
    run(board, started, 1, 1)
    board.add_report(report)
    board.close()
    # Another process that only adds a report hides nothing of what is there.
    late = TensorBoard(tmp_path)
    late.add_report(report)
    late.close()
    events = reader(tmp_path)
    assert (STEPS, 0.5) in scalars(events, "accuracy/test")
    assert len(events.Scalars("loss/batch")) == STEPS
    event = events.Images("confusion_matrix/test")[0]
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert min(picture.size) > 300


def test_few_losses_are_read_in_a_long_epoch(tmp_path, started, reader):
    board = TensorBoard(tmp_path)
    board.phase_ready(*started[:2])
    board.epoch_start(1, 8000, 1000)
    for _ in range(1000):
        board.step_end(StepResult(torch.tensor(1.0), torch.tensor(4), 8))
    board.close()
    steps = [event.step for event in reader(tmp_path).Scalars("loss/batch")]
    assert steps == list(range(1, 1000, 20))


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        MissingExtraError, match=r"TensorBoard needs tensorboard.*'transferkit\[tensorboard\]'"
    ):
        TensorBoard(tmp_path / "board")
    assert not (tmp_path / "board").exists()
