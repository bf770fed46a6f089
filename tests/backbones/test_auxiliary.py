"""Auxiliary classifiers of Inception and GoogLeNet: there on request, their losses weighted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from without_values import without_values

import transferkit as tk
from transferkit.backbones.stages import stage_indices
from transferkit.classification import loss_of
from transferkit.errors import ArgumentError
from transferkit.features.split import NoSplit, split_model

TARGETS = torch.tensor([0, 2, 1])

# The smallest side of an image, the stage of the auxiliary classifiers, and their last layers.
MODELS = {
    "inception_v3": (299, "mixed6", ("AuxLogits.fc",)),
    "googlenet": (15, "inception4", ("aux1.fc2", "aux2.fc2")),
}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return tk.load_backbone(name, weights=None, num_classes=3, image_size=MODELS[name][0], aux_logits=True)


def images_for(model: torch.nn.Module) -> Tensor:
    side = tk.spec_of(model).preprocessing.size
    return torch.randn(3, 3, side, side)


def expected_loss(name: str, output: object) -> Tensor:
    """The loss as the paper on GoogLeNet and PyTorch's tutorial on Inception give it."""
    if name == "inception_v3":
        logits, auxiliary = output
        return F.cross_entropy(logits, TARGETS) + 0.4 * F.cross_entropy(auxiliary, TARGETS)
    logits, second, first = output
    both = F.cross_entropy(first, TARGETS) + F.cross_entropy(second, TARGETS)
    return F.cross_entropy(logits, TARGETS) + 0.3 * both


def test_they_are_there_only_if_asked_for(name):
    with without_values():
        plain = tk.load_backbone(name, weights=None)
        auxiliary = tk.load_backbone(name, weights=None, aux_logits=True)
    assert not [key for key in plain.state_dict() if key.lower().startswith("aux")]
    assert [key for key in auxiliary.state_dict() if key.lower().startswith("aux")]
    assert tk.spec_of(plain).builder_kwargs["aux_logits"] is False
    assert tk.spec_of(auxiliary).builder_kwargs["aux_logits"] is True
    assert tk.spec_of(plain).auxiliary_heads == ()
    assert tk.spec_of(auxiliary).auxiliary_heads == MODELS[name][2]


def test_their_last_layers_have_as_many_outputs_as_the_head(name):
    with without_values():
        model = tk.load_backbone(name, weights=None, num_classes=7, aux_logits=True)
    layers = [model.get_submodule(path) for path in tk.spec_of(model).auxiliary_heads]
    assert layers
    assert {layer.out_features for layer in layers} == {7}


def test_they_train_with_the_stage_from_which_they_branch_off(name):
    with without_values():
        model = tk.load_backbone(name, weights=None, aux_logits=True)
    stages, indices = tk.spec_of(model).stages, stage_indices(model)
    found = {stages[index].name for key, index in indices.items() if key.lower().startswith("aux")}
    assert found == {MODELS[name][1]}


def test_in_training_their_losses_are_added_and_in_use_they_are_not_there(name, model):
    images = images_for(model)
    output = model.train()(images)
    torch.testing.assert_close(loss_of(output, TARGETS, F.cross_entropy), expected_loss(name, output))
    with torch.no_grad():
        logits = model.eval()(images)
        assert isinstance(logits, Tensor)
        assert torch.equal(loss_of(logits, TARGETS, F.cross_entropy), F.cross_entropy(logits, TARGETS))


def test_frozen_beside_a_head_that_trains_they_add_nothing(model):
    output = tk.freeze(model, except_="head").train()(images_for(model))
    expected = F.cross_entropy(output.logits, TARGETS)
    assert torch.equal(loss_of(output, TARGETS, F.cross_entropy), expected)


def test_frozen_they_do_not_stand_in_the_way_of_stored_features(model):
    assert split_model(tk.freeze(model, except_="head")).where in ("before 'fc'", "before 'dropout'")


def test_images_that_are_too_small_for_them_are_refused(name):
    smallest = MODELS[name][0]
    sentence = f"must be an int of at least {smallest} for '{name}' with aux_logits=True. Got {smallest - 1}"
    with pytest.raises(ArgumentError, match=sentence):
        tk.load_backbone(name, weights=None, aux_logits=True, image_size=smallest - 1)


def test_one_step_trains_them_with_the_losses_added(name, model):
    images = images_for(model)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(tk.parameter_groups(model, lr=0.1))
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:  # two forward passes give the same
        module.p = 0.0
    expected = expected_loss(name, model.train()(images))
    result = tk.train_step(model, (images, TARGETS), optimizer)
    torch.testing.assert_close(result.loss, expected.detach())
    layers = [f"{path}.weight" for path in tk.spec_of(model).auxiliary_heads]
    assert layers
    for key in layers:
        assert not torch.equal(model.get_parameter(key), before[key])


def test_a_new_head_comes_with_new_last_layers_for_them(name, model, tmp_path):
    paths = tk.spec_of(model).auxiliary_heads
    tk.freeze(model, except_=["head", *paths[:1]])
    tk.replace_head(model, 5, classes=list("abcde"))
    layers = [model.get_submodule(path) for path in paths]
    assert [layer.out_features for layer in layers] == [5] * len(paths)
    # They train or are frozen as those before them.
    assert [layer.weight.requires_grad for layer in layers] == [True, False][: len(paths)]
    images = images_for(model)
    assert {len(logits[0]) for logits in model.train()(images)} == {5}
    tk.save_model(model, tmp_path)
    again = tk.load_model(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert {len(logits[0]) for logits in again.train()(images)} == {5}


def test_a_model_whose_auxiliary_classifiers_train_is_not_cut(name, model):
    stages = [stage.name for stage in tk.spec_of(model).stages]
    chosen = ["head", *stages[stages.index(MODELS[name][1]) :]]
    with pytest.raises(NoSplit, match="an auxiliary classifier trains"):
        split_model(tk.freeze(model, except_=chosen))
