"""A module of the user's own is told from the outside where its head is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from transferkit.backbones.attach import attach_spec
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import Stage, spec_of
from transferkit.backbones.stages import stage_indices
from transferkit.errors import ArgumentError, SelectorError, UnknownNameError
from transferkit.heads import replace_head


class Net(nn.Module):
    """A body, a head in a container, and a scale that no module holds."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.out = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, images):
        maps = self.stem(images * self.scale)
        for block in self.blocks:
            maps = block(maps)
        return self.out(maps)


def test_a_module_gets_a_spec_and_works_like_a_loaded_one():
    model = Net()
    assert attach_spec(model, head="out.3", preprocessing="cifar10", classes=["ant", "bee"]) is model
    spec = spec_of(model)
    assert (spec.name, spec.head, spec.num_classes, spec.classes) == ("custom", "out.3", 2, ("ant", "bee"))
    assert spec.preprocessing.size == 32
    replace_head(model, 7)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    assert spec_of(model).classes is None


def test_stages_are_the_modules_beside_the_path_to_the_head():
    model = attach_spec(Net(), head="out.3", preprocessing=Preprocessing(size=8))
    assert [stage.name for stage in spec_of(model).stages] == ["stem", "blocks", "out.2"]
    assert stage_indices(model)["scale"] == 0
    assert stage_indices(model)["out.3.bias"] == 3


def test_a_whole_backbone_in_front_of_a_head_is_taken_apart():
    body = models.resnet18(weights=None)
    body.fc = nn.Identity()
    model = nn.Sequential(nn.ModuleDict({"body": body}), nn.Linear(512, 2))
    attach_spec(model, head="1", preprocessing="imagenet")
    names = [stage.name for stage in spec_of(model).stages]
    assert names == [f"0.body.{name}" for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")]


@pytest.mark.parametrize(
    "form", [dict, list, lambda pairs: [Stage(name, tuple(paths)) for name, paths in pairs]]
)
def test_stages_can_be_given(form):
    pairs = [("early", ["stem", "blocks.0"]), ("late", ["blocks.1", "blocks.2", "out.2"])]
    model = attach_spec(Net(), head="out.3", preprocessing="cifar10", stages=form(pairs))
    assert spec_of(model).stages == (
        Stage("early", ("stem", "blocks.0")),
        Stage("late", ("blocks.1", "blocks.2", "out.2")),
    )
    assert stage_indices(model)["blocks.0.weight"] == 0
    assert stage_indices(model)["blocks.1.weight"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "out.33"}, r"This Net has no module 'out.33'. Did you mean 'out.3'"),
        ({"stages": {"a": ["stems"]}}, r"This Net has no module 'stems'. Did you mean 'stem'"),
    ],
)
def test_a_path_that_names_nothing_suggests_the_nearest_and_changes_nothing(arguments, message):
    model = attach_spec(Net(), head="out.3", preprocessing="cifar10")
    before = spec_of(model)
    with pytest.raises(SelectorError, match=message):
        attach_spec(model, **{"head": "out.3", "preprocessing": "imagenet", **arguments})
    assert spec_of(model) is before


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"head": ""}, "head"),
        ({"head": None}, "head"),
        ({"classes": "ab"}, "classes"),
        ({"classes": ["ant"]}, "classes"),
        ({"classes": ["ant", "ant"]}, "classes"),
        ({"classes": [1, 2]}, "classes"),
        ({"stages": {}}, "stages"),
        ({"stages": {"a": []}}, "stages"),
        ({"stages": {"a": "stem"}}, "stages"),
        ({"stages": [("a", ["stem"]), ("a", ["blocks"])]}, "stages"),
        ({"stages": {"a": ["stem"], "b": ["stem"]}}, "stages"),
        ({"stages": {"a": ["out"]}}, "stages"),
        ({"stages": {"a": ["out.3"]}}, "stages"),
        ({"model": "resnet18"}, "model"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments, parameter):
    arguments = {"model": Net(), "head": "out.3", "preprocessing": "cifar10", **arguments}
    with pytest.raises(ArgumentError, match=f"The '{parameter}' parameter of attach_spec must be"):
        attach_spec(arguments.pop("model"), **arguments)


def test_an_unknown_preprocessing_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet'"):
        attach_spec(Net(), head="out.3", preprocessing="imagnet")
