"""Bad arguments are refused in one sentence form."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from torch import nn

from transferkit import checks
from transferkit.errors import ArgumentError, MissingExtraError

FORM = re.compile(r"^The '\w+' parameter of \w+ must be .+\. Got .+ instead\.( Did you mean .+\?)?$")


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (
            lambda value: checks.check_positive("F", "x", value),
            [0, -1, math.nan, math.inf, 10**400, "1", None, True],
        ),
        (lambda value: checks.check_non_negative("F", "x", value), [-1e-9, math.nan, "0", None, False]),
        (lambda value: checks.check_between("F", "x", value, 0, 1), [-0.1, 1, 1.5, math.nan, "a"]),
        (lambda value: checks.check_int("F", "x", value, 1), [0, 1.0, "1", None, True, math.nan, 2**63]),
        (lambda value: checks.check_choice("F", "x", value, ["sgd", "adam"]), ["sdg", "", None, 3, []]),
        (lambda value: checks.check_module("F", value), [None, "resnet18", nn.Linear]),
    ],
)
def test_bad_values_are_refused_in_the_sentence_form(check, bad):
    for value in bad:
        with pytest.raises(ArgumentError) as caught:
            check(value)
        assert FORM.match(str(caught.value)), str(caught.value)


def test_good_values_come_back_as_plain_numbers():
    assert checks.check_positive("F", "x", np.float32(0.5)) == 0.5
    assert type(checks.check_int("F", "x", np.int64(3))) is int
    assert checks.check_between("F", "x", 0, 0, 1) == 0.0


def test_a_near_miss_is_suggested():
    with pytest.raises(ArgumentError, match=r"Did you mean 'adamw' or 'adam'\?$"):
        checks.check_choice("Phase", "optimizer", "admw", ["sgd", "adam", "adamw"])


def test_a_long_value_is_cut():
    with pytest.raises(ArgumentError) as caught:
        checks.require(False, "F", "x", "short", "y" * 10_000)
    assert len(str(caught.value)) < 300


def test_a_value_of_several_lines_is_shown_in_one():
    with pytest.raises(ArgumentError) as caught:
        checks.require(False, "F", "x", "flat", nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert FORM.match(str(caught.value))


def test_a_missing_extra_names_the_command_that_brings_it():
    with pytest.raises(MissingExtraError) as caught:
        checks.import_extra("no_such_package.sub", "plot", "A plot")
    assert str(caught.value) == (
        "A plot needs no_such_package, which is not installed; "
        "install it with: pip install 'transferkit[plot]'"
    )
