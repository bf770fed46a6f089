"""Torchvision models for the loops that do without transferkit, and weights that all variants share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision import models


def last_linear(model: nn.Module) -> str:
    """Return the path of a model's last linear layer, which is the head of all models used here."""
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a new linear layer in the place of a model's last one, and return the layer."""
    name = last_linear(model)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    head = nn.Linear(layer.in_features, num_classes)
    model.set_submodule(name, head)
    return head


def size_arguments(backbone: str, image_size: int) -> dict[str, int]:
    """Return what a builder must know of the image size: vision transformers have it in their weights."""
    return {"image_size": image_size} if backbone.startswith("vit_") else {}


def load(backbone: str, weights: str | Path, image_size: int) -> nn.Module:
    """Build a torchvision model and load a file of weights, with as many outputs as the file has."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model: nn.Module = models.get_model(backbone, weights=None, **size_arguments(backbone, image_size))
    outputs = state[f"{last_linear(model)}.weight"].shape[0]
    new_head(model, outputs)
    model.load_state_dict(state)
    return model


def make(backbone: str, image_size: int) -> nn.Module:
    """Build a torchvision model from seeded random weights.

    One pass over random images gives batch norm statistics, so that activations are of the size
    that they have in a trained network.
    """
    torch.manual_seed(0)
    model: nn.Module = models.get_model(backbone, weights=None, **size_arguments(backbone, image_size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, image_size, image_size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def write_weights(backbone: str, image_size: int, weights: str | None, folder: Path) -> Path:
    """Return a file of weights that every variant loads.

    Args:
        backbone: A torchvision model.
        image_size: Side of the images, in pixels.
        weights: A file, which is returned as it is; ``"default"`` for torchvision's, which are
            fetched once; ``None`` for random ones.
        folder: Where the file is written.
    """
    if weights is not None and weights != "default":
        return Path(weights).resolve()
    if weights == "default":
        model = models.get_model(backbone, weights="DEFAULT")
    else:
        model = make(backbone, image_size)
    path = folder / f"{backbone}.pth"
    torch.save(model.state_dict(), path)
    return path
