"""Features as arrays: what the head is given, once, in the order of the images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from torch import nn

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.errors import ArgumentError, DataError
from transferkit.features import stored

EXACT = {"device": "cpu", "precision": "fp32"}


def given_to_the_head(model, part):
    """What the head of the model is given for each image: a hook on the model itself, image after image."""
    model, rows = copy.deepcopy(model).eval(), []
    head = model.get_submodule(tk.spec_of(model).head)
    head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].detach()))
    with torch.no_grad():
        for image, _ in part:
            model(tk.spec_of(model).preprocessing(image)[None])
    return torch.cat(rows).numpy()


def test_features_are_what_the_head_is_given(tiny_model, tiny_part):
    model, part = tiny_model(), tiny_part(45)
    features = tk.extract_features(model, part, **EXACT)
    np.testing.assert_allclose(features.x, given_to_the_head(model, part), rtol=1e-5, atol=1e-6)
    assert features.x.dtype == np.float32
    assert features.y.tolist() == part.targets.tolist()
    assert features.y.dtype == np.int64
    assert features.ids == part.ids
    assert features.classes == part.classes
    assert len(features) == 45


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vgg11"])
def test_features_in_fp32_differ_by_less_than_a_hundred_thousandth(name, tiny_part, monkeypatch):
    monkeypatch.setattr("transferkit.inference._FOLDING_PAYS", 0)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    head = {
        "resnet18": "fc",
        "mobilenet_v3_small": "classifier.3",
        "densenet121": "classifier",
        "vgg11": "classifier.6",
    }
    set_spec(model, tk.BackboneSpec(name, head[name], tk.Preprocessing(size=48)))
    part = tiny_part(4)
    features = tk.extract_features(model, part, **EXACT)
    expected = given_to_the_head(model, part)
    assert np.linalg.norm(features.x - expected) / np.linalg.norm(expected) < 1e-5


def test_the_model_is_left_as_it_was(tiny_model, tiny_part):
    model = tk.freeze(tiny_model().train(), except_="body.0")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    trains = [parameter.requires_grad for parameter in model.parameters()]
    tk.extract_features(model, tiny_part(), **EXACT)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_result_goes_into_scikit_learn(tiny_model, tiny_part):
    model = tiny_model()
    train = tk.extract_features(model, tiny_part(60, noise=10), **EXACT)
    test = tk.extract_features(model, tiny_part(40, noise=10, seed=1), **EXACT)
    assert LogisticRegression(C=100, max_iter=1000).fit(train.x, train.y).score(test.x, test.y) > 0.9


def test_maps_are_averaged_over_their_positions(tiny_part):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=2)
    set_spec(model, tk.BackboneSpec("squeezenet1_1", "classifier.1", tk.Preprocessing(size=48)))
    part = tiny_part(3)
    features = tk.extract_features(model, part, **EXACT)
    maps = given_to_the_head(model, part)
    assert maps.ndim == 4
    np.testing.assert_allclose(features.x, maps.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)


def test_splits_stand_for_their_training_part(tiny_model):
    splits = tk.load_dataset("digits", shots=1)
    assert len(tk.extract_features(tiny_model(10), splits, **EXACT)) == 10


def test_an_untraceable_model_is_understood_too(tiny_part):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(192, 6)
            self.fc = nn.Linear(6, 2)

        def forward(self, images):
            if bool(images.isnan().any()):
                raise ValueError("there are holes in the images")
            return self.fc(self.body(images.flatten(1)))

    model = set_spec(Careful(), tk.BackboneSpec("custom", "fc", tk.Preprocessing(size=8)))
    part = tiny_part(5)
    features = tk.extract_features(model, part, **EXACT)
    np.testing.assert_allclose(features.x, given_to_the_head(model, part), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_extracted_is_said(tiny_model, tiny_part):
    with pytest.raises(DataError, match=r"^The 'train' part is empty; at least one image is needed\.$"):
        tk.extract_features(tiny_model(), tiny_part().take([]))
    ready = [(torch.zeros(3, 8, 8), 0)] * 2
    with pytest.raises(DataError, match="gives float tensors instead"):
        tk.extract_features(tiny_model(), ready)
    with pytest.raises(ArgumentError, match=r"^This Linear has no spec; give it one"):
        tk.extract_features(nn.Linear(2, 2), tiny_part())
    execution = tk.resolve_execution(tiny_model(), device="cpu")
    with pytest.raises(
        ArgumentError, match=r"^The 'precision' parameter of extract_features must be left out beside"
    ):
        tk.extract_features(tiny_model(), tiny_part(), precision="fp32", execution=execution)


def test_every_device_gives_the_same_features(tiny_model, tiny_part, device):
    part = tiny_part(40)
    expected = given_to_the_head(tiny_model(), part)
    features = tk.extract_features(tiny_model(), part, device=device, precision="fp32")
    np.testing.assert_allclose(features.x, expected, rtol=1e-4, atol=1e-5)


def test_batches_of_extraction_change_nothing(tiny_model, tiny_part, monkeypatch):
    part = tiny_part(21)
    expected = tk.extract_features(tiny_model(), part, **EXACT).x
    monkeypatch.setattr("transferkit.features.extract.BATCH_SIZE", 5)
    monkeypatch.setattr(stored, "BATCH_SIZE", 5)
    np.testing.assert_allclose(
        tk.extract_features(tiny_model(), part, **EXACT).x, expected, rtol=1e-5, atol=1e-6
    )
