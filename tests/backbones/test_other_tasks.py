"""Models of torchvision's that do something else are refused by what they do."""

from __future__ import annotations

import pytest
from torchvision import models

import transferkit as tk
from transferkit.backbones.other_tasks import other_task
from transferkit.errors import UnknownNameError

TASKS = {
    models.detection: "detects objects in images",
    models.optical_flow: "estimates the motion between two images",
    models.quantization: "has 8-bit weights",
    models.segmentation: "labels each pixel of an image",
    models.video: "classifies videos",
}


@pytest.mark.parametrize("package", TASKS, ids=lambda package: package.__name__.rpartition(".")[2])
def test_the_error_says_what_they_do_and_what_is_offered(package):
    names = models.list_models(module=package)
    assert names
    for name in names:
        with pytest.raises(UnknownNameError) as caught:
            tk.load_backbone(name)
        sentence = str(caught.value)
        assert sentence.startswith(f"There is no backbone {name!r}: torchvision's model of that name ")
        assert TASKS[package] in sentence
        assert "transferkit offers models that classify images" in sentence
        assert "\n" not in sentence


def test_every_model_of_torchvision_is_offered_or_known_for_something_else():
    offered = set(tk.list_backbones())
    others = {name for name in models.list_models() if other_task(name) is not None}
    assert offered.isdisjoint(others)
    assert set(models.list_models()) <= offered | others


def test_for_a_quantized_model_the_plain_one_is_named():
    with pytest.raises(UnknownNameError, match=r"that classify images, such as 'resnet18'\.$"):
        tk.load_backbone("quantized_resnet18", weights=None)


@pytest.mark.parametrize("name", ["resnet18", "resnet_eighteen", "", None, ["resnet18"]])
def test_other_names_are_left_alone(name):
    assert other_task(name) is None
