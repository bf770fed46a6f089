"""The steps against plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.errors import NonFiniteError


@pytest.fixture
def model(device):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)


def batch_of(device, count=6):
    return torch.randn(count, 3, 2, 2, device=device), torch.arange(count, device=device) % 3


def test_a_step_is_what_a_plain_loop_does(model, device):
    reference = copy.deepcopy(model)
    inputs, targets = batch_of(device)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        result = tk.train_step(model, (inputs, targets), ours)
        theirs.zero_grad()
        logits = reference(inputs)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        theirs.step()
        torch.testing.assert_close(result.loss, loss.detach())
        assert int(result.correct) == int((logits.argmax(1) == targets).sum())
        assert result.count == 6
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_clipping_is_torchs(model, device):
    reference = copy.deepcopy(model)
    inputs, targets = batch_of(device)
    tk.train_step(model, (inputs, targets), torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=0.01)
    optimizer = torch.optim.SGD(reference.parameters(), lr=1.0)
    F.cross_entropy(reference(inputs), targets).backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    optimizer.step()
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_loss_that_is_not_finite_updates_nothing(model):
    before = copy.deepcopy(model.state_dict())
    inputs, targets = batch_of(next(model.parameters()).device)
    inputs = torch.full_like(inputs, torch.nan)
    if inputs.device.type != "cpu":
        pytest.skip("on an accelerator the loss is read at the end of the epoch")
    message = r"^The loss is nan; lower the learning rate or look at the inputs\.$"
    with pytest.raises(NonFiniteError, match=message):
        tk.train_step(model, (inputs, targets), torch.optim.SGD(model.parameters(), lr=0.1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_eval_step_gives_float32_logits_without_gradients(model, device):
    logits = tk.eval_step(model.to(torch.float64), (torch.randn(2, 3, 2, 2, device=device).double(),))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3)
    assert not logits.requires_grad
