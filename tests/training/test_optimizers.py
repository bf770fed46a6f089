"""Default learning rates follow from the optimizer and from what normalizes the backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
