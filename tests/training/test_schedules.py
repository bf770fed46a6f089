"""Schedules against torch's own, and against the formula where torch has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.training.schedules import build_scheduler, lr_factor


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


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_linearly_and_never_starts_at_zero(schedule):
    factor = lr_factor(tk.Phase(epochs=10, schedule=schedule, warmup=0.2), 10)
    first = [factor(step) for step in range(20)]
    assert first == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert factor(20) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle"])
@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_factors_of_tiny_phases_are_positive_and_at_most_one(schedule, epochs, steps):
    factor = lr_factor(tk.Phase(epochs=epochs, schedule=schedule), steps)
    values = [factor(step) for step in range(epochs * steps)]
    assert all(math.isfinite(value) and 0 < value <= 1 for value in values)
