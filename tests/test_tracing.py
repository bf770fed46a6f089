"""While one thread traces a module, all others use theirs as ever."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.features.split import split_model
from transferkit.inference import FastForward, Form
from transferkit.runtime import Execution

IMAGES = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)
CALL, GETATTR = nn.Module.__call__, nn.Module.__getattr__


class Stage(nn.Module):
    """A frozen and a free layer, with what shows its mode, and a record of what it was given last."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout()
        self.free = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        self.seen = x
        assert self.seen is x
        return self.free(self.dropout(self.norm(self.frozen(x))))


def mixed_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Stage(), nn.Flatten(), nn.Linear(64, 2))
    return tk.freeze(model, except_=["2.free", "2.norm", "4"]).eval()


def folded(model):
    return FastForward(model, Form("fp32", True, False, 2), Execution("cpu", "fp32", channels_last=False))


def packed(model):
    form = Form("fp32", False, False, 2, packed=True)
    return FastForward(model, form, Execution("cpu", "fp32", channels_last=False))(IMAGES)


@pytest.mark.parametrize("trace", [split_model, folded, packed])
@pytest.mark.parametrize("which", ["the same model", "another model"])
def test_other_threads_see_right_outputs_only(trace, which):
    model = mixed_model()
    served = model if which == "the same model" else mixed_model()
    expected = served(IMAGES).detach()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen, started, stop = Counter(), threading.Event(), threading.Event()

    def serve():
        while not stop.is_set():
            try:
                with torch.no_grad():
                    output = served(IMAGES)
                seen["right" if torch.equal(output, expected) else "wrong"] += 1
            except Exception as error:
                seen[f"{type(error).__name__}: {error}"] += 1
            started.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        started.wait()
        for _ in range(50):
            trace(model)
    finally:
        stop.set()
        thread.join()
    assert seen.keys() == {"right"}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_random_draws_of_other_threads_are_none_of_the_models():
    class Waiting(Stage):
        """Goes on when another thread has drawn a random number."""

        def forward(self, x):
            asked.set()
            drawn.wait()
            return super().forward(x)

    asked, drawn = threading.Event(), threading.Event()

    def draw():
        asked.wait()
        torch.rand(3)
        drawn.set()

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Waiting(), nn.Flatten(), nn.Linear(64, 2))
    tk.freeze(model, except_=["1.free", "1.norm", "3"])
    torch.manual_seed(1)
    torch.rand(3)
    expected = torch.rand(3)
    torch.manual_seed(1)
    thread = threading.Thread(target=draw)
    thread.start()
    assert split_model(model).where == "before '1.norm'"
    thread.join()
    assert torch.equal(torch.rand(3), expected)


def test_two_threads_that_trace_leave_nothing_behind():
    cuts = []

    def trace_often():
        model = mixed_model()
        for _ in range(20):
            cuts.append(split_model(model).where)
            folded(model)

    threads = [threading.Thread(target=trace_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__call__ is CALL
    assert nn.Module.__getattr__ is GETATTR
    assert cuts == ["before '2.norm'"] * 40
