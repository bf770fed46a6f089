"""The model is cut where that changes nothing, and runs whole where it would."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.features.split import head_features, split_at_head, why_not_split
from transferkit.loading.batches import Batch, TensorBatches
from transferkit.runtime import resolve_execution

HEADS = {
    "resnet18": "fc",
    "vgg11": "classifier.6",
    "mobilenet_v3_small": "classifier.3",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
}


def model_and_batch(name, device):
    model = torchvision.models.get_model(name, weights=None, num_classes=3).to(device)
    spec = tk.BackboneSpec(name, HEADS[name], tk.Preprocessing(size=64))
    model = tk.freeze(set_spec(model, spec), except_="head")
    inputs = torch.randn(4, 3, 64, 64, device=device)
    return model, Batch(inputs, torch.zeros(4, dtype=torch.int64, device=device), torch.arange(4).numpy())


@pytest.mark.parametrize("name", [name for name in HEADS if name != "squeezenet1_1"])
def test_features_and_suffix_give_the_models_logits(name, device):
    model, batch = model_and_batch(name, device)
    execution = resolve_execution(model, device=device, precision="fp32")
    split = split_at_head(model)
    assert why_not_split(split, batch, execution) is None
    source = TensorBatches(batch.inputs, batch.targets.cpu().numpy(), device=device, batch_size=3)
    features, targets = head_features(split, source, execution)
    assert len(features) == len(targets) == 4
    with torch.no_grad():
        expected = model.eval()(batch.inputs)
        torch.testing.assert_close(split.suffix.eval()(features.to(device)), expected, rtol=1e-4, atol=1e-5)


def test_dropout_before_the_head_trains_with_it(device):
    model, _ = model_and_batch("vgg11", device)
    suffix = split_at_head(model).suffix
    assert [type(layer) for layer in suffix] == [nn.ReLU, nn.Dropout, nn.Linear]


def test_what_follows_the_head_forbids_the_cut(device):
    model, batch = model_and_batch("squeezenet1_1", device)
    execution = resolve_execution(model, device=device, precision="fp32")
    reason = why_not_split(split_at_head(model), batch, execution)
    assert reason == "the head is not the model's last operation"


class Noisy(nn.Module):
    """Dropout that is not in front of the head in a Sequential."""

    def __init__(self, probability):
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.dropout = nn.Dropout(probability)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.dropout(self.body(images.flatten(1))))


@pytest.mark.parametrize(("probability", "cut"), [(0.0, True), (0.5, False)])
def test_something_random_before_the_head_forbids_the_cut(probability, cut, device):
    model = tk.freeze(Noisy(probability), except_="fc").to(device)
    batch = Batch(torch.randn(4, 3, 2, 2, device=device), torch.zeros(4), torch.arange(4).numpy())
    execution = resolve_execution(model, device=device, precision="fp32")
    reason = why_not_split(split_at_head(model), batch, execution)
    assert reason == (None if cut else "what stands before the head differs between training and use")


def test_modes_are_left_as_they_were(device):
    model, batch = model_and_batch("resnet18", device)
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    split = split_at_head(model)
    why_not_split(split, batch, resolve_execution(model, device=device, precision="fp32"))
    assert {name: module.training for name, module in model.named_modules()} == modes
