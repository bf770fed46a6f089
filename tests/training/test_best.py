"""Best weights: accuracy first, then lower log loss, then the earlier."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from transferkit.training.best import BestWeights


def test_ranks():
    model, best = nn.Linear(1, 1), BestWeights()
    results = [(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.4, 0.1), (0.6, 5.0), (0.9, math.nan), (0.6, 5.0)]
    kept = [best.consider(model, accuracy=accuracy, loss=loss) for accuracy, loss in results]
    assert kept == [True, False, True, False, True, False, False]


def test_what_is_restored_is_a_copy():
    model, best = nn.BatchNorm1d(2), BestWeights()
    best.consider(model, accuracy=0.5, loss=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(8, 2))
    with torch.no_grad():
        model.weight.add_(1)
    best.restore(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_a_result_nothing_is_restored():
    model = nn.Linear(1, 1)
    weight = model.weight.clone()
    BestWeights().restore(model)
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("name", ["mnasnet0_75"])
def test_a_model_whose_state_dict_has_a_version_keeps_its_architecture(name):
    model, best = torchvision.models.get_model(name, weights=None, num_classes=2), BestWeights()
    shape = model.layers[0].weight.shape
    best.consider(model, accuracy=0.5, loss=1.0)
    best.restore(model)
    assert model.layers[0].weight.shape == shape


@pytest.mark.parametrize("better_phase", [0, 1])
def test_all_weights_of_the_best_epoch_come_back_whatever_a_phase_trains(better_phase):
    model, best = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)), BestWeights()
    kept = {}
    for phase, trains in enumerate((model[2], model, model)):
        with torch.no_grad():
            for value in trains.state_dict().values():
                value.add_(1)
        if best.consider(model, accuracy=0.9 if phase == better_phase else 0.5 - 0.1 * phase, loss=1.0):
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    best.restore(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
