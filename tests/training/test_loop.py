"""An epoch: its random numbers, what it reads, and what it says when something is not finite."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.errors import NonFiniteError
from transferkit.loading.batches import TensorBatches
from transferkit.runtime import Execution
from transferkit.training import loop
from transferkit.training.loop import PhaseTools, run_epoch, steps_of
from transferkit.training.optimizers import build_optimizer
from transferkit.training.schedules import build_scheduler

PHASE = tk.Phase(train="head", epochs=10, optimizer="sgd", lr=0.1, schedule="constant")


class Masks(nn.Module):
    """A linear model that keeps the dropout mask of each step."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.seen = []

    def forward(self, inputs):
        mask = nn.functional.dropout(torch.ones_like(inputs), training=self.training)
        self.seen.append(mask)
        return self.fc(inputs * mask)


def tools_for(model, device, *, phase=PHASE, inputs=None, scaler=None):
    model.to(device)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) if inputs is None else inputs
    source = TensorBatches(inputs, np.arange(len(inputs)) % 2, device=device, batch_size=4)
    optimizer = build_optimizer(phase, [{"params": list(model.parameters()), "lr": 0.1}])
    return PhaseTools(
        module=model,
        train=source,
        val=None,
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, phase, steps_of(source, phase)),
        criterion=nn.CrossEntropyLoss(),
        execution=Execution(str(device), "fp32", channels_last=False),
        scaler=scaler,
    )


def masks(device, *, seed, epochs):
    model = Masks()
    tools = tools_for(model, device)
    for epoch in epochs:
        model.seen.clear()
        run_epoch(PHASE, tools, epoch=epoch, seed=seed)
    return model.seen


def test_dropout_follows_from_seed_epoch_and_step_alone(device):
    expected = masks(device, seed=3, epochs=[2])
    torch.manual_seed(99)
    again = masks(device, seed=3, epochs=[1, 2])
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    others = [*masks(device, seed=3, epochs=[1]), *masks(device, seed=4, epochs=[2])]
    different = [mask.cpu().numpy().tobytes() for mask in (*expected, *others)]
    assert len(set(different)) == len(different)


def test_the_callers_random_state_is_left_alone(device):
    tools = tools_for(Masks(), device)
    torch.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.manual_seed(5)
    run_epoch(PHASE, tools, epoch=1, seed=0)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_losses_and_hits_are_those_of_the_batches(device):
    model, seen = nn.Linear(4, 2), []

    class Watch(tk.Callback):
        def step_end(self, result):
            seen.append((float(result.loss) * result.count, int(result.correct), result.count))

    inputs = torch.randn(18, 4)
    row = run_epoch(PHASE, tools_for(model, device, inputs=inputs), epoch=1, seed=0, callbacks=[Watch()])
    assert [count for _, _, count in seen] == [4, 4, 4, 4, 2]
    assert row["train_loss"] == pytest.approx(sum(loss for loss, _, _ in seen) / 18, rel=1e-5)
    assert row["train_accuracy"] == sum(correct for _, correct, _ in seen) / 18


@pytest.fixture
def reading_waits(monkeypatch):
    """Treat every device as one that is waited for when a number is read."""
    monkeypatch.setattr(loop, "_reading_waits", lambda device: True)


def test_the_first_value_that_is_not_finite_ends_the_epoch_on_the_cpu():
    inputs = torch.randn(20, 4)
    inputs[9] = torch.nan
    model, finite = nn.Linear(4, 2), nn.Linear(4, 2)
    finite.load_state_dict(model.state_dict())
    with pytest.raises(NonFiniteError) as caught:
        run_epoch(PHASE, tools_for(model, "cpu", inputs=inputs), epoch=7, seed=0)
    assert str(caught.value) == (
        "The loss is nan; lower the learning rate or look at the inputs. It was met in the phase "
        "that trains 'head', epoch 7, step 3, samples 8, 9, 10, 11."
    )
    run_epoch(PHASE, tools_for(finite, "cpu", inputs=inputs[:8]), epoch=7, seed=0)
    assert torch.equal(model.weight, finite.weight)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_where_reading_waits_nothing_is_updated_from_the_first_failure_on(device, reading_waits, accumulate):
    phase = tk.Phase(**PHASE.to_dict() | {"accumulate": accumulate})
    inputs = torch.randn(20, 4)
    inputs[9] = torch.nan
    model, finite = nn.Linear(4, 2), nn.Linear(4, 2)
    finite.load_state_dict(model.state_dict())
    place = {1: "step 3, samples 8, 9, 10, 11.", 2: "step 2, samples 8, 9, 10, 11, 12, 13, 14, 15."}
    with pytest.raises(NonFiniteError) as caught:
        run_epoch(phase, tools_for(model, device, phase=phase, inputs=inputs), epoch=7, seed=0)
    assert str(caught.value) == (
        "The loss or a gradient is not finite; lower the learning rate or look at the inputs. It was "
        f"met in the phase that trains 'head', epoch 7, {place[accumulate]}"
    )
    run_epoch(phase, tools_for(finite, device, phase=phase, inputs=inputs[:8]), epoch=7, seed=0)
    assert torch.equal(model.weight, finite.weight)


def test_where_reading_waits_the_weights_are_the_same(device, reading_waits, monkeypatch):
    waited, read = nn.Linear(4, 2), nn.Linear(4, 2)
    read.load_state_dict(copy.deepcopy(waited.state_dict()))
    first = run_epoch(PHASE, tools_for(waited, device), epoch=1, seed=0)
    monkeypatch.setattr(loop, "_reading_waits", lambda device: False)
    second = run_epoch(PHASE, tools_for(read, device), epoch=1, seed=0)
    assert torch.equal(waited.weight, read.weight)
    assert first["train_loss"] == second["train_loss"]


def test_where_reading_waits_numbers_are_read_as_often_in_a_long_epoch_as_in_a_short_one(
    device, reading_waits, monkeypatch
):
    reads = []
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        method = getattr(torch.Tensor, name)

        def counted(self, *arguments, _method=method, **options):
            reads.append(_method)
            return _method(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for samples in (8, 80):
        reads.clear()
        run_epoch(PHASE, tools_for(nn.Linear(4, 2), device, inputs=torch.randn(samples, 4)), epoch=1, seed=0)
        counts.append(len(reads))
    assert 0 < counts[0] == counts[1]


def test_gradients_that_always_overflow_are_an_error(device):
    scaler = torch.amp.GradScaler(device.type, init_scale=1e-4)
    model = nn.Linear(4, 2)
    tools = tools_for(model, device, scaler=scaler)
    model.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    before = model.weight.clone()
    message = r"^The gradients overflow float16 in epoch 1, however small the loss is scaled; lower"
    with pytest.raises(NonFiniteError, match=message):
        run_epoch(PHASE, tools, epoch=1, seed=0)
    assert torch.equal(model.weight, before)
