"""Backbone, neck and head on real models: what each part gives, and what trains under which freeze plan.

    python examples/parts_of_a_detector.py

The models are torchvision's Faster R-CNN, RetinaNet and SSD, which find objects, and FCN, which labels
pixels. They are built with random weights, so that nothing is downloaded; with pretrained ones the
parts and the plans are the same. ``freeze`` takes any module, and so these too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn, ssd300_vgg16
from torchvision.models.segmentation import fcn_resnet50

import transferkit as tk

SIDE = 300


@dataclass(frozen=True)
class Anatomy:
    """A model, its parts in the order of the data, and what to train in them."""

    build: Callable[[], nn.Module]
    parts: Mapping[str, str]  # path of a module: its role
    plans: Mapping[str, list[str]]  # name of a plan: what trains


def untrained(build: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build(weights=None, weights_backbone=None, num_classes=3)


MODELS = {
    "Faster R-CNN": Anatomy(
        untrained(fasterrcnn_resnet50_fpn),
        {
            "backbone.body": "backbone: ResNet-50, maps of four resolutions",
            "backbone.fpn": "neck: a feature pyramid that mixes them",
            "rpn": "head 1: proposes boxes",
            "roi_heads": "head 2: names and corrects each box",
        },
        {
            "new classes": ["roi_heads.box_predictor"],
            "neck and heads": ["backbone.fpn", "rpn", "roi_heads"],
            "with the last stage": ["backbone.body.layer4", "backbone.fpn", "rpn", "roi_heads"],
        },
    ),
    "RetinaNet": Anatomy(
        untrained(retinanet_resnet50_fpn),
        {
            "backbone.body": "backbone: ResNet-50, maps of three resolutions",
            "backbone.fpn": "neck: a feature pyramid, with two coarser maps",
            "head": "head: class and box for each place, in one go",
        },
        {"the head": ["head"], "neck and head": ["backbone.fpn", "head"]},
    ),
    "SSD": Anatomy(
        untrained(ssd300_vgg16),
        {
            "backbone.features": "backbone: VGG-16",
            "backbone.extra": "backbone, continued: coarser maps; SSD has no neck",
            "head": "head: class and box for each place of six maps",
        },
        {"the head": ["head"], "with the coarse maps": ["backbone.extra", "head"]},
    ),
    "FCN": Anatomy(
        untrained(fcn_resnet50),
        {
            "backbone": "backbone: ResNet-50, dilated, one map",
            "classifier": "head: a class for each pixel of it; FCN has no neck",
        },
        {
            "the last layer": ["classifier.4"],
            "the head": ["classifier"],
            "with the last stage": ["backbone.layer4", "classifier"],
        },
    ),
}


def counts(model: nn.Module, path: str) -> tuple[int, int]:
    """Return how many values the parameters of a part hold, and how many of them train."""
    parameters = list(model.get_submodule(path).parameters())
    held = sum(parameter.numel() for parameter in parameters)
    return held, sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def show_maps(model: nn.Module, anatomy: Anatomy) -> None:
    """Print the size of the maps that the head works on, for one square image."""
    model.eval()
    with torch.inference_mode():
        maps = model.backbone(torch.rand(1, 3, SIDE, SIDE))
    sizes = ", ".join(f"{level.shape[1]} x {level.shape[2]} x {level.shape[3]}" for level in maps.values())
    print(f"for {SIDE} x {SIDE} px the head gets maps of {sizes}")
    for path, role in anatomy.parts.items():
        print(f"  {path:<18} {counts(model, path)[0]:>11,}  {role}")


def show_plans(model: nn.Module, anatomy: Anatomy) -> None:
    """Freeze by each plan, and print what of each part trains."""
    for plan, selectors in anatomy.plans.items():
        tk.freeze(model, except_=selectors)
        print(f"{plan}: except_={selectors}")
        for path in anatomy.parts:
            held, trains = counts(model, path)
            if trains:
                print(f"  {path:<18} {trains:>11,}  {'all' if trains == held else f'of {held:,}'}")


def frozen_norms_stay(model: nn.Module) -> bool:
    """Run in training mode and see whether batch norm of a frozen backbone kept its statistics."""
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    model.train()
    model.backbone(torch.rand(2, 3, 64, 64))
    return all(torch.equal(before[name], value) for name, value in model.backbone.named_buffers())


def main() -> None:
    torch.manual_seed(0)
    for name, anatomy in MODELS.items():
        model = anatomy.build()
        print(f"\n{name}")
        show_maps(model, anatomy)
        show_plans(model, anatomy)

    model = MODELS["FCN"].build()
    print("\nbatch norm of a backbone whose parameters are frozen, after a step in training mode")
    model.backbone.requires_grad_(False)
    print(f"  by requires_grad alone: {'kept' if frozen_norms_stay(model) else 'moved'}")
    tk.freeze(model, except_="classifier")
    print(f"  by transferkit.freeze:  {'kept' if frozen_norms_stay(model) else 'moved'}")
    print(f"\n{tk.summary(model)}")


if __name__ == "__main__":
    main()
