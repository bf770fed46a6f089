"""A Hugging Face classifier is loaded, adapted, saved and used like any other backbone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import HF_PROCESSOR, TINY_HF, save_tiny_hf, tiny_hf

import transferkit as tk
from transferkit.backbones.stages import stage_indices
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    DownloadError,
    MissingExtraError,
    WeightsMismatchError,
)
from transferkit.features.split import split_model

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, size=32):
    return model.eval()(images(size=size))


@torch.no_grad()
def expected_logits(folder, size=32, **arguments):
    """What transformers' own loading gives."""
    own = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    return own(pixel_values=images(size=size), **arguments).logits


@pytest.fixture
def vit(tmp_path):
    """The folder of a small ViT with three classes."""
    save_tiny_hf(tmp_path / "vit")
    return tmp_path / "vit"


# --- every family


@pytest.mark.parametrize("kind", TINY_HF)
def test_a_folder_gives_transformers_own_logits_and_comes_back_from_a_model_folder(
    kind, tmp_path, no_network
):
    save_tiny_hf(tmp_path / "source", kind)
    model = tk.load_backbone(f"hf/{tmp_path / 'source'}")
    assert model.training
    assert type(model.model).__module__.startswith("transformers.")
    # Not to the bit: transformers leaves weights where the file has them in memory, which rounds otherwise.
    torch.testing.assert_close(logits(model), expected_logits(tmp_path / "source"))
    assert logits(model).std(dim=0).max() > 1e-4
    assert tk.class_names(model) == ("ant", "bee", "wasp")
    again = tk.load_model(tk.save_model(model, tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model))
    assert tk.spec_of(again) == tk.spec_of(model)


@pytest.mark.parametrize("kind", TINY_HF)
def test_head_stages_and_freezing_of_each_family(kind, tmp_path, device):
    save_tiny_hf(tmp_path, kind)
    model = tk.load_backbone(f"hf/{tmp_path}", num_classes=5).to(device)
    assert model(images().to(device)).shape == (2, 5)
    spec = tk.spec_of(model)
    assert spec.head.startswith("model.classifier")
    assert spec.stages[0].name == "stem"
    assert len(spec.stages) >= 3
    indices = list(stage_indices(model).values())
    assert set(indices) == set(range(len(spec.stages) + 1))  # each stage has parameters, and so has the head
    assert indices == sorted(indices)  # transformers registers what it runs in order
    tk.freeze(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(images(4).to(device)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trained = [name for name, each in model.named_parameters() if each.grad is not None]
    assert all(name.startswith(f"{spec.head}.") for name in trained)
    assert split_model(model).where.startswith(("before", "after"))


# --- weights in all their forms


def test_another_number_of_classes_keeps_all_but_the_head(vit):
    model, own = tk.load_backbone(f"hf/{vit}", num_classes=7), tk.load_backbone(f"hf/{vit}")
    assert model(images()).shape == (2, 7)
    assert tk.class_names(model) is None
    for name, value in own.state_dict().items():
        assert "classifier" in name or torch.equal(model.state_dict()[name], value)


def test_random_weights_have_the_preprocessing_of_the_folder(vit):
    model = tk.load_backbone(f"hf/{vit}", weights=None, num_classes=4)
    assert model(images()).shape == (2, 4)
    spec = tk.spec_of(model)
    assert (spec.weights, spec.classes, spec.preprocessing.crop) == (None, None, "squash")
    assert not torch.equal(logits(model)[:, :3], expected_logits(vit))


def test_a_config_needs_no_file(no_network):
    config = {"model_type": "vit", **TINY_HF["vit"]}
    model = tk.load_backbone(
        "hf/mine", weights=None, num_classes=4, config=config, preprocessing=tk.Preprocessing(size=32)
    )
    assert model(images()).shape == (2, 4)
    with pytest.raises(
        ArgumentError, match=r"The 'preprocessing' parameter of .* must be given beside config"
    ):
        tk.load_backbone("hf/mine", weights=None, config=config)
    with pytest.raises(
        ArgumentError, match=r"The 'config' parameter of .* must be left out where weights are"
    ):
        tk.load_backbone("hf/mine", config=config, preprocessing=tk.Preprocessing(size=32))


def test_weights_may_be_a_file(vit, tmp_path):
    source = tmp_path / "other"
    save_tiny_hf(source, labels=("a", "b", "c", "d"))
    model = tk.load_backbone(f"hf/{vit}", weights=source / "model.safetensors")
    assert torch.equal(logits(model), expected_logits(source))
    spec = tk.spec_of(model)
    assert (spec.num_classes, spec.classes) == (4, None)
    assert spec.weights.startswith("model.safetensors (sha256 ")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    again = tk.load_backbone(f"hf/{vit}", weights=tmp_path / "mine.pth")
    assert torch.equal(logits(again), logits(model))


def test_weights_of_a_saved_model_of_another_version_fit_by_their_older_names(vit, tmp_path):
    from safetensors.torch import load_file, save_file

    # save_pretrained has kept the names of its first versions.
    older = {f"model.{key}": value for key, value in load_file(vit / "model.safetensors").items()}
    save_file(older, tmp_path / "weights.safetensors")
    model = tk.load_backbone(f"hf/{vit}", weights=tmp_path / "weights.safetensors")
    assert torch.equal(logits(model), logits(tk.load_backbone(f"hf/{vit}")))


def headless(folder):
    """Save a ViT without a head, as google/vit-base-patch16-224-in21k is."""
    config = transformers.ViTConfig(**TINY_HF["vit"])
    body = transformers.ViTModel(config).eval()
    body.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR))
    return body


def test_weights_without_a_head_get_a_new_one(tmp_path):
    body = headless(tmp_path)
    with pytest.warns(
        UserWarning, match=r"^The weights of 'hf/.*' have no head; the new one is random, with 2"
    ):
        assert tk.load_backbone(f"hf/{tmp_path}")(images()).shape == (2, 2)
    model = tk.load_backbone(f"hf/{tmp_path}", num_classes=4).eval()
    with torch.no_grad():
        features = body(pixel_values=images()).last_hidden_state[:, 0]
        assert torch.equal(model(images()), model.model.classifier(features))
    assert tk.class_names(model) is None
    by_file = tk.load_backbone(f"hf/{tmp_path}", num_classes=4, weights=tmp_path / "model.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(by_file(images()), by_file.model.classifier(features))


def test_half_precision_on_the_disk_is_float32_in_training(tmp_path):
    tiny_hf("vit").half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR))
    model = tk.load_backbone(f"hf/{tmp_path}")
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_weights_in_several_files_are_put_together(vit, tmp_path):
    transformers.AutoModelForImageClassification.from_pretrained(vit).save_pretrained(
        tmp_path / "shards", max_shard_size="5KB"
    )
    (tmp_path / "shards" / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(logits(tk.load_backbone(f"hf/{tmp_path / 'shards'}")), expected_logits(vit))


def as_torch_file(folder):
    """Put the weights of a folder into pytorch_model.bin, where older models have them."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_torch_file_is_read_as_weights_only(vit):
    expected = expected_logits(vit)
    as_torch_file(vit)
    assert torch.equal(logits(tk.load_backbone(f"hf/{vit}")), expected)


def test_weights_of_another_architecture_are_told(vit, tmp_path):
    save_tiny_hf(tmp_path / "resnet", "resnet")
    with pytest.raises(
        WeightsMismatchError, match=r"does not fit this HuggingFaceClassifier; missing: model"
    ):
        tk.load_backbone(f"hf/{vit}", weights=tmp_path / "resnet" / "model.safetensors", num_classes=3)


# --- images


@pytest.mark.parametrize("kind", ["vit", "deit", "vit_msn"])
def test_position_embeddings_are_interpolated_as_transformers_does(kind, tmp_path):
    save_tiny_hf(tmp_path / "source", kind)
    model = tk.load_backbone(f"hf/{tmp_path / 'source'}", image_size=48)
    expected = expected_logits(tmp_path / "source", 48, interpolate_pos_encoding=True)
    torch.testing.assert_close(logits(model, 48), expected)
    assert tk.spec_of(model).preprocessing.size == 48
    file = tmp_path / "source" / "model.safetensors"
    by_file = tk.load_backbone(f"hf/{tmp_path / 'source'}", weights=file, image_size=48)
    assert torch.equal(logits(by_file, 48), logits(model, 48))
    again = tk.load_model(tk.save_model(model, tmp_path / "saved"))
    assert torch.equal(logits(again, 48), logits(model, 48))


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("vit", 30, r"must be a multiple of 8 for 'hf/.*'\. Got 30 instead\.$"),
        ("beit", 48, r"must be 32 for 'hf/.*'\. Got 48 instead\.$"),
        ("dinov2", 4, r"must be a side that 'hf/.*' takes \(.*\)\. Got 4 instead\.$"),
    ],
)
def test_a_size_that_an_architecture_cannot_take_is_refused(kind, size, message, tmp_path):
    save_tiny_hf(tmp_path, kind)
    with pytest.raises(ArgumentError, match=f"The 'image_size' parameter of load_backbone {message}"):
        tk.load_backbone(f"hf/{tmp_path}", image_size=size)


def test_preprocessing_that_is_not_told_is_not_guessed(vit):
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(
        ArgumentError, match=r"does not say how images are prepared: .* or pass preprocessing="
    ):
        tk.load_backbone(f"hf/{vit}")
    model = tk.load_backbone(f"hf/{vit}", preprocessing=tk.Preprocessing(size=32))
    assert tk.spec_of(model).preprocessing == tk.Preprocessing(size=32)


def test_preprocessing_that_cannot_be_followed_is_told(vit):
    (vit / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR | {"resample": 1}))
    with pytest.raises(ArgumentError, match=r"cannot be followed: its 'resample' is 1, which is none of"):
        tk.load_backbone(f"hf/{vit}")


# --- a run


class Crash(Exception):
    """Stands for a process that ends."""


class CrashAt(tk.Callback):
    """Ends the run within an update."""

    def __init__(self, batch):
        self.left = batch

    def step_end(self, result):
        self.left -= 1
        if self.left == 0:
            raise Crash


def test_a_run_is_trained_resumed_and_used_in_one_call(vit, tmp_path, tiny_part, device):
    train, val = tiny_part(24), tiny_part(8, seed=1, name="val")

    def fit(run, callbacks=(), resume=False):
        model = tk.load_backbone(f"hf/{vit}")
        torch.manual_seed(0)
        tk.replace_head(model, 2, classes=train.classes)
        trainer = tk.Trainer(
            model,
            recipe="lp-ft",
            batch_size=8,
            device=device,
            precision="fp32",
            callbacks=callbacks,
            run_dir=tmp_path / run,
            checkpoints=tk.Checkpoints(seconds=None, steps=1),
            progress=False,
        )
        history = trainer.fit(train, val, epochs=3, resume=resume)
        return [(row["train_loss"], row["val_loss"]) for row in history]

    whole = fit("whole")
    with pytest.raises(Crash):
        fit("cut", [CrashAt(8)])  # within the last epoch, of three batches
    assert fit("cut", resume=True) == (whole if device.type == "cpu" else pytest.approx(whole, rel=1e-3))
    predictor = tk.Predictor.load(tmp_path / "cut", device=device)
    image = Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8))
    prediction = predictor(image)
    assert [sorted(entry) for entry in prediction] == [["label", "score"]] * 2
    assert {entry["label"] for entry in prediction} == set(train.classes)
    with torch.no_grad():
        inputs = predictor.preprocessing(image)[None].to(device)
        expected = predictor.model.model(pixel_values=inputs).logits.softmax(dim=1)[0]
    assert prediction[0]["score"] == pytest.approx(float(expected.max()), abs=0.01)
    parts = tk.parameter_groups(predictor.model, lr=1e-3, layer_decay=0.5)
    assert {group["lr"] for group in parts} == {1e-3, 5e-4, 2.5e-4}  # head and last block, first block, stem


def test_what_is_frozen_is_computed_once(vit, tiny_part, device):
    part = tiny_part(12)
    model = tk.load_backbone(f"hf/{vit}", num_classes=2)
    features = tk.extract_features(model, part, device=device, precision="fp32")
    model.eval()
    inputs = torch.stack([tk.spec_of(model).preprocessing(part[index][0]) for index in range(12)])
    with torch.no_grad():
        expected = model.model.vit(pixel_values=inputs.to(device)).last_hidden_state[:, 0].cpu()
    np.testing.assert_allclose(features.x, expected.numpy(), atol=1e-5)


# --- names


def test_a_model_that_is_no_image_classifier_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ArgumentError, match=r"^The model type of 'hf/.*' must be one of beit, .* Got 'bert' in"
    ):
        tk.load_backbone(f"hf/{tmp_path}")


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json, which tells what model it is\.$"):
        tk.load_backbone(f"hf/{tmp_path}")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": 1e999}'])
def test_a_damaged_config_is_told(vit, text):
    (vit / "config.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match=r"config\.json is damaged: "):
        tk.load_backbone(f"hf/{vit}")


def test_a_folder_without_weights_is_told(vit):
    (vit / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"holds no weights: no model\.safetensors and no pytorch_model"
    ):
        tk.load_backbone(f"hf/{vit}")


def test_weights_have_no_names(vit):
    with pytest.raises(
        ArgumentError,
        match=r"The 'weights' parameter of .* must be 'default', the path of a file, .* Got 'V1'",
    ):
        tk.load_backbone(f"hf/{vit}", weights="V1")


def test_without_a_network_a_model_on_the_hub_is_one_sentence(monkeypatch, tmp_path, no_network):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'hf'")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DownloadError, match=r"^The model 'google/vit-base-patch16-224' is not in the cache and"
    ):
        tk.load_backbone("hf/google/vit-base-patch16-224")


def test_what_is_in_the_cache_of_the_hub_needs_no_network(monkeypatch, vit, tmp_path, no_network):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'hf'")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    place, commit = tmp_path / "cache" / "models--someone--vit", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(vit, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    model = tk.load_backbone("hf/someone/vit")
    assert torch.equal(logits(model), logits(tk.load_backbone(f"hf/{vit}")))
    assert tk.spec_of(model).weights == "someone/vit@0123456789ab"


def test_without_the_extra_its_name_is_told(monkeypatch, vit):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    message = r"^The backbone 'hf/.*' needs transformers, .* pip install 'transferkit\[hf\]'$"
    with pytest.raises(MissingExtraError, match=message):
        tk.load_backbone(f"hf/{vit}")


def test_names_of_the_hub_are_not_listed():
    with pytest.raises(ArgumentError, match="models of Hugging Face are listed on their hub"):
        tk.list_backbones("hf/*")
