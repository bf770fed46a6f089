"""Learning rates and weight decay, group by group."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY_MODELS
from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec
from transferkit.errors import ArgumentError, SelectorError
from transferkit.freezing import freeze
from transferkit.param_groups import parameter_groups

STAGES = (
    Stage("stem", ("conv1", "bn1")),
    *(Stage(f"layer{number}", (f"layer{number}",)) for number in range(1, 5)),
)


@pytest.fixture
def resnet() -> nn.Module:
    model = TINY_MODELS["resnet"].build()
    return set_spec(model, BackboneSpec("resnet18", "fc", Preprocessing(), STAGES))


def names_in(model: nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_without_decays_there_are_a_backbone_and_a_head(resnet):
    backbone, head = parameter_groups(resnet, lr=0.1)
    assert (backbone["name"], backbone["lr"], backbone["weight_decay"]) == ("backbone", 0.1, 0.0)
    assert (head["name"], head["lr"], head["weight_decay"]) == ("head", 0.1, 0.0)
    assert names_in(resnet, head) == {"fc.weight", "fc.bias"}
    assert names_in(resnet, backbone) == {name for name, _ in resnet.named_parameters()} - {
        "fc.weight",
        "fc.bias",
    }


def test_the_learning_rate_falls_from_stage_to_stage(resnet):
    groups = parameter_groups(resnet, lr=0.1, head_lr=0.7, layer_decay=0.5)
    assert [group["name"] for group in groups] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert [group["lr"] for group in groups] == pytest.approx([0.00625, 0.0125, 0.025, 0.05, 0.1, 0.7])
    assert names_in(resnet, groups[0]) == {"conv1.weight", "bn1.weight", "bn1.bias"}
    # The rates are where they are also when the first stages are frozen.
    freeze(resnet, except_=["layer3", "head"])
    groups = parameter_groups(resnet, lr=0.1, layer_decay=0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [("layer3", 0.05), ("head", 0.1)]


def test_a_model_without_a_spec_has_one_stage():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    groups = parameter_groups(model, lr=0.1, head_lr=0.2, layer_decay=0.5)
    assert [(group["name"], group["lr"], len(group["params"])) for group in groups] == [
        ("backbone", 0.1, 4),
        ("head", 0.2, 2),
    ]


def test_biases_and_norms_are_not_decayed(resnet):
    groups = {group["name"]: group for group in parameter_groups(resnet, lr=0.1, weight_decay=0.05)}
    assert list(groups) == ["backbone", "backbone.no_decay", "head", "head.no_decay"]
    assert [group["weight_decay"] for group in groups.values()] == [0.05, 0.0, 0.05, 0.0]
    assert names_in(resnet, groups["head.no_decay"]) == {"fc.bias"}
    assert all(parameter.ndim == 4 for parameter in groups["backbone"]["params"])
    assert all(parameter.ndim == 1 for parameter in groups["backbone.no_decay"]["params"])


@pytest.mark.parametrize(
    ("name", "undecayed"),
    [
        ("vit", {"class_token", "encoder.pos_embedding"}),
        ("convnext", {"features.1.0.layer_scale", "features.3.1.layer_scale"}),
        ("swin", {"features.1.0.attn.relative_position_bias_table"}),
    ],
)
def test_positions_tokens_and_scales_are_not_decayed(name, undecayed):
    model = TINY_MODELS[name].build()
    groups = {group["name"]: group for group in parameter_groups(model, lr=0.1, weight_decay=0.05)}
    assert undecayed <= names_in(model, groups["backbone.no_decay"])
    assert all(value.ndim in (2, 4) for value in groups["backbone"]["params"])


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_each_parameter_that_trains_is_in_one_group_and_the_optimizer_takes_them(name, weight_decay):
    model = TINY_MODELS[name].build()
    next(model.parameters()).requires_grad_(False)
    groups = parameter_groups(model, lr=0.1, head_lr=0.2, layer_decay=0.9, weight_decay=weight_decay)
    found = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert found == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    for optimizer in (torch.optim.SGD(groups), torch.optim.AdamW(groups)):
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in groups]


def test_a_tied_parameter_comes_once_and_with_the_head():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    backbone, head = parameter_groups(model, lr=0.1, head_lr=0.2)
    assert names_in(model, backbone) == {"1.weight", "1.bias"}
    assert len(head["params"]) == 1
    assert head["params"][0] is model[0].weight


def test_a_compiled_model_has_the_groups_of_the_model(resnet):
    plain = parameter_groups(resnet, lr=0.1, layer_decay=0.5, weight_decay=0.1)
    compiled = parameter_groups(
        torch.compile(resnet, backend="eager"), lr=0.1, layer_decay=0.5, weight_decay=0.1
    )
    assert [(group["name"], group["lr"]) for group in plain] == [(g["name"], g["lr"]) for g in compiled]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0}, "'lr' parameter of parameter_groups must be a positive float. Got 0"),
        ({"lr": None}, "'lr'"),
        ({"head_lr": -1.0}, "'head_lr' parameter of parameter_groups must be a positive float"),
        ({"layer_decay": 0.0}, "'layer_decay' parameter of parameter_groups must be a positive float"),
        (
            {"weight_decay": -0.1},
            "'weight_decay' parameter of parameter_groups must be a float of at least 0",
        ),
    ],
)
def test_a_wrong_number_is_an_error(resnet, options, said):
    with pytest.raises(ArgumentError, match=said):
        parameter_groups(resnet, **{"lr": 0.1} | options)


def test_nothing_to_train_is_an_error(resnet):
    with pytest.raises(ArgumentError, match=r"No parameter of this ResNet trains.*freeze.*unfreeze"):
        parameter_groups(freeze(resnet, except_=None), lr=0.1)
    with pytest.raises(SelectorError, match="cannot be told"):
        parameter_groups(nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}), lr=0.1)
