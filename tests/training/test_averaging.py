"""Averages of the weights: the formula, and where in a run they stand."""

from __future__ import annotations

import contextlib
import copy
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.seeding import stream
from transferkit.training import loop
from transferkit.training.averaging import AveragedWeights
from transferkit.training.loop import validate

QUIET = {"progress": False, "precision": "fp32"}


def decays(decay, updates):
    return [min(decay, (1 + number) / (10 + number)) for number in range(1, updates + 1)]


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
def test_averages_follow_the_formula_from_the_first_value_on(device, decay):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(device)
    tk.freeze(model, except_=["1", "2"])
    averages = AveragedWeights(model, decay)
    expected = {name: value.double() for name, value in averages.state.items()}
    assert set(expected) == {
        "1.weight", "1.bias", "2.weight", "2.bias", "1.running_mean", "1.running_var"
    }  # fmt: skip
    for kept in decays(decay, 30):
        with torch.no_grad():
            for name in expected:
                model.state_dict()[name].add_(torch.randn((), device=device))
        averages.update()
        for name, value in expected.items():
            value.mul_(kept).add_(model.state_dict()[name].double(), alpha=1 - kept)
    for name, value in expected.items():
        torch.testing.assert_close(averages.state[name].double(), value, rtol=1e-5, atol=1e-5)


def test_averages_and_weights_change_places_and_come_back_to_the_bit(device):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(device)
    averages = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model[0].weight.add_(0.1)
        model[1].running_var.add_(0.1)
    averages.update()
    weights, kept = copy.deepcopy(model.state_dict()), copy.deepcopy(averages.state)
    pointers = [each.data_ptr() for each in model.parameters()]
    with contextlib.suppress(KeyboardInterrupt), averages.in_place():
        assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
        assert not torch.equal(model[0].weight, weights["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(averages.state[name], value) for name, value in kept.items())
    assert [each.data_ptr() for each in model.parameters()] == pointers


def plain_loop(model, part, *, epochs, decay):
    """Train by hand and return the averages after each epoch, by the name of what they are of."""
    preprocessing = tk.spec_of(model).preprocessing
    images = torch.stack([preprocessing(part[index][0]) for index in range(len(part))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    averages = copy.deepcopy(model.state_dict())
    kept = iter(decays(decay, 100))
    ends = []
    for epoch in range(1, epochs + 1):
        order = torch.from_numpy(stream(3, "order", epoch).permutation(len(part)))
        for chosen in order.split(8):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images[chosen]), torch.from_numpy(part.targets)[chosen]).backward()
            optimizer.step()
            share = next(kept)
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    averages[name].mul_(share).add_(value, alpha=1 - share)
                else:
                    averages[name].copy_(value)
        ends.append(copy.deepcopy(averages))
    return ends


PHASE = tk.Phase(epochs=3, optimizer="sgd", lr=0.05, schedule="constant", warmup=0, weight_decay=0, ema=0.8)


def test_what_is_validated_kept_and_left_is_the_average(tiny_model, tiny_part):
    part, val = tiny_part(24), tiny_part(12, seed=1, name="val")
    ends = plain_loop(tiny_model(), part, epochs=3, decay=0.8)
    seen = []

    class Watch(tk.Callback):
        def epoch_end(self, row):
            seen.append((row, copy.deepcopy(model.state_dict())))

    for validation in (val, None):
        model = tiny_model()
        seen.clear()
        trainer = tk.Trainer(
            model, recipe=PHASE, batch_size=8, seed=3, device="cpu", callbacks=[Watch()], **QUIET
        )
        history = trainer.fit(part, validation)
        for (_, state), expected in zip(seen, ends, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
        last = ends[history.best["epoch"] - 1]
        for name, value in last.items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        if validation is not None:
            loss = tk.evaluate(model, val, device="cpu", precision="fp32").log_loss
            assert loss == pytest.approx(history.best["val_loss"], rel=1e-4)


def test_averaging_changes_nothing_of_the_training_itself(tiny_model, tiny_part):
    def losses(ema):
        phase = tk.Phase(**PHASE.to_dict() | {"ema": ema})
        trainer = tk.Trainer(tiny_model(), recipe=phase, batch_size=8, **QUIET)
        rows = trainer.fit(tiny_part(24), tiny_part(12, seed=1, name="val"))
        return [row["train_loss"] for row in rows], [row["val_loss"] for row in rows]

    plain, averaged = losses(0.0), losses(0.8)
    assert plain[0] == averaged[0]
    assert plain[1] != averaged[1]


def test_the_head_is_averaged_on_stored_features_and_the_next_phase_begins_there(tiny_model, tiny_part):
    model, starts, ends = tiny_model(), [], []

    class Watch(tk.Callback):
        def phase_start(self, number, phase, note):
            starts.append((note, copy.deepcopy(model.state_dict())))

        def epoch_end(self, row):
            ends.append(copy.deepcopy(model.state_dict()))

    phases = [tk.Phase(train="head", epochs=2, ema=0.5), tk.Phase(epochs=1)]
    tk.Trainer(model, recipe=phases, batch_size=8, callbacks=[Watch()], **QUIET).fit(tiny_part(24))
    assert "stored outputs" in starts[0][0]
    assert all(torch.equal(starts[1][1][name], value) for name, value in ends[1].items())


def test_a_signal_while_averages_are_validated_loses_nothing(tiny_model, tiny_part, tmp_path, monkeypatch):
    part, val = tiny_part(24), tiny_part(12, seed=1, name="val")

    def run(name, resume=False):
        model = tiny_model()
        checkpoints = tk.Checkpoints(seconds=None, steps=1000)
        trainer = tk.Trainer(
            model, recipe=PHASE, batch_size=8, run_dir=tmp_path / name, checkpoints=checkpoints, **QUIET
        )
        history = trainer.fit(part, val, resume=resume)
        rows = [(row["train_loss"], row["val_loss"], row["best"]) for row in history]
        return rows, {key: value.clone() for key, value in model.state_dict().items()}

    expected = run("whole")
    calls = []

    def interrupted(tools):
        calls.append(tools)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return validate(tools)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="The run was saved in"):
            run("run")
    rows, state = run("run", resume=True)
    assert len(calls) == 2
    assert rows == expected[0]
    assert all(torch.equal(value, state[name]) for name, value in expected[1].items())
