"""A model folder reloads with nothing but transferkit, and a damaged one is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    OutputError,
    WeightsMismatchError,
)

# Small enough to run one after another: the sizes are the smallest that each takes.
FAMILIES = {
    "mini": 32,
    "alexnet": 64,
    "googlenet": 64,
    "inception_v3": 75,
    "mnasnet0_75": 32,
    "resnet18": 32,
    "squeezenet1_1": 32,
    "vit_b_32": 32,
}


def logits(model, size):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, size, size, generator=generator))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reloaded_model_gives_the_same_logits(name, tmp_path):
    size = FAMILIES[name]
    model = tk.load_backbone(name, weights=None, image_size=size)
    tk.replace_head(model, 3, classes=["ant", "bee", "wasp"])
    tk.save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]
    again = tk.load_model(tmp_path)
    assert torch.equal(logits(again, size), logits(model, size))
    assert tk.spec_of(again) == tk.spec_of(model)
    assert tk.class_names(again) == ("ant", "bee", "wasp")
    assert not again.training


def test_both_files_can_be_read_by_the_same_people(tmp_path):
    tk.save_model(tk.load_backbone("mini", weights=None, num_classes=2), tmp_path)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_heads_with_dropout_are_rebuilt(head, tmp_path):
    model = tk.load_backbone("mini", weights=None)
    tk.replace_head(model, 4, head=head, dropout=0.3)
    again = tk.load_model(tk.save_model(model, tmp_path))
    assert torch.equal(logits(again, 32), logits(model, 32))
    assert any(isinstance(module, nn.Dropout) and module.p == 0.3 for module in again.modules())


def test_an_original_head_is_rebuilt(tmp_path):
    model = tk.load_backbone("mini", weights=None, num_classes=6)
    again = tk.load_model(tk.save_model(model, tmp_path))
    assert torch.equal(logits(again, 32), logits(model, 32))


def test_channels_last_weights_are_saved_with_their_values(tmp_path):
    model = tk.load_backbone("mini", weights=None).to(memory_format=torch.channels_last)
    again = tk.load_model(tk.save_model(model, tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(12, 2)

    def forward(self, images):
        return self.fc(self.second(self.first(images.flatten(1))))


def tied():
    return tk.attach_spec(Tied(), head="fc", preprocessing=tk.Preprocessing(size=2))


def test_tied_weights_of_a_users_own_module(tmp_path):
    model, fresh = tied(), tied()
    tk.save_model(model, tmp_path)
    again = tk.load_model(tmp_path, into=fresh)
    assert again is fresh
    assert again.second.weight is again.first.weight
    assert torch.equal(logits(again, 2), logits(model, 2))


def test_a_users_own_module_must_be_passed_in(tmp_path):
    tk.save_model(tied(), tmp_path)
    with pytest.raises(ArgumentError, match=r"build it and pass it as load_model\(folder, into=model\)\.$"):
        tk.load_model(tmp_path)
    with pytest.raises(WeightsMismatchError, match="do not fit the model, first at"):
        tk.load_model(tmp_path, into=tk.load_backbone("mini", weights=None))


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    model = tk.load_backbone("resnet18", weights=None, num_classes=2, norm_layer=nn.InstanceNorm2d)
    with pytest.raises(ArgumentError, match="must be numbers, texts, lists or dicts to be saved"):
        tk.save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/model.* cannot be written"):
        tk.save_model(tk.load_backbone("mini", weights=None), tmp_path / "file" / "model")


def swap_pool(model):
    model.pool[0] = nn.AdaptiveMaxPool2d(1)


def swap_head(model):
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 2))


@pytest.mark.parametrize("change", [swap_pool, swap_head])
def test_a_model_that_was_changed_by_hand_is_not_rebuilt_as_another_one(tmp_path, change):
    model = tk.load_backbone("mini", weights=None, num_classes=2)
    change(model)
    tk.save_model(model, tmp_path)
    with pytest.raises(ArgumentError, match=r"build it and pass it as load_model\(folder, into=model\)\.$"):
        tk.load_model(tmp_path)
    fresh = tk.load_backbone("mini", weights=None, num_classes=2)
    change(fresh)
    assert torch.equal(logits(tk.load_model(tmp_path, into=fresh), 32), logits(model, 32))


def test_stale_class_names_are_not_saved(tmp_path):
    model = tk.load_backbone("mini", weights=None)
    tk.replace_head(model, 2, classes=["ant", "bee"])
    model.fc = nn.Linear(512, 3)
    again = tk.load_model(tk.save_model(model, tmp_path))
    assert tk.class_names(again) is None
    assert again.fc.out_features == 3


def test_a_saved_copy_is_independent(tmp_path):
    model = tk.load_backbone("mini", weights=None, num_classes=2)
    tk.save_model(model, tmp_path)
    before = copy.deepcopy(tk.load_model(tmp_path).state_dict())
    with torch.no_grad():
        model.fc.weight.add_(1)
    assert torch.equal(tk.load_model(tmp_path).fc.weight, before["fc.weight"])


def test_an_empty_folder_holds_no_model(tmp_path):
    message = r"^There is no model in .*; model\.json and weights\.safetensors are needed\.$"
    with pytest.raises(CheckpointError, match=message):
        tk.load_model(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    tk.save_model(tk.load_backbone("mini", weights=None, num_classes=2), tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointCorruptError, match=rf"{name} is damaged"):
        tk.load_model(tmp_path)


def test_the_record_tells_of_the_weights(tmp_path):
    tk.save_model(tk.load_backbone("mini", weights=None, num_classes=2), tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    data = (tmp_path / "weights.safetensors").read_bytes()
    assert record["weights"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert record["format"] == 2


def test_builder_arguments_come_back_as_json_has_them(tmp_path):
    model = tk.load_backbone("mobilenet_v2", weights=None, num_classes=2, width_mult=0.25)
    again = tk.load_model(tk.save_model(model, tmp_path))
    assert tk.spec_of(again).builder_kwargs == {"width_mult": 0.25}
    assert torch.equal(again.features[0][0].weight, model.features[0][0].weight)


def test_an_argument_that_is_not_a_number_is_refused_before_anything_is_written(tmp_path):
    model = tk.load_backbone("mini", weights=None)
    spec = dataclasses.replace(tk.spec_of(model), builder_kwargs={"scale": float("nan")})
    with pytest.raises(ArgumentError, match="must be numbers, texts, lists or dicts to be saved"):
        tk.save_model(set_spec(model, spec), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_record_without_the_memory_format_loads_as_it_did(tmp_path):
    model = tk.load_backbone("mini", weights=None, num_classes=2).to(memory_format=torch.channels_last)
    tk.save_model(model, tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record.pop("channels_last") is True
    record["checksum"] = None
    (tmp_path / "model.json").write_text(json.dumps(record))
    again = tk.load_model(tmp_path)
    assert all(weight.is_contiguous() for weight in again.parameters())
    assert torch.equal(again.fc.weight, model.fc.weight)


def test_a_name_that_is_too_long_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read: File name too long\.$"):
        tk.load_model(tmp_path / ("a" * 300))


def test_unknown_fields_of_a_later_version_do_no_harm(tmp_path):
    tk.save_model(tk.load_backbone("mini", weights=None, num_classes=2), tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    record["spec"]["something_new"] = 1
    record["checksum"] = None
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert tk.load_model(tmp_path).fc.out_features == 2
