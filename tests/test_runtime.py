"""Where and how a model runs follows from facts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit import runtime
from transferkit.errors import ArgumentError
from transferkit.runtime import resolve_device, resolve_execution

CONVOLUTIONAL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())


@pytest.mark.parametrize("supported", [True, False])
def test_auto_takes_bfloat16_where_the_hardware_computes_it(monkeypatch, supported):
    monkeypatch.setattr(runtime, "_bf16_support", lambda device: (supported, "the test says so"))
    execution = resolve_execution(CONVOLUTIONAL, device="cpu")
    assert execution.precision == ("bf16" if supported else "fp32")
    assert execution.reason == "the test says so"
    assert resolve_execution(CONVOLUTIONAL, device="cpu", precision="fp32").precision == "fp32"


def test_precision_is_that_of_the_forward_pass(device):
    model, images = CONVOLUTIONAL.to(device), torch.randn(2, 3, 8, 8, device=device)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with resolve_execution(model, device=device, precision=precision).autocast():
            assert model(images).dtype == dtype


def test_convolutions_are_placed_channels_last(device):
    execution = resolve_execution(CONVOLUTIONAL, device=device)
    placed = execution.place(CONVOLUTIONAL)
    assert placed is CONVOLUTIONAL
    assert placed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert placed[0].weight.device.type == device.type
    assert not resolve_execution(nn.Linear(2, 2), device=device).channels_last


@pytest.mark.parametrize("bad", ["tpu", "cuda:99", "cpu:1", "", "meta"])
def test_a_device_that_is_not_there_is_refused(bad):
    with pytest.raises(ArgumentError, match=r"^The 'device' parameter must be one of 'auto', 'cpu'"):
        resolve_device(bad)
