"""Where and how a model runs follows from facts."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit import runtime
from transferkit.errors import ArgumentError
from transferkit.runtime import Execution, resolve_device, resolve_execution

CONVOLUTIONAL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())


@pytest.mark.parametrize(("unit", "precision", "reason"), [
    ("AMX", "bf16", "AMX"), (None, "fp32", "this CPU has no bfloat16 arithmetic"),
])  # fmt: skip
def test_auto_takes_bfloat16_where_the_hardware_computes_it(monkeypatch, unit, precision, reason):
    monkeypatch.setattr(runtime, "bf16_unit", lambda device: unit)
    execution = resolve_execution(CONVOLUTIONAL, device="cpu", compile=False)
    assert (execution.precision, execution.reason) == (precision, reason)
    assert resolve_execution(CONVOLUTIONAL, device="cpu", precision="fp32").precision == "fp32"


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_older_gpus_compute_in_float16_or_float32(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime._automatic_precision(torch.device("cuda"))[0] == precision


def test_without_a_compiler_nothing_is_compiled_and_that_is_said(monkeypatch):
    monkeypatch.setattr(runtime, "why_not_compile", lambda device: "there is no C compiler")
    monkeypatch.setattr(runtime, "resolve_device", lambda device: torch.device("cuda", 0))
    execution = resolve_execution(CONVOLUTIONAL, precision="fp32")
    assert execution.compile is False
    assert str(execution).startswith("cuda:0, fp32 (as asked; there is no C compiler), ")
    assert "what is frozen: batch norm folded, not compiled" in str(execution)
    with pytest.raises(
        ArgumentError, match=r"must be False, because there is no C compiler\. Got True instead"
    ):
        resolve_execution(CONVOLUTIONAL, precision="fp32", compile=True)


def test_on_a_cpu_nothing_is_compiled_unless_it_is_asked_for():
    execution = resolve_execution(CONVOLUTIONAL, device="cpu", precision="fp32")
    assert execution.compile is False
    assert str(execution).endswith(
        "what is frozen: batch norm folded, convolutions packed, not compiled; fast decoding"
    )


def test_a_compiler_is_looked_for_by_its_name(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert runtime.why_not_compile(torch.device("cpu")) == "there is no C++ compiler"


def test_on_cuda_triton_needs_a_c_compiler(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert runtime.why_not_compile(cuda) == "triton is not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert runtime.why_not_compile(cuda) == "there is no C compiler"
    monkeypatch.setenv("CC", "sh -c")  # anything that is there
    assert runtime.why_not_compile(cuda) is None


def test_threads_are_those_of_the_record_and_given_back():
    before = torch.get_num_threads()
    execution = dataclasses.replace(resolve_execution(CONVOLUTIONAL, device="cpu"), threads=before + 1)
    with execution.arithmetic():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_fp32_on_cuda_shortens_no_factors_and_gives_the_switches_back(monkeypatch):
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]

    def state():
        return [switch.fp32_precision for switch in switches]

    before = state()
    for switch in switches:
        switch.fp32_precision = "tf32"
    try:
        with Execution("cuda:0", "fp32", True).arithmetic():
            assert state() == ["ieee", "ieee"]
        assert state() == ["tf32", "tf32"]
        with Execution("cuda:0", "bf16", True).arithmetic():
            assert state() == ["tf32", "tf32"]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
    assert state() == before


@pytest.mark.parametrize(("field", "value", "wanted"), [
    ("precision", "int8", "one of 'fp32', 'bf16', 'fp16'"),
    ("decode", "slow", "one of 'fast', 'exact'"),
    ("threads", 0, "an int of at least 1"),
    ("compile", "yes", "True, False or 'auto'"),
    ("fold", 1, "True or False"),
])  # fmt: skip
def test_a_record_with_a_wrong_field_is_refused(field, value, wanted):
    execution = resolve_execution(CONVOLUTIONAL, device="cpu")
    sentence = re.escape(f"The {field!r} parameter of Execution must be {wanted}. Got {value!r} instead.")
    with pytest.raises(ArgumentError, match=f"^{sentence}$"):
        dataclasses.replace(execution, **{field: value})


def test_a_record_given_whole_leaves_nothing_else_to_say(tiny_model):
    execution = dataclasses.replace(resolve_execution(tiny_model(), device="cpu"), decode="exact", fold=False)
    assert tk.Trainer(tiny_model(), execution=execution).execution is execution
    with pytest.raises(
        ArgumentError, match=r"^The 'compile' parameter of Trainer must be left out beside 'execution'"
    ):
        tk.Trainer(tiny_model(), execution=execution, compile=False)
    with pytest.raises(ArgumentError, match=r"^The 'execution' parameter of evaluate must be a record of"):
        tk.evaluate(tiny_model(), None, execution="fp32")


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


def test_without_a_cuda_device_the_error_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ArgumentError) as caught:
            resolve_device(name)
        assert str(caught.value) == (
            "The 'device' parameter must be one of 'auto', 'cpu', because torch finds no CUDA device here. "
            f"Got {name!r} instead."
        )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArgumentError, match=r"one of 'auto', 'cpu', 'cuda:0', 'cuda:1'\. Got 'cuda:2'"):
        resolve_device("cuda:2")
