"""Each parameter belongs to one stage, whatever a model has been through."""

from __future__ import annotations

import torch
from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec
from transferkit.backbones.stages import CutAfter, Each, find_stages, stage_indices


def body():
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout())


def test_each_child_with_parameters_is_a_stage_and_numbers_count_on():
    model = nn.ModuleDict({"a": body(), "b": body()})
    stages = find_stages(model, [Each("layer", "a"), Stage("rest", ("b",)), Each("layer", "b")])
    assert [(stage.name, stage.members) for stage in stages] == [
        ("layer1", ("a.0",)),
        ("layer2", ("a.3",)),
        ("layer3", ("a.4",)),
        ("rest", ("b",)),
        ("layer4", ("b.0",)),
        ("layer5", ("b.3",)),
        ("layer6", ("b.4",)),
    ]


def test_a_cut_groups_what_stands_between_layers_of_a_type():
    stages = find_stages(nn.ModuleDict({"a": body()}), [CutAfter("conv", "a", nn.MaxPool2d)])
    assert stages == (Stage("conv1", ("a.0",)), Stage("conv2", ("a.3", "a.4")))


def test_members_that_a_model_does_not_have_are_left_out():
    rules = [Stage("first", ("0", "9")), Stage("none", ("7", "1")), Each("x", "nowhere")]
    assert find_stages(body(), rules) == (Stage("first", ("0",)),)


class Odd(nn.Module):
    """Parameters before, between and after the stages, and one that is shared."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.first = nn.Linear(3, 3)
        self.between = nn.Linear(3, 3)
        self.second = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.after = nn.LayerNorm(3)
        self.head = nn.Linear(3, 3)
        self.auxiliary = nn.Linear(3, 3, bias=False)
        self.auxiliary.weight = self.first.weight


def odd():
    stages = (Stage("one", ("first",)), Stage("two", ("second.0",)), Stage("three", ("second.1",)))
    return set_spec(Odd(), BackboneSpec("custom", "head", Preprocessing(size=3), stages))


EXPECTED = {
    "token": 0,
    "first.weight": 0,
    "first.bias": 0,
    "between.weight": 0,
    "between.bias": 0,
    "second.0.weight": 1,
    "second.0.bias": 1,
    "second.1.weight": 2,
    "second.1.bias": 2,
    "after.weight": 2,
    "after.bias": 2,
    "head.weight": 3,
    "head.bias": 3,
    "auxiliary.weight": 2,
}


def test_what_no_stage_lists_follows_what_is_registered_before_it():
    assert stage_indices(odd()) == EXPECTED


def test_compiling_the_model_or_a_part_of_it_changes_no_name():
    assert stage_indices(torch.compile(odd())) == EXPECTED
    model = odd()
    model.first = torch.compile(model.first)
    assert stage_indices(model) == EXPECTED


def test_a_head_that_replaces_its_whole_container_is_still_the_head():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    stages = (Stage("one", ("0",)), Stage("two", ("1.0",)))
    set_spec(model, BackboneSpec("custom", "1.1", Preprocessing(size=3), stages))
    model[1] = nn.Linear(3, 7)
    assert stage_indices(model) == {"0.weight": 0, "0.bias": 0, "1.weight": 2, "1.bias": 2}


def test_without_a_spec_the_backbone_is_one_stage():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2, bias=False))
    assert list(stage_indices(model).values()) == [0, 0, 0, 0, 1]
