"""Two modules have one fingerprint only if they compute the same."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from tiny_models import save_tiny_hf, tiny_hf
from torch import fx, nn
from torchvision import models

import transferkit as tk
from transferkit.features.fingerprint import module_fingerprint
from transferkit.features.split import split_model


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).requires_grad_(False)


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
    first = models.resnet18(weights=None).requires_grad_(False)
    torch.manual_seed(0)
    second = models.resnet18(weights=None).requires_grad_(False)
    assert module_fingerprint(first.to(device)) == module_fingerprint(second)


def test_what_trains_plays_no_role():
    model = network()
    before = module_fingerprint(model)
    model[0].requires_grad_(True)
    without = module_fingerprint(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert module_fingerprint(model) == without != before


def test_attributes_count_and_what_cannot_be_told_has_no_fingerprint():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, norm_first=first) for first in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert module_fingerprint(layers[0]) != module_fingerprint(layers[1])
    model = network()
    model[2].helper = object()
    assert module_fingerprint(model) is None
    hooked = network()
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert module_fingerprint(hooked) is None
    replaced = network()
    replaced[0].forward = lambda images: images
    assert module_fingerprint(replaced) is None


def of_frozen(model):
    """The fingerprint of what is before the head."""
    tk.freeze(model)
    return module_fingerprint(split_model(model).prefix)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_a_model_of_transformers_is_the_same_after_it_was_saved(kind, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra 'hf'")
    save_tiny_hf(tmp_path / "source", kind)
    model = tk.load_backbone(f"hf/{tmp_path / 'source'}", num_classes=4)
    before = of_frozen(model)
    again = tk.load_model(tk.save_model(model, tmp_path / "saved"))
    assert before is not None
    assert of_frozen(again) == before


def test_labels_are_no_part_of_a_model_of_transformers_and_settings_are():
    pytest.importorskip("transformers", reason="needs the extra 'hf'")

    def print_of(labels=("ant", "bee"), kernel="sdpa", **fields):
        torch.manual_seed(0)
        body = tiny_hf("vit", labels, **fields).vit
        body.config._attn_implementation = kernel
        return module_fingerprint(body.requires_grad_(False))

    prints = [print_of(), print_of(("a", "b", "c")), print_of(hidden_act="relu"), print_of(kernel="eager")]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert None not in prints
