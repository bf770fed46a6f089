"""The check of a cut compares what the model does, whatever hides it from the tracing or the precision."""

from __future__ import annotations

import pytest
import torch
from small_nets import IMAGES, Net
from torch import nn

import transferkit as tk
from transferkit.features.split import split_model, why_not_split
from transferkit.runtime import resolve_execution


def reason_of(split, images, precision):
    execution = resolve_execution(split.model, device=images.device, precision=precision, compile=False)
    return why_not_split(split, images, execution)


class Shifting(nn.Module):
    """Adds to the logits behind the head, in the shadow of a large constant."""

    def __init__(self, shift):
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.fc = nn.Linear(8, 3)
        nn.init.constant_(self.fc.bias, 100.0)
        self.register_buffer("shift", torch.tensor([0.0, shift, -shift]))

    def forward(self, images):
        x = images.flatten(1)
        return self.fc(self.body(x if x.sum().item() < 1e30 else -x)) + self.shift


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shift", [1.9, 0.01, 0.0])
def test_what_follows_the_head_does_not_hide_behind_a_constant(shift, precision, device):
    model = tk.freeze(Shifting(shift).to(device), except_="fc")
    reason = reason_of(split_model(model), IMAGES.to(device), precision)
    assert reason == ("the model does more after the cut than what trains" if shift else None)
    images = IMAGES.to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    assert reason_of(split_model(model), images, precision) == reason


class Leaning(nn.Module):
    """What an image becomes depends a little on the others."""

    def forward(self, x):
        return x - 0.02 * x.mean(dim=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_dependence_on_the_batch_is_seen(precision, device):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), Leaning(), nn.Linear(8, 3)).to(device)
    reason = reason_of(split_model(tk.freeze(model, except_="3")), IMAGES.to(device), precision)
    assert reason == "an image's features depend on the batch that it is in"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_forward_decides_by_autocast_is_seen(precision, device):
    def asking(model, x):
        x = model.one(x)
        return model.fc(x * 2 if torch.is_autocast_enabled(device.type) else x)

    model = tk.freeze(Net(asking).to(device), except_="fc")
    reason = reason_of(split_model(model), IMAGES.to(device), precision)
    assert reason == (None if precision == "fp32" else "the model does more after the cut than what trains")


def test_weights_of_low_precision_run_whole(device):
    model = tk.freeze(Net(lambda self, x: self.fc(self.one(x))).to(device, torch.bfloat16), except_="fc")
    assert reason_of(split_model(model), IMAGES.to(device), "bf16") == "its weights are not float32"
