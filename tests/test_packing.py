"""Convolutions that are laid out beforehand, and what they take in, give what the modules give."""

from __future__ import annotations

import operator

import pytest
import torch
from packed_nets import IMAGES, PACKED, Own, Residual, assert_same, distance, given, layers_of
from torch import nn
from torch.nn import functional as F

from transferkit.packing import can_pack
from transferkit.runtime import bf16_unit

pytestmark = pytest.mark.skipif(not can_pack(nn.Conv2d(3, 3, 1), "cpu"), reason="torch is without oneDNN")
needs_bf16 = pytest.mark.skipif(
    bf16_unit(torch.device("cpu")) is None, reason="this processor does not compute bfloat16"
)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": (3, 1), "dilation": (1, 2), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": (3, 2)},
        {"kernel_size": 3, "groups": 3},
        {"kernel_size": 5, "groups": 3, "padding": 2, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=str,
)
def test_a_convolution_alone(options):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 24, **options)))
    assert layers_of(graph) == [
        "Conv2d" if "padding" in options and options["padding"] == "valid" else PACKED
    ]


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.4),
    nn.Hardswish(),
    nn.SiLU(inplace=True),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.LeakyReLU(0.2),
    Own(F.relu),
    Own(torch.relu),
    Own(lambda images: F.relu(images, inplace=True)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("options", [{}, {"groups": 3, "stride": 2, "bias": False}], ids=["plain", "grouped"])
def test_an_activation_goes_with_the_convolution_before_it(activation, options):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 12, 3, **options), activation))
    assert layers_of(graph) == [PACKED]


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ELU(), nn.Softplus(), nn.PReLU()], ids=str)
def test_an_unknown_activation_stays(activation):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 12, 3), activation))
    assert layers_of(graph) == [PACKED, type(activation).__name__]


SUMS = [
    operator.iadd,
    operator.add,
    torch.add,
    lambda out, identity: identity + out,
    lambda out, identity: torch.add(identity, out),
]


@pytest.mark.parametrize("add", SUMS)
@pytest.mark.parametrize(
    "after",
    [None, nn.ReLU(), nn.ReLU(inplace=True), F.relu],
    ids=["nothing", "layer", "in place", "function"],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_sum_goes_with_the_convolution_before_it(add, after, stride):
    graph = assert_same(Residual(add, after, stride=stride))
    assert layers_of(graph) == [PACKED] * (3 if stride == 1 else 4)


@pytest.mark.parametrize("activation", [each for each in ACTIVATIONS if type(each) is not Own], ids=str)
def test_any_activation_may_follow_a_sum(activation):
    graph = assert_same(Residual(operator.iadd, activation))
    relu = isinstance(activation, nn.ReLU)
    assert layers_of(graph) == [PACKED] * 3 + ([] if relu else [type(activation).__name__])


@needs_bf16
@pytest.mark.parametrize("after", [None, *ACTIVATIONS], ids=str)
def test_bfloat16_stays_within_its_rounding_of_float32(after):
    residual = Residual(operator.iadd, nn.ReLU(), stride=2)
    module = nn.Sequential(residual, nn.Conv2d(8, 16, 3), *([] if after is None else [after]))
    graph = given(module, dtype=torch.bfloat16)
    assert set(layers_of(graph)) == {PACKED}
    with torch.no_grad():
        for images in (IMAGES, IMAGES[:1]):
            found = graph(images.bfloat16())
            assert found.dtype is torch.bfloat16
            # Five results in a row, each rounded to 8 bits.
            assert distance(found, module(images)) < 5 * 2**-8
