"""Small models whose forward the tests vary, and what a cut of them must do."""

from __future__ import annotations

import torch
from torch import nn

import transferkit as tk
from transferkit.features.split import split_model, why_not_split
from transferkit.runtime import resolve_execution

IMAGES = torch.linspace(-1, 1, 48).reshape(4, 3, 2, 2)


class Net(nn.Module):
    """Two frozen layers and a head, all of one width; the tests vary what ``forward`` does with them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        for name, module in modules.items():
            self.add_module(name, module)
        self.fc = nn.Linear(12, 12)
        self.run = run

    def forward(self, images):
        return self.run(self, images.flatten(1))


class Stage(nn.Module):
    """One layer that stays frozen and one that trains; ``forward`` is what the tests vary."""

    def __init__(self, run=None):
        super().__init__()
        self.frozen = nn.Linear(12, 12)
        self.free = nn.Linear(12, 12)
        self.register_buffer("count", torch.zeros(()))
        self.run = run or (lambda self, x: self.free(self.frozen(x)))

    def forward(self, x):
        return self.run(self, x)


def staged(stage):
    return Net(lambda self, x: self.fc(self.stage(self.one(x))), stage=stage)


def cut(model, except_="fc"):
    """Freeze, cut and check; also that the suffix in training gives what the model gives."""
    split = split_model(tk.freeze(model, except_=except_))
    execution = resolve_execution(model, device="cpu", precision="fp32", compile=False)
    assert why_not_split(split, IMAGES, execution) is None
    features = split.prefix(IMAGES)
    before = features.clone()
    for training in (True, False):
        torch.manual_seed(1)
        expected = model.train(training)(IMAGES)
        torch.manual_seed(1)
        torch.testing.assert_close(split.suffix.train(training)(features), expected)
    assert torch.equal(features, before)
    return split


def modules_of(part: nn.Module) -> set[nn.Module]:
    return {module for module in part.modules() if module._parameters}
