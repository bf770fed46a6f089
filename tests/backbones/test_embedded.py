"""The backbone that ships with the package."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest
import torch
from safetensors import safe_open

import transferkit as tk
from transferkit.backbones.embedded import embedded_record
from transferkit.errors import ArgumentError

FOLDER = resources.files("transferkit.backbones").joinpath("weights")


def test_it_is_as_small_as_promised():
    model = tk.load_backbone("mini")
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert tk.spec_of(model).preprocessing.size == 32
    data = FOLDER.joinpath("mini.safetensors").read_bytes()
    assert len(data) <= 3_500_000
    with resources.as_file(FOLDER.joinpath("mini.safetensors")) as path, safe_open(path, "pt") as file:
        names = file.keys()
        dtypes = {file.get_tensor(name).dtype for name in names}
    assert dtypes == {torch.float16, torch.int64}


def test_its_record_tells_how_it_came_to_be():
    record = embedded_record()
    assert {"data", "licence_note", "command", "figures", "classes", "sha256"} <= record.keys()
    data = FOLDER.joinpath("mini.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    model = tk.load_backbone("mini")
    assert tk.class_names(model) == tuple(record["classes"])
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_weights_by_name_or_not_at_all():
    first, second = tk.load_backbone("mini"), tk.load_backbone("mini", weights="imagenet200")
    assert torch.equal(first.fc.weight, second.fc.weight)
    assert tk.load_backbone("mini", weights=None, num_classes=5).fc.out_features == 5
    with pytest.raises(ArgumentError, match="weights"):
        tk.load_backbone("mini", weights="imagenet")


@pytest.mark.parametrize("size", [16, 32, 33, 47, 64, 65])
def test_it_takes_other_sizes(size, device):
    model = tk.load_backbone("mini", image_size=size, num_classes=3, device=device)
    assert tk.spec_of(model).preprocessing.size == size
    assert model(torch.randn(2, 3, size, size, device=device)).shape == (2, 3)


@pytest.mark.real_data
@pytest.mark.slow
def test_a_logistic_regression_on_its_features_reads_cifar10(real_data):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = tk.load_dataset(real_data / "data" / "cifar10_10pct", val=0)
    model = tk.load_backbone("mini").eval()
    model.fc = torch.nn.Identity()
    preprocessing = tk.spec_of(model).preprocessing
    features = {}
    for part in (splits.train, splits.test):
        images = torch.stack([preprocessing(part[index][0]) for index in range(len(part))])
        with torch.no_grad():
            features[part.name] = torch.cat([model(batch) for batch in images.split(500)]).numpy()
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    regression.fit(features["train"], splits.train.targets)
    assert regression.score(features["test"], splits.test.targets) >= 0.65
