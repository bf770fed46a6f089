"""Weights of torchvision's models are told apart without building a model."""

from __future__ import annotations

import pytest
import torch
from backbones.without_values import without_values

import transferkit as tk
from transferkit.backbones.torchvision_families import FAMILIES
from transferkit.loading.known_weights import model_of


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_model_is_told_whatever_its_head(name):
    # torchvision's own files of Inception have auxiliary classifiers, and are told by them.
    arguments = {"aux_logits": True} if name == "inception_v3" else {}
    with without_values():
        model = tk.load_backbone(name, weights=None, num_classes=3, **arguments)
    assert model_of(model.state_dict()) == name


def test_auxiliary_classifiers_and_positions_do_not_matter():
    with without_values():
        model = tk.load_backbone("googlenet", weights=None, num_classes=3, aux_logits=True)
        assert model_of(model.state_dict()) == "googlenet"
        model = tk.load_backbone("vit_b_16", weights=None, image_size=64)
    assert model_of(model.state_dict()) == "vit_b_16"


def test_other_weights_are_not_told():
    state = tk.load_backbone("resnet18", weights=None).state_dict()
    assert model_of({}) is None
    assert model_of({"fc.weight": torch.zeros(())}) is None
    assert model_of({"fc.weight": torch.zeros(0, 2)}) is None
    assert model_of({f"backbone.{name}": tensor for name, tensor in state.items()}) is None
    assert model_of({**state, "extra": torch.zeros(1)}) is None
    assert model_of({name: tensor for name, tensor in state.items() if name != "bn1.weight"}) is None
    assert model_of(tk.load_backbone("mini").state_dict()) is None
