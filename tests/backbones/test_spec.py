"""A spec stays with its model through whatever is done to it."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, find_spec, set_spec, spec_of, unwrapped
from transferkit.errors import ArgumentError

SPEC = BackboneSpec(
    "mine",
    "1",
    Preprocessing(size=8),
    stages=(Stage("body", ("0",)),),
    classes=("ant", "bee"),
    num_classes=2,
    builder_kwargs={"width": 3, "sizes": [8, 8]},
)


def make():
    return set_spec(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), SPEC)


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "carry",
    [
        copy.copy,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        saved_and_loaded,
        lambda model: model.to(torch.float64),
        lambda model: model.eval().half(),
        lambda model: copy.deepcopy(model).requires_grad_(False),
        lambda model: model.to_empty(device="meta"),
        torch.compile,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
)
def test_a_spec_survives(carry):
    assert spec_of(carry(make())) == SPEC


def test_the_state_dict_does_not_show_it():
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert list(make().state_dict()) == list(plain.state_dict())
    assert [name for name, _ in make().named_modules()] == [name for name, _ in plain.named_modules()]


def test_a_compiled_model_and_what_it_wraps_have_one_spec():
    model = make()
    compiled = torch.compile(model)
    assert unwrapped(compiled) is model
    changed = dataclasses.replace(SPEC, classes=("cat", "dog"))
    assert set_spec(compiled, changed) is compiled
    assert spec_of(model) == changed


def test_a_copy_has_a_spec_of_its_own():
    model = make()
    other = set_spec(copy.deepcopy(model), dataclasses.replace(SPEC, name="other"))
    assert (spec_of(model).name, spec_of(other).name) == ("mine", "other")


def test_a_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.head = "0"


def test_a_model_without_one_says_how_to_give_it_one():
    assert find_spec(nn.Linear(2, 2)) is None
    with pytest.raises(
        ArgumentError, match=r"This Linear has no spec; give it one with transferkit\.attach_spec"
    ):
        spec_of(nn.Linear(2, 2))
