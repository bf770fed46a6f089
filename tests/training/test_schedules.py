"""Schedules against torch's own, and against the formula where torch has none."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.errors import DataError
from transferkit.training.schedules import after_validation, build_scheduler, lr_factor


def rates(phase, steps_per_epoch):
    """The learning rate that each optimizer step of a phase sees."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    scheduler = build_scheduler(optimizer, phase, steps_per_epoch)
    seen = []
    for _ in range(phase.epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def torch_rates(make, steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_is_torchs():
    phase = tk.Phase(epochs=5, schedule="cosine", warmup=0)
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), 20)
    assert rates(phase, 4) == pytest.approx(expected, rel=1e-6)


def test_step_is_torchs_in_epochs():
    phase = tk.Phase(epochs=9, schedule="step", step_size=4, gamma=0.3, warmup=0)
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.3), 9)
    assert rates(phase, 3) == pytest.approx([rate for rate in expected for _ in range(3)])


def test_constant_stays():
    assert set(rates(tk.Phase(epochs=3, schedule="constant", warmup=0), 2)) == {0.5}


def test_one_cycle_peaks_once_between_the_ends_of_torchs():
    phase = tk.Phase(epochs=10, schedule="one-cycle")
    seen = rates(phase, 10)
    peak = seen.index(max(seen))
    assert max(seen) == pytest.approx(0.5, rel=1e-2)
    assert seen[0] >= 0.5 / 25
    assert seen[0] < 0.5 / 20
    assert seen[-1] < 0.5 / 500
    assert 29 <= peak <= 31
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)


@pytest.mark.parametrize("cycles", [1, 2, 5])
def test_cyclic_is_torchs_triangular(cycles):
    phase = tk.Phase(epochs=5, schedule="cyclic", cycles=cycles)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CyclicLR(
            o, 0.125, 0.5, step_size_up=20 // cycles, cycle_momentum=False
        ),
        40,
    )
    assert rates(phase, 8) == pytest.approx(expected)


def test_cyclic_has_three_cycles_unless_told_otherwise():
    assert rates(tk.Phase(epochs=3, schedule="cyclic"), 4) == pytest.approx([0.125, 0.3125, 0.5, 0.3125] * 3)


@pytest.mark.parametrize("cycles", [2, 4])
def test_cosine_with_cycles_is_torchs_with_warm_restarts(cycles):
    phase = tk.Phase(epochs=4, schedule="cosine", cycles=cycles, warmup=0)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 28 // cycles), 28
    )
    assert rates(phase, 7) == pytest.approx(expected, rel=1e-6)


LOSSES = (0.9, 0.8, 0.8, 0.85, 0.7, 0.75, 0.71, 0.7, 0.7, 0.6, 0.65, 0.61, 0.62)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_is_torchs(patience):
    phase = tk.Phase(epochs=20, schedule="plateau", step_size=patience, gamma=0.3, warmup=0)
    ours = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr": rate} for rate in (0.5, 0.05)])
    theirs = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr": rate} for rate in (0.5, 0.05)])
    scheduler = build_scheduler(ours, phase, 3)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, factor=0.3, patience=patience - 1, threshold=0, eps=0
    )
    for loss in LOSSES:
        expected = [group["lr"] for group in theirs.param_groups]
        for _ in range(3):
            assert [group["lr"] for group in ours.param_groups] == pytest.approx(expected)
            ours.step()
            scheduler.step()
        after_validation(scheduler, loss)
        reference.step(loss)
    assert theirs.param_groups[0]["lr"] < 0.5


def test_plateau_rises_first_and_its_state_is_json():
    phase = tk.Phase(epochs=4, schedule="plateau", step_size=1, gamma=0.5, warmup=0.5)
    schedulers = []
    for _ in range(2):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        schedulers.append((optimizer, build_scheduler(optimizer, phase, 2)))
    optimizer, scheduler = schedulers[0]
    seen = []
    for loss in (1.0, 1.0, 2.0):
        for _ in range(2):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        after_validation(scheduler, loss)
    assert seen == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1 / 2, 1 / 2])
    _, other = schedulers[1]
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict(), allow_nan=False)))
    after_validation(other, 2.0)
    after_validation(scheduler, 2.0)
    assert other.get_last_lr() is not None
    assert other.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 1 / 8


def test_other_schedules_do_not_look_at_the_loss():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    scheduler = build_scheduler(optimizer, tk.Phase(epochs=4, schedule="constant", warmup=0), 2)
    for _ in range(5):
        after_validation(scheduler, 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_plateau_without_validation_data_is_refused_before_any_work(tiny_model, tiny_part):
    phases = [tk.Phase(train="head"), tk.Phase(schedule="plateau")]
    trainer = tk.Trainer(tiny_model(), recipe=phases, progress=False)
    with pytest.raises(DataError) as error:
        trainer.fit(tiny_part())
    assert str(error.value) == (
        "The schedule 'plateau' follows the validation loss, so it needs a validation part."
    )
    assert len(trainer.history) == 0


def test_a_run_on_a_plateau_slows_down(tiny_model, tiny_part):
    phase = tk.Phase(train="head", epochs=5, schedule="plateau", lr=1e-12, step_size=1, gamma=0.5)
    history = tk.Trainer(tiny_model(), recipe=phase, progress=False, precision="fp32").fit(
        tiny_part(), tiny_part(8, seed=1, name="val")
    )
    waits = [before["val_loss"] <= row["val_loss"] for before, row in pairwise(history)]
    falls = [row["lr"] / before["lr"] for before, row in pairwise(history[1:])]
    assert falls == [0.5 if waited else 1.0 for waited in waits[:-1]]
    assert 0.5 in falls


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau", "cyclic"])
def test_warm_up_rises_linearly_and_never_starts_at_zero(schedule):
    factor = lr_factor(tk.Phase(epochs=10, schedule=schedule, warmup=0.2), 10)
    first = [factor(step) for step in range(20)]
    assert first == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert factor(20) == pytest.approx(0.25 if schedule == "cyclic" else 1.0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle", "cyclic", "plateau"])
@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_factors_of_tiny_phases_are_positive_and_at_most_one(schedule, epochs, steps):
    factor = lr_factor(tk.Phase(epochs=epochs, schedule=schedule), steps)
    values = [factor(step) for step in range(epochs * steps)]
    assert all(math.isfinite(value) and 0 < value <= 1 for value in values)
