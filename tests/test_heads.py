"""Where a head is, and how it is replaced."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict

import pytest
import torch
from tiny_models import TINY_MODELS
from torch import nn
from torchvision.models import get_model

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, set_spec, spec_of
from transferkit.errors import ArgumentError, SelectorError
from transferkit.freezing import freeze
from transferkit.heads import (
    class_names,
    find_head,
    head_in_features,
    head_module,
    head_out_features,
    replace_head,
)


class Net(nn.Module):
    """A module that holds whatever it is given, under the names it is given."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def with_spec(model: nn.Module, head: str, **fields: object) -> nn.Module:
    return set_spec(model, BackboneSpec("custom", head, Preprocessing(), **fields))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_head_of_each_family_is_found_and_replaced(name, device):
    tiny = TINY_MODELS[name]
    model = tiny.build().to(device)
    before = {key for key in model.state_dict() if not key.startswith(f"{tiny.head}.")}
    assert find_head(model) == tiny.head
    assert head_in_features(head_module(model)) == tiny.features
    images = tiny.batch(device=device)
    for kind in ("linear", "mlp"):
        assert replace_head(model, 7, head=kind, dropout=0.5) is model
        assert find_head(model) == tiny.head
        assert {key for key in model.state_dict() if not key.startswith(f"{tiny.head}.")} == before
        for mode in (True, False):
            logits = model.train(mode)(images)
            assert logits.shape == (2, 7)
            assert logits.device.type == device.type
    assert getattr(model, "num_classes", 7) == 7


@pytest.mark.parametrize(
    ("name", "path", "features"),
    [
        ("alexnet", "classifier.6", 4096),
        ("vgg11_bn", "classifier.6", 4096),
        ("resnext50_32x4d", "fc", 2048),
        ("wide_resnet50_2", "fc", 2048),
        ("squeezenet1_0", "classifier.1", 512),
        ("densenet121", "classifier", 1024),
        ("inception_v3", "fc", 2048),
        ("googlenet", "fc", 1024),
        ("shufflenet_v2_x0_5", "fc", 1024),
        ("mobilenet_v2", "classifier.1", 1280),
        ("mobilenet_v3_large", "classifier.3", 1280),
        ("mnasnet0_5", "classifier.1", 1280),
        ("efficientnet_v2_s", "classifier.1", 1280),
        ("regnet_y_400mf", "fc", 440),
        ("convnext_tiny", "classifier.2", 768),
        ("vit_b_16", "heads.head", 768),
        ("swin_v2_t", "head", 768),
        ("maxvit_t", "classifier.5", 512),
        ("fcn_resnet50", "classifier.4", 512),
    ],
)
def test_the_heads_of_torchvisions_own_models(name, path, features):
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    options |= {"weights_backbone": None} if name == "fcn_resnet50" else {}
    # RegNet computes its widths with tensors, which therefore need values.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = get_model(name, weights=None, **options)
    assert find_head(model) == path
    before = {key: value.shape for key, value in model.state_dict().items()}
    replace_head(model, 7)
    changed = {key for key, value in model.state_dict().items() if value.shape != before.get(key)}
    assert changed == {f"{path}.weight", f"{path}.bias"}
    assert (head_in_features(head_module(model)), head_out_features(head_module(model))) == (features, 7)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (Net(body=nn.Linear(4, 4), fc=nn.Linear(4, 2)), "fc"),
        (
            Net(body=nn.Linear(4, 4), head=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU())),
            "head.1",
        ),
        (
            Net(classifier=Net(norm=nn.LayerNorm(4), fc=nn.Linear(4, 2)), body=nn.Linear(4, 4)),
            "classifier.fc",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)), nn.Softmax(1)), "1.0"),
        (Net(body=nn.Conv2d(3, 4, 1), scores=nn.Linear(4, 2)), "scores"),
        (Net(attention=nn.MultiheadAttention(4, 1), scores=nn.Linear(4, 2)), "scores"),
        (Net(fc=nn.BatchNorm1d(4), scores=nn.Linear(4, 2)), "scores"),
    ],
)
def test_a_head_is_found_by_structure(model, path):
    assert find_head(model) == path
    assert find_head(torch.compile(model, backend="eager")) == path
    assert find_head(nn.DataParallel(model)) == path


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Net(one=nn.Linear(4, 2), two=nn.Linear(4, 3)), "'one', 'two'"),
        (Net(fc=nn.Linear(4, 2), head=nn.Linear(4, 3)), "'fc', 'head'"),
        (Net(head=Net(boxes=nn.Linear(4, 2), labels=nn.Linear(4, 3))), r"'head\.boxes', 'head\.labels'"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "'0'"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "no linear layer"),
        (nn.Linear(4, 2), "no linear layer"),
    ],
)
def test_a_head_that_cannot_be_told_is_an_error_that_names_the_candidates(model, said):
    for call in (find_head, head_module, lambda model: replace_head(model, 2)):
        with pytest.raises(SelectorError, match=rf"{said}.*attach_spec.*except_="):
            call(model)


@pytest.mark.parametrize(
    ("new", "path"),
    [
        ({"classifier": nn.Linear(4, 2)}, "classifier"),
        ({"classifier": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))}, "classifier"),
        ({"classifier": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))}, "classifier"),
        ({"classifier": nn.Sequential(nn.Dropout(), nn.Linear(4, 2))}, "classifier.1"),
        ({"classifier": nn.Sequential(nn.Dropout(), nn.Linear(4, 2), nn.BatchNorm1d(2))}, "classifier.1"),
        ({"classifier": nn.Sequential(nn.Dropout(), nn.Identity())}, "classifier.1"),
    ],
)
def test_what_the_user_put_in_the_heads_place_is_the_head(new, path):
    model = Net(body=nn.Linear(4, 4), classifier=nn.Sequential(nn.Dropout(), nn.Linear(4, 10)))
    with_spec(model, "classifier.1")
    assert find_head(model) == "classifier.1"
    model.classifier = new["classifier"]
    assert find_head(model) == path


def test_a_spec_may_name_one_of_several_heads():
    model = Net(body=nn.Linear(4, 4), head=Net(labels=nn.Linear(4, 3), boxes=nn.Linear(4, 4)))
    assert find_head(with_spec(model, "head.labels")) == "head.labels"


def test_a_spec_whose_head_is_gone_is_an_error():
    model = with_spec(Net(body=nn.Linear(4, 4)), "fc")
    with pytest.raises(SelectorError, match="says that the head is at 'fc', where there is no module"):
        find_head(model)


class TwoBranches(nn.Module):
    """A head from whose structure nothing can be told."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.left(features) + self.right(features)


@pytest.mark.parametrize("spec", [True, False])
@pytest.mark.parametrize(
    ("head", "kind"),
    [("linear", "linear"), ("mlp", "mlp"), (TwoBranches, "custom"), (TwoBranches(6, 3), "custom")],
)
def test_a_head_can_be_replaced_again_and_again(head, kind, spec):
    model = Net(body=nn.Linear(4, 6), other=nn.Linear(6, 6), fc=nn.Linear(6, 10))
    if spec:
        with_spec(model, "fc")
    replace_head(model, 3, head=head)
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert find_head(again) == "fc"
        assert again.fc(torch.zeros(2, 6)).shape == (2, 3)
        assert (head_in_features(again.fc), head_out_features(again.fc)) == (6, 3)
        if spec:
            assert spec_of(again).head_kind == kind
            assert spec_of(again).num_classes == 3
        replace_head(again, 2, classes=["ant", "bee"])
        assert again.fc(torch.zeros(2, 6)).shape == (2, 2)
        assert class_names(again) == (("ant", "bee") if spec else None)


def test_the_parts_of_a_new_head():
    model = replace_head(Net(fc=nn.Linear(600, 10)), 3, head="mlp", dropout=0.25)
    assert [type(layer) for layer in model.fc] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (model.fc.hidden.out_features, model.fc.dropout.p) == (512, 0.25)
    replace_head(model, 3, dropout=0.5)
    assert list(model.state_dict()) == ["fc.output.weight", "fc.output.bias"]
    replace_head(model, 3)
    assert list(model.state_dict()) == ["fc.weight", "fc.bias"]


def test_the_spec_records_the_new_head_and_nothing_else_changes():
    model = with_spec(Net(fc=nn.Linear(6, 10)), "fc", classes=tuple("abcdefghij"), weights="some")
    before = spec_of(model)
    replace_head(model, 2, head="mlp", dropout=0.1, classes=["ant", "bee"])
    assert spec_of(model) == dataclasses.replace(
        before, num_classes=2, classes=("ant", "bee"), head_kind="mlp", head_dropout=0.1
    )
    replace_head(model, 2)
    assert spec_of(model).classes is None


def test_stale_class_names_are_not_trusted():
    model = with_spec(Net(fc=nn.Linear(6, 2)), "fc", classes=("ant", "bee"))
    assert class_names(model) == ("ant", "bee")
    assert class_names(torch.compile(model, backend="eager")) == ("ant", "bee")
    model.fc = nn.Linear(6, 3)
    assert class_names(model) is None
    model.fc = TwoBranches(6, 2)
    assert class_names(model) == ("ant", "bee")
    del model.fc
    assert class_names(model) is None
    assert class_names(Net(fc=nn.Linear(6, 2))) is None


def test_a_new_head_takes_over_device_type_and_mode(device):
    model = Net(fc=nn.Linear(6, 10)).to(device, torch.bfloat16).eval()
    replace_head(model, 2, head="mlp")
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, device.type)}
    assert not any(module.training for module in model.modules())


def test_a_seed_gives_the_same_head_on_every_device(device):
    torch.manual_seed(3)
    expected = nn.Linear(6, 2).weight
    model = Net(fc=nn.Linear(6, 10)).to(device)
    torch.manual_seed(3)
    assert torch.equal(replace_head(model, 2).fc.weight.cpu(), expected)


def test_a_head_that_is_wrapped_by_compile_is_replaced():
    model = Net(body=nn.Linear(4, 6), fc=torch.compile(nn.Linear(6, 10), backend="eager"))
    assert find_head(model) == "fc"
    assert head_out_features(head_module(model)) == 10
    compiled = torch.compile(model, backend="eager")
    assert replace_head(compiled, 2) is compiled
    assert model.fc.out_features == 2


@pytest.mark.parametrize("except_", ["head", "body", None])
def test_after_freezing_the_new_head_trains_and_the_body_stays(except_):
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    model = freeze(Net(body=body, classifier=nn.Sequential(nn.Dropout(), nn.Linear(6, 10))), except_=except_)
    before = [parameter.requires_grad for parameter in body.parameters()]
    replace_head(model, 2, dropout=0.5)
    assert model.training  # at once, as it was when everything was frozen
    assert all(module.training for module in model.classifier.modules())
    model.train()
    assert [parameter.requires_grad for parameter in body.parameters()] == before
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())
    assert body[1].training == (except_ == "body")
    assert model.training
    assert all(module.training for module in model.classifier.modules())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 0}, "'num_classes' parameter of replace_head must be an int of at least 1"),
        ({"num_classes": 2.0}, "'num_classes'"),
        (
            {"num_classes": 10**8},
            "'num_classes' parameter of replace_head must be at most 10000000. Got 1000000",
        ),
        ({"dropout": 1.0}, "'dropout' parameter of replace_head must be a float of at least 0 and below 1"),
        ({"head": "linar"}, "'head' parameter of replace_head must be 'linear', 'mlp'"),
        ({"head": 3}, "'head' parameter"),
        ({"head": lambda inputs, outputs: None}, "'head' parameter"),
        ({"head": nn.Linear(5, 2)}, "must take 6 features and give 2 outputs.*takes 5 and gives 2"),
        ({"head": nn.Linear(6, 3)}, "must take 6 features and give 2 outputs.*takes 6 and gives 3"),
        ({"head": nn.Conv2d(6, 2, 1)}, "must be made of linear layers"),
        ({"head": nn.Linear(6, 2), "dropout": 0.5}, "'dropout' parameter of replace_head must be 0"),
        ({"classes": ["ant"]}, "'classes' parameter of replace_head must be 2 different strings"),
        ({"classes": ["ant", "ant"]}, "'classes'"),
        ({"classes": "ab"}, "'classes'"),
        ({"classes": [0, 1]}, "'classes'"),
    ],
)
def test_a_wrong_argument_is_an_error_and_changes_nothing(options, said):
    model = with_spec(Net(fc=nn.Linear(6, 10)), "fc")
    head, spec = model.fc, spec_of(model)
    with pytest.raises(ArgumentError, match=said):
        replace_head(model, **{"num_classes": 2} | options)
    assert model.fc is head
    assert spec_of(model) is spec


def test_a_linear_layer_cannot_stand_where_maps_come_in():
    model = TINY_MODELS["squeezenet"].build()
    with pytest.raises(ArgumentError, match="must be made of 1 x 1 convolutions"):
        replace_head(model, 7, head=nn.Linear)
    replace_head(model, 7, head=lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1))
    assert model(TINY_MODELS["squeezenet"].batch()).shape == (2, 7)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (nn.Identity(), "the head Identity takes cannot be told; put a torch.nn.Linear"),
        (TwoBranches(6, 3), "the head TwoBranches takes cannot be told"),
        (nn.LazyLinear(3), "cannot be told; run one batch through the model first"),
    ],
)
def test_a_head_whose_features_cannot_be_told_is_an_error(head, said):
    model = with_spec(Net(fc=head), "fc")
    with pytest.raises(SelectorError, match=said):
        replace_head(model, 2)


def test_features_of_heads_of_several_layers():
    layers = OrderedDict(
        norm=nn.LayerNorm(6), first=nn.Linear(6, 5), norm2=nn.BatchNorm1d(5), last=nn.Linear(5, 3)
    )
    assert (head_in_features(nn.Sequential(layers)), head_out_features(nn.Sequential(layers))) == (6, 3)
    assert head_out_features(nn.Identity()) is None
