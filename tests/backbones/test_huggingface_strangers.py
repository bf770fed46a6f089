"""Folders of Hugging Face models that are damaged, forged or odd: one sentence, at once, and no code."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import HF_PROCESSOR, TINY_HF, save_tiny_hf

import transferkit as tk
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    UnknownNameError,
    UnsafeCheckpointError,
    WeightsMismatchError,
)

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

POSITIONS = "vit.embeddings.position_embeddings"


@torch.no_grad()
def logits(model):
    return model.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def vit(tmp_path):
    """The folder of a small ViT with three classes."""
    save_tiny_hf(tmp_path / "vit")
    return tmp_path / "vit"


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def process(folder, **fields):
    (folder / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR | fields))


def reweigh(folder, change):
    """Let ``change`` work on the tensors of a folder's file."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({name: each.contiguous() for name, each in state.items()}, folder / "model.safetensors")


# --- code


def marked(folder, marker):
    """Put code beside a model that leaves a mark where it runs."""
    (folder / "code.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "code.Config",
        "AutoModelForImageClassification": "code.Model",
        "AutoImageProcessor": "code.Config",
    }
    return config


def test_code_beside_a_model_is_never_run(vit, tmp_path):
    config = marked(vit, tmp_path / "ran")
    (vit / "config.json").write_text(json.dumps(config))
    expected = logits(tk.load_backbone(f"hf/{vit}"))
    assert expected.shape == (2, 3)
    (vit / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    with pytest.raises(
        ArgumentError, match=r"Got 'mine' instead\. It has code of its own, which is never run"
    ):
        tk.load_backbone(f"hf/{vit}")
    assert not (tmp_path / "ran").exists()


def test_a_saved_model_is_rebuilt_without_its_source_or_a_network(vit, tmp_path, no_network):
    model = tk.load_backbone(f"hf/{vit}")
    tk.save_model(model, tmp_path / "saved")
    for file in vit.iterdir():
        file.unlink()
    again = tk.load_model(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    record = json.loads((tmp_path / "saved" / "model.json").read_text())
    assert record["spec"]["builder_kwargs"]["config"]["hidden_size"] == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(name="hf/someone/something", builder_kwargs={}),
        lambda spec: spec["builder_kwargs"].update(trust_remote_code=True),
        lambda spec: spec["builder_kwargs"]["config"].update(auto_map={"AutoConfig": "code.Config"}),
        lambda spec: spec["builder_kwargs"]["config"].update(attn_implementation="someone/kernels"),
        lambda spec: spec["builder_kwargs"]["config"].update(model_type="timm_wrapper"),
        lambda spec: spec["builder_kwargs"]["config"].update(num_hidden_layers=10**9),
        lambda spec: spec["builder_kwargs"]["config"].update(num_hidden_layers=100_000),
        lambda spec: spec["builder_kwargs"]["config"].update(hidden_act="os.system"),
    ],
    ids=["fetch", "trust", "auto_map", "kernels", "wrapper", "huge", "deep", "function"],
)
def test_a_strangers_record_reaches_no_network_and_runs_nothing(vit, tmp_path, no_network, change):
    tk.save_model(tk.load_backbone(f"hf/{vit}"), tmp_path / "saved")
    path = tmp_path / "saved" / "model.json"
    record = json.loads(path.read_text()) | {"checksum": None}
    change(record["spec"])
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointCorruptError, match=r"model\.json is damaged"):
        tk.load_model(tmp_path / "saved")


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_a_torch_file_runs_no_code(vit):
    (vit / "model.safetensors").unlink()
    (vit / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises((UnsafeCheckpointError, CheckpointCorruptError)):
        tk.load_backbone(f"hf/{vit}")


# --- more than there is


@pytest.mark.parametrize("layers", [1000, 10**6])
def test_layers_without_weights_are_refused_at_once(vit, layers):
    configure(vit, num_hidden_layers=layers)
    with pytest.raises(ArgumentError, match="it would have more layers than there are weights"):
        tk.load_backbone(f"hf/{vit}")


def test_classes_without_end_are_refused_at_once(vit):
    configure(vit, id2label=None, num_labels=3 * 10**7)
    with pytest.raises(ArgumentError, match=r"cannot be used: its 'num_labels' is 30000000\.$"):
        tk.load_backbone(f"hf/{vit}")


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 2**20}, {"intermediate_size": 2**20, "hidden_size": 2**15}]
)
def test_a_model_that_is_far_larger_than_its_file_takes_no_memory(vit, fields):
    configure(vit, **fields)
    with pytest.raises(
        WeightsMismatchError, match=r"does not fit this ViT.*: it has [\d,]+ numbers, and the"
    ):
        tk.load_backbone(f"hf/{vit}")


def test_images_without_end_are_refused_at_once(vit):
    with pytest.raises(WeightsMismatchError, match=r"it has 2,931 numbers, and the model 125,000,002,803\.$"):
        tk.load_backbone(f"hf/{vit}", image_size=10**6)
    process(vit, size={"height": 2**30, "width": 2**30})
    with pytest.raises(ArgumentError, match=r"cannot be followed: its 'size' is \{'height': 1073741824"):
        tk.load_backbone(f"hf/{vit}")


def test_a_head_without_columns_takes_no_memory(vit):
    reweigh(vit, lambda state: state.update({"classifier.weight": torch.zeros(2**22, 0)}))
    with pytest.raises(
        WeightsMismatchError, match=r"classifier\.weight \(\[4194304, 0\] in the file, \[3, 8\]"
    ):
        tk.load_backbone(f"hf/{vit}")


# --- weights of another kind


def as_kind(kind):
    def change(state):
        for name in [name for name in state if name.endswith("query.weight")]:
            state[name] = state[name].to(kind)

    return change


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.bool], ids=str)
@pytest.mark.parametrize("by_file", [False, True])
def test_weights_of_another_kind_are_refused(vit, kind, by_file):
    reweigh(vit, as_kind(kind))
    path = vit / "model.safetensors"
    message = rf"does not fit this ViTFor.*; of another kind: vit\..*query\.weight \({kind} in the file\)\.$"
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        tk.load_backbone(f"hf/{vit}", weights=path if by_file else "default")
    assert not by_file or str(caught.value).startswith(f"{path} does not fit")


@pytest.mark.parametrize("kind", ["vit", "resnet", "swin"])
def test_more_layers_than_the_config_has_are_refused(kind, tmp_path):
    save_tiny_hf(tmp_path, kind)
    deeper = {"vit": {"num_hidden_layers": 1}, "resnet": {"depths": [1, 1]}, "swin": {"depths": [1, 1]}}[kind]
    configure(tmp_path, **deeper)
    with pytest.raises(
        WeightsMismatchError, match=rf"does not fit this .*; unexpected: {kind}\..*, and \d+ more"
    ):
        tk.load_backbone(f"hf/{tmp_path}")


def test_more_layers_than_the_config_has_are_refused_without_a_head_too(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**TINY_HF["vit"])).save_pretrained(tmp_path)
    process(tmp_path)
    assert logits(tk.load_backbone(f"hf/{tmp_path}", num_classes=4)).shape == (2, 4)
    configure(tmp_path, num_hidden_layers=1)
    with pytest.raises(WeightsMismatchError, match=r"; unexpected: (vit\.)?layers\.1\..*, and \d+ more\.$"):
        tk.load_backbone(f"hf/{tmp_path}", num_classes=4)


def test_parts_for_other_tasks_and_buffers_of_older_versions_are_left_out(vit):
    expected = logits(tk.load_backbone(f"hf/{vit}"))

    def add(state):
        state["vit.pooler.dense.weight"] = torch.zeros(8, 8)
        state["vit.embeddings.mask_token"] = torch.zeros(1, 1, 8)
        state["vit.embeddings.position_ids"] = torch.arange(17)
        state["decoder.0.weight"] = torch.zeros(4, 8, 1, 1)

    reweigh(vit, add)
    assert torch.equal(logits(tk.load_backbone(f"hf/{vit}")), expected)


# --- odd values


@pytest.mark.parametrize("patch", [0, -8, [8], True, None, [[[8]]]])
def test_a_patch_of_no_size_is_refused(vit, patch):
    configure(vit, patch_size=patch)
    with pytest.raises(ArgumentError, match=r"The config of .* cannot be used: its 'patch_size' is "):
        tk.load_backbone(f"hf/{vit}")


def test_a_class_whose_number_has_thousands_of_digits_has_no_name(vit):
    configure(vit, id2label={"1" * 5000: "a"})
    assert tk.class_names(tk.load_backbone(f"hf/{vit}")) is None


@pytest.mark.parametrize("by_file", [False, True])
def test_a_head_that_is_a_number_is_told(vit, by_file):
    reweigh(vit, lambda state: state.update({"classifier.weight": torch.tensor(1.0)}))
    message = r"; of another shape: classifier\.weight \(\[\] in the file, \[3, 8\] in the model\)\.$"
    with pytest.raises(WeightsMismatchError, match=message):
        tk.load_backbone(f"hf/{vit}", weights=vit / "model.safetensors" if by_file else "default")


@pytest.mark.parametrize(
    "positions",
    [torch.zeros(1, 17, 8, dtype=torch.int64), torch.zeros(1, 17, 0), torch.zeros(3, 17, 8), torch.zeros(17)],
    ids=["whole numbers", "no width", "three of them", "one dimension"],
)
@pytest.mark.parametrize("size", [32, 64])
def test_position_embeddings_that_do_not_fit_are_told(vit, positions, size):
    reweigh(vit, lambda state: state.update({POSITIONS: positions}))
    with pytest.raises(WeightsMismatchError, match=rf"; of another (kind|shape): {POSITIONS} "):
        tk.load_backbone(f"hf/{vit}", image_size=size)


# --- names and files


@pytest.mark.parametrize(
    "name", ["../vit/model.safetensors", "/etc/passwd", "missing.safetensors", 3, f"{'a' * 300}.safetensors"]
)
def test_an_index_names_files_beside_it(vit, name):
    (vit / "model.safetensors").rename(vit / "elsewhere.safetensors")
    (vit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointCorruptError, match=r"index\.json is damaged: it names the weights '"):
        tk.load_backbone(f"hf/{vit}")


@pytest.mark.parametrize("weight_map", [[], {}, None, "x"])
def test_an_index_without_names_is_damaged(vit, weight_map):
    (vit / "model.safetensors").unlink()
    (vit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointCorruptError, match=r"index\.json is damaged: it names no weights\.$"):
        tk.load_backbone(f"hf/{vit}")


@pytest.mark.parametrize("name", ["hf/", "hf/a\0b"])
def test_nothing_is_no_name(name):
    with pytest.raises(
        UnknownNameError, match="After 'hf/' stands a folder that save_pretrained wrote, or the"
    ):
        tk.load_backbone(name)


@pytest.mark.parametrize(
    "name", ["hf/./nowhere", "hf//nowhere/at/all", "hf/a/b/c", "hf/~/nowhere/at/all", "hf/~nobody/x"]
)
def test_a_folder_that_is_not_there_is_told(name, no_network):
    with pytest.raises(CheckpointError, match=r"^There is no folder .*\.$"):
        tk.load_backbone(name)


def test_a_name_that_is_too_long_is_told(no_network):
    with pytest.raises(UnknownNameError, match="There is no model 'aaa"):
        tk.load_backbone("hf/" + "a" * 300)


def test_a_config_in_hand_may_say_how_many_classes_there_are(no_network):
    config = {"model_type": "vit", **TINY_HF["vit"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    model = tk.load_backbone("hf/x", weights=None, config=config, preprocessing=tk.Preprocessing(size=32))
    assert logits(model).shape == (2, 3)
