"""A model of timm is loaded, adapted, saved and used like any other backbone."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.backbones.stages import stage_indices
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    DownloadError,
    MissingExtraError,
    UnknownNameError,
    WeightsMismatchError,
)
from transferkit.features.split import split_model

timm = pytest.importorskip("timm", reason="needs the extra 'timm'")

# The smallest of several kinds: convolutions, a convolution as head, attention, windows, squeeze and excite.
SMALL = {
    "convnext_atto": 64,
    "lcnet_035": 64,
    "mobilenetv3_small_050": 64,
    "resnet10t": 64,
    "swin_tiny_patch4_window7_224": 224,
    "test_vit": 160,
    "vit_tiny_patch16_224": 64,
}


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, size):
    return model.eval()(images(size))


@pytest.fixture
def server(monkeypatch):
    """What timm fetches comes from here: ``server(state)`` sets it."""

    def serve(state):
        builder = sys.modules["timm.models._builder"]
        monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
        monkeypatch.setattr("transferkit.backbones.timm.check_reachable", lambda *_: None)

    return serve


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_timms_own_and_comes_back_from_a_folder(name, tmp_path, no_network):
    size = SMALL[name]
    model = tk.load_backbone(f"timm/{name}", weights=None, num_classes=3, image_size=size)
    fixed = {"img_size": size} if name.startswith("vit") else {}
    expected = timm.create_model(name, num_classes=3, **fixed)
    assert repr(model) == repr(expected)
    assert model.state_dict().keys() == expected.state_dict().keys()
    tk.replace_head(model, 4, classes=["a", "b", "c", "d"])
    assert logits(model, size).shape == (2, 4)
    again = tk.load_model(tk.save_model(model, tmp_path))
    assert torch.equal(logits(again, size), logits(model, size))
    assert tk.spec_of(again) == tk.spec_of(model)


@pytest.mark.parametrize("name", SMALL)
def test_head_stages_and_freezing_of_each_kind(name, device):
    model = tk.load_backbone(f"timm/{name}", weights=None, num_classes=5, image_size=SMALL[name]).to(device)
    spec = tk.spec_of(model)
    assert spec.head == model.default_cfg["classifier"]
    assert spec.stages[0].name == "stem"
    assert len(spec.stages) >= 4
    assert set(stage_indices(model).values()) == set(range(len(spec.stages) + 1))
    tk.freeze(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(images(SMALL[name]).to(device)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert split_model(model).where.startswith(("before", "after"))


def test_stages_are_the_groups_of_timms_layer_decay():
    model = tk.load_backbone("timm/vit_tiny_patch16_224", weights=None, num_classes=3)
    indices = stage_indices(model)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {name: indices[name] for name in groups if not name.startswith("head.")} == {
        name: group for name, group in groups.items() if not name.startswith("head.")
    }
    assert len(tk.spec_of(model).stages) == 13


@pytest.mark.parametrize("name", SMALL)
def test_preprocessing_is_what_timm_does(name):
    """To rounding: timm normalises after it has converted, by a factor."""
    spec = tk.spec_of(tk.load_backbone(f"timm/{name}", weights=None, num_classes=2))
    model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((600, 500), Image.Resampling.BICUBIC)
    torch.testing.assert_close(spec.preprocessing(photo), transform(photo), rtol=0, atol=1e-5)


def test_default_weights_bring_names_of_classes_and_their_tag(server):
    state = timm.create_model("resnet10t").state_dict()
    server(state)
    model = tk.load_backbone("timm/resnet10t.c3_in1k")
    spec = tk.spec_of(model)
    assert (spec.weights, spec.num_classes) == ("c3_in1k", 1000)
    assert tk.class_names(model)[0].startswith("tench")
    assert len(set(tk.class_names(model))) == 1000
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    small = tk.load_backbone("timm/resnet10t", weights="c3_in1k", num_classes=2)
    assert small(images(64)).shape == (2, 2)
    assert torch.equal(small.conv1[0].weight, state["conv1.0.weight"])
    assert tk.class_names(small) is None


def test_weights_without_a_head_get_a_new_one(server, no_network, monkeypatch):
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    server(state)
    changed_source(monkeypatch, "resnet10t", num_classes=0)
    timms_own(monkeypatch, "resnet10t", num_classes=0)
    model = tk.load_backbone("timm/resnet10t", num_classes=3)
    assert model(images(64)).shape == (2, 3)
    assert torch.equal(model.conv1[0].weight, state["conv1.0.weight"])
    assert tk.class_names(model) is None
    with pytest.warns(
        UserWarning, match="have no head; the new one is random, with 1000 outputs, until it is"
    ):
        assert tk.load_backbone("timm/resnet10t")(images(64)).shape == (2, 1000)


def test_a_file_is_loaded_and_its_position_embeddings_fit(tmp_path):
    state = timm.create_model("test_vit", num_classes=6).state_dict()
    torch.save(state, tmp_path / "mine.pth")
    model = tk.load_backbone("timm/test_vit", weights=tmp_path / "mine.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    larger = tk.load_backbone("timm/test_vit", weights=tmp_path / "mine.pth", image_size=192)
    assert logits(larger, 192).shape == (2, 6)
    resampled = timm.layers.resample_abs_pos_embed(state["pos_embed"], [12, 12], num_prefix_tokens=1)
    assert torch.equal(larger.pos_embed, resampled)
    with pytest.raises(WeightsMismatchError, match="does not fit this"):
        tk.load_backbone("timm/resnet10t", weights=tmp_path / "mine.pth")


def test_a_run_is_trained_and_used_in_one_call(tmp_path, tiny_part, device):
    train, val = tiny_part(16), tiny_part(8, seed=1, name="val")
    model = tk.load_backbone("timm/resnet10t", weights=None, image_size=32)
    tk.replace_head(model, 2, classes=train.classes)
    trainer = tk.Trainer(model, recipe="lp-ft", batch_size=8, device=device, run_dir=tmp_path, progress=False)
    assert len(trainer.fit(train, val, epochs=2)) == 2
    prediction = tk.Predictor.load(tmp_path, device=device)(np.zeros((40, 50, 3), dtype=np.uint8))
    assert {entry["label"] for entry in prediction} == set(train.classes)


# --- names and arguments


def test_names_are_listed_where_they_are_asked_for():
    names = tk.list_backbones("timm/resnet10t*")
    assert names[:2] == ["timm/resnet10t", "timm/resnet10t.c3_in1k"]
    assert len(tk.list_backbones("timm/*")) > 1000
    assert not any(name.startswith("timm/") for name in tk.list_backbones())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet10tt", r"^timm has no model 'resnet10tt'\. Did you mean 'resnet10t'"),
        ("timm/resnet10t.c4_in1k", r"^timm has no weights 'c4_in1k' of 'resnet10t'\. Did you mean 'c3_in1k'"),
        ("timm/hf-hub:someone/something", r"^timm has no model 'hf-hub:someone/something'"),
        ("timm/local-dir:/tmp", r"^timm has no model 'local-dir:/tmp'"),
        ("timm/", r"^timm has no model ''"),
    ],
)
def test_unknown_names_are_told(name, message, no_network):
    with pytest.raises(UnknownNameError, match=message):
        tk.load_backbone(name)


def test_an_unknown_tag_is_told():
    with pytest.raises(ArgumentError, match=r"must be one of 'default', 'c3_in1k'. Got 'c4_in1k' instead"):
        tk.load_backbone("timm/resnet10t", weights="c4_in1k")


@pytest.mark.parametrize(
    "argument", ["pretrained", "checkpoint_path", "pretrained_cfg", "in_chans", "pruned"]
)
def test_arguments_that_are_transferkits_own_are_refused(argument):
    with pytest.raises(ArgumentError, match=f"The '{argument}' parameter of .* must be left out"):
        tk.load_backbone("timm/resnet10t", weights=None, **{argument: "x"})


def test_arguments_that_a_model_does_not_have_are_told():
    with pytest.raises(ArgumentError, match=r"^timm cannot build 'timm/resnet10t' as asked: .*'depth'"):
        tk.load_backbone("timm/resnet10t", weights=None, depth=3)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet10t", {"act_layer": "nope"}),
        ("resnet10t", {"block": "x"}),
        ("vit_tiny_patch16_224", {"patch_size": 0}),
        ("vit_tiny_patch16_224", {"num_heads": 0, "depth": 1}),
    ],
)
def test_arguments_that_make_no_sense_are_told(name, arguments):
    with pytest.raises(ArgumentError, match=rf"^timm cannot build 'timm/{name}' as asked: .*\.$"):
        tk.load_backbone(f"timm/{name}", weights=None, **arguments)


def test_a_size_is_tried_without_memory_and_not_when_a_model_is_loaded(tmp_path, monkeypatch):
    """An image of 100,000 px would take 120 GB."""
    assert tk.load_backbone("timm/resnet10t", weights=None, image_size=100_000) is not None
    model = tk.load_backbone("timm/resnet10t", weights=None, num_classes=2, image_size=96)
    tk.save_model(model, tmp_path)

    def refuse(*_):
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", refuse)
    again = tk.load_model(tmp_path)
    assert tk.spec_of(again).preprocessing.size == 96


def test_a_size_that_does_not_work_is_refused():
    with pytest.raises(
        ArgumentError, match=r"'image_size' parameter of load_backbone must be a side that 'timm"
    ):
        tk.load_backbone("timm/convnext_atto", weights=None, image_size=2)


def changed_source(monkeypatch, name, **changes):
    models = sys.modules["timm.models"]
    source = models.get_pretrained_cfg(name)
    monkeypatch.setattr(models, "get_pretrained_cfg", lambda _: dataclasses.replace(source, **changes))


def timms_own(monkeypatch, name, **changes):
    """Change what timm itself knows of the weights of a model."""
    configs = sys.modules["timm.models._registry"]._model_pretrained_cfgs
    for key in [key for key in configs if key.partition(".")[0] == name]:
        monkeypatch.setitem(configs, key, dataclasses.replace(configs[key], **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
        ({"input_size": (1, 224, 224)}, r"input_size=\(1, 224, 224\)"),
        ({"input_size": (3, 224, 192)}, r"input_size=\(3, 224, 192\)"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_told(monkeypatch, changes, named):
    changed_source(monkeypatch, "resnet10t", **changes)
    with pytest.raises(ArgumentError, match=rf"are prepared with {named}, .*; pass preprocessing=\.\.\.$"):
        tk.load_backbone("timm/resnet10t", weights=None)


def test_squashed_images_are_squashed(monkeypatch):
    changed_source(monkeypatch, "resnet10t", crop_mode="squash", crop_pct=0.9)
    record = tk.spec_of(tk.load_backbone("timm/resnet10t", weights=None)).preprocessing
    assert (record.crop, record.resize, record.size) == ("squash", 195, 176)


def test_what_is_no_classifier_is_told():
    message = "'timm/mobilenetv5_300m_enc' is no classifier as it is built"
    with torch.device("meta"), pytest.raises(ArgumentError, match=message):
        tk.load_backbone("timm/mobilenetv5_300m_enc", weights=None)
    with pytest.raises(
        ArgumentError, match="'timm/qwen3_vit_306m_enc' is no classifier: timm gives it no head"
    ):
        tk.load_backbone("timm/qwen3_vit_306m_enc", weights=None)


def test_groups_that_timm_has_only_fine_are_stages_too():
    with torch.device("meta"):
        model = tk.load_backbone("timm/rdnet_tiny", weights=None, num_classes=2)
    assert set(stage_indices(model).values()) == set(range(len(tk.spec_of(model).stages) + 1))


def test_two_heads_are_not_offered():
    with pytest.raises(ArgumentError, match=r"has the heads head, head_dist, and only models with one"):
        tk.load_backbone("timm/deit_tiny_distilled_patch16_224", weights=None)


# --- strangers, networks and extras


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(name="timm/hf-hub:someone/something"),
        lambda spec: spec.update(name="timm/local-dir:/tmp"),
        lambda spec: spec["builder_kwargs"].update(pretrained=True),
        lambda spec: spec["builder_kwargs"].update(checkpoint_path="/tmp/x.pth"),
        lambda spec: spec["builder_kwargs"].update(pretrained_cfg={"url": "https://example.org/x.pth"}),
    ],
    ids=["hub", "folder", "pretrained", "checkpoint", "url"],
)
def test_a_strangers_record_reaches_no_network_and_no_file(tmp_path, no_network, change):
    model = tk.load_backbone("timm/resnet10t", weights=None, num_classes=2)
    tk.save_model(model, tmp_path)
    record = json.loads((tmp_path / "model.json").read_text()) | {"checksum": None}
    change(record["spec"])
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointCorruptError, match=r"model\.json is damaged"):
        tk.load_model(tmp_path)


def test_without_a_network_it_is_one_sentence(monkeypatch, tmp_path, no_network):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'hf'")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DownloadError, match=r"^The model 'timm/resnet10t' is not in the cache .*weights=None"
    ):
        tk.load_backbone("timm/resnet10t")


def test_without_the_extra_its_name_is_told(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, module, None)
    message = r"^The backbone 'timm/resnet10t' needs timm, .* pip install 'transferkit\[timm\]'$"
    with pytest.raises(MissingExtraError, match=message):
        tk.load_backbone("timm/resnet10t", weights=None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transferkit\[timm\]'"):
        tk.list_backbones("timm/*")
    assert "resnet18" in tk.list_backbones()
