"""Two modules have one fingerprint only if they compute the same."""

from __future__ import annotations

import copy
import importlib.util
import sys

import torch
from torch import fx, nn
from torchvision import models

from transferkit.features.fingerprint import module_fingerprint


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_equal_modules_have_equal_fingerprints():
    model = network()
    again = copy.deepcopy(model)
    assert module_fingerprint(model) == module_fingerprint(again)
    assert module_fingerprint(model.to(memory_format=torch.channels_last)) == module_fingerprint(again)


def test_what_changes_outputs_changes_the_fingerprint():
    model = network()
    prints = {module_fingerprint(model)}
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-6
    prints.add(module_fingerprint(model))
    model[1].running_mean[0] = 3
    prints.add(module_fingerprint(model))
    model[2] = nn.GELU()
    prints.add(module_fingerprint(model))
    model[1].eps = 1e-3
    prints.add(module_fingerprint(model))
    prints.add(module_fingerprint(model.to(torch.bfloat16)))
    assert len(prints) == 6


def test_the_code_of_a_graph_counts():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, images):
            return images * self.factor

    first, second = fx.symbolic_trace(Scaled(2.0)), fx.symbolic_trace(Scaled(3.0))
    assert module_fingerprint(first) != module_fingerprint(second)


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_file_of_a_users_class_counts(tmp_path):
    helper = "def helper(x):\n    return x * {}\n"
    net = "class Net(nn.Module):\n    def forward(self, x):\n        return helper(x)\n"
    source = f"from torch import nn\n{helper}{net}"
    prints = []
    for factor in (2, 2, 3):
        path = tmp_path / f"users_net_{len(prints)}.py"
        path.write_text(source.format(factor))
        module = load(path, "users_net")
        prints.append(module_fingerprint(module.Net()))
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


def test_a_class_without_source_has_no_fingerprint():
    namespace = {"nn": nn, "__name__": "typed_at_a_prompt"}
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return x\n", namespace)
    assert module_fingerprint(namespace["Net"]()) is None


def test_the_seed_is_the_only_thing_that_tells_two_resnets_apart(device):
    torch.manual_seed(0)
    first = models.resnet18(weights=None)
    torch.manual_seed(0)
    second = models.resnet18(weights=None)
    assert module_fingerprint(first.to(device)) == module_fingerprint(second)
