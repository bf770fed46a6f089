"""Default learning rates follow from what is known; optimizers are torch's, in their fastest form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.training.optimizers import build_optimizer, norm_kind, with_default_rates

BATCH = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
LAYER = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
PLAIN = nn.Sequential(nn.Linear(3, 2))


def test_kinds():
    assert [norm_kind(model) for model in (BATCH, LAYER, PLAIN)] == ["batch-norm", "layer-norm", "none"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gentler_backbones_get_lower_rates_and_new_heads_higher_ones(optimizer):
    phase = tk.Phase(train="all", optimizer=optimizer)
    rates = [with_default_rates(phase, model, fitted_head=False) for model in (BATCH, LAYER, PLAIN)]
    assert rates[0].lr > rates[1].lr > rates[2].lr
    assert all(each.head_lr > each.lr for each in rates)
    fitted = with_default_rates(phase, BATCH, fitted_head=True)
    assert fitted.head_lr == fitted.lr == rates[0].lr


def test_what_the_user_gives_is_kept():
    given = with_default_rates(tk.Phase(lr=0.3), BATCH, fitted_head=False)
    assert (given.lr, given.head_lr) == (0.3, 0.3)
    given = with_default_rates(tk.Phase(lr=0.3, head_lr=0.7), BATCH, fitted_head=False)
    assert (given.lr, given.head_lr) == (0.3, 0.7)
    given = with_default_rates(tk.Phase(train="head", head_lr=0.7), BATCH, fitted_head=False)
    assert given.lr == 0.7


@pytest.mark.parametrize(
    ("name", "expected"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_are_torchs_with_the_groups_as_given(name, expected):
    groups = tk.parameter_groups(PLAIN, lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(tk.Phase(optimizer=name), groups)
    assert type(optimizer) is expected
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


class Convolutions(nn.Module):
    """A full, a pointwise and a depthwise convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.full = nn.Conv2d(3, 8, 3)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        maps = self.depthwise(F.relu(self.pointwise(F.relu(self.full(images)))))
        return self.head(maps.mean(dim=(2, 3)))


def plain_optimizer(name, groups):
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, foreach=False)


def groups_of(model):
    return tk.parameter_groups(model, lr=0.02, head_lr=0.05, weight_decay=0.1)


def train(model, optimizer, first, last):
    """Take some steps; the images of a step follow from its number."""
    place = next(model.parameters()).device
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(5, 3, 8, 8, generator=generator)
        targets = torch.randint(4, (5,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(place)), targets.to(place)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_optimizers_do_what_the_plain_ones_do(name, memory_format, device):
    model = Convolutions().to(device).to(memory_format=memory_format)
    reference = copy.deepcopy(model)
    optimizer = build_optimizer(tk.Phase(optimizer=name), groups_of(model))
    assert all(group["fused"] for group in optimizer.param_groups)
    train(model, optimizer, 0, 5)
    train(reference, plain_optimizer(name, groups_of(reference)), 0, 5)
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_of_another_memory_order_is_continued_with(name, device):
    def fresh():
        torch.manual_seed(0)
        model = Convolutions().to(device).to(memory_format=torch.channels_last)
        return model, build_optimizer(tk.Phase(optimizer=name), groups_of(model))

    model, optimizer = fresh()
    train(model, optimizer, 0, 6)
    first, its_optimizer = fresh()
    train(first, its_optimizer, 0, 3)
    # A file keeps tensors in the order of their indices.
    saved = its_optimizer.state_dict()
    saved["state"] = {
        number: {key: value.contiguous() for key, value in state.items()}
        for number, state in saved["state"].items()
    }
    second, its_optimizer = fresh()
    second.load_state_dict(first.state_dict())
    its_optimizer.load_state_dict(saved)
    train(second, its_optimizer, 3, 6)
    for mine, other in zip(second.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_parameter_with_gaps_in_memory_is_updated_and_what_lies_between_is_not(name, device):
    whole = torch.randn(4, 6, device=device)
    before = whole.clone()
    parameter, reference = nn.Parameter(whole[:, :3]), nn.Parameter(before[:, :3].clone())
    for each, make in (
        (parameter, build_optimizer),
        (reference, lambda _, groups: plain_optimizer(name, groups)),
    ):
        optimizer = make(tk.Phase(optimizer=name), [{"params": [each], "lr": 0.1}])
        for _ in range(3):
            optimizer.zero_grad()
            each.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(parameter, reference)
    assert torch.equal(whole[:, 3:], before[:, 3:])
