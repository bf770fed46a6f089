"""A builder may make about as many parameters as a file has, and others may make what they like."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from transferkit.backbones.parameter_limit import limit_parameters


def layers(count):
    return [nn.Linear(1, 1) for _ in range(count)]


def test_layers_without_end_are_stopped():
    with limit_parameters(100):
        layers(600)
    with (
        pytest.raises(ValueError, match="it would have more layers than there are weights"),
        limit_parameters(100),
    ):
        layers(601)


def test_what_comes_after_is_not_limited():
    with limit_parameters(0):
        layers(500)
    layers(501)


def test_other_threads_are_not_limited():
    made = []
    with limit_parameters(0):
        thread = threading.Thread(target=lambda: made.extend(layers(600)))
        thread.start()
        thread.join()
        layers(500)
    assert len(made) == 600
