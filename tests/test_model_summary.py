"""The table of what trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import TINY_MODELS
from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec
from transferkit.freezing import freeze, unfreeze
from transferkit.model_summary import SummaryRow, summary


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Sequential(nn.Dropout(), nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)
    )
    model.token = nn.Parameter(torch.zeros(5))
    return model


def test_without_a_spec_the_rows_are_the_children(model):
    assert summary(freeze(model, except_=["3", "1"]).train()).rows == (
        SummaryRow("0", 40, 0, "frozen"),
        SummaryRow("1", 72, 72, "training"),
        SummaryRow("3", 18, 18, "training"),
        SummaryRow("other", 5, 0, ""),
    )
    assert [row.mode for row in summary(model.eval()).rows] == ["frozen", "inference", "inference", ""]
    model[1][0].train()
    assert [row.mode for row in summary(model).rows][1] == "mixed"
    assert [row.mode for row in summary(unfreeze(model).train()).rows] == ["training"] * 3 + [""]


def test_with_a_spec_the_rows_are_its_stages_and_the_head(model):
    stages = (Stage("early", ("0", "token")), Stage("late", ("1",)))
    set_spec(model, BackboneSpec("tiny", "3", Preprocessing(), stages))
    found = summary(torch.compile(freeze(model), backend="eager"))
    assert found.model == "tiny"
    assert found.rows == (
        SummaryRow("early", 45, 0, "frozen"),
        SummaryRow("late", 72, 0, "frozen"),
        SummaryRow("head", 18, 18, "training"),
    )
    assert (found.parameters, found.trainable) == (135, 18)


def test_the_text_is_a_table(model):
    text = str(summary(freeze(model))).splitlines()
    assert text[0].split() == ["Sequential", "parameters", "trainable", "mode"]
    assert text[2].split() == ["0", "40", "0", "frozen"]
    assert text[-1].split() == ["total", "135", "18"]
    big = summary(nn.Sequential(nn.Linear(1000, 1000, bias=False)))
    assert "1,000,000" in str(big)


def test_tied_parameters_are_counted_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = summary(model)
    assert [row.parameters for row in found.rows] == [16, 0]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_rows_add_up(name):
    model = freeze(TINY_MODELS[name].build())
    found = summary(model)
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.trainable == sum(value.numel() for value in model.parameters() if value.requires_grad)


def test_a_summary_is_frozen(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary(model).rows = ()
